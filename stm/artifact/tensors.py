"""Check that tensors are those that a model takes: weights by shape, dtype and finite values; images."""

from collections.abc import Mapping

import torch
from torch import Tensor

from stm.artifact.shapes import by_shape, refuse
from stm.errors import StmError, UsageError, listed


def check_tensors(
    expected: Mapping[str, Tensor], actual: Mapping[str, Tensor], where: str, error: type[StmError]
) -> None:
    """Refuse tensors that are not exactly the expected ones.

    Args:
        expected: name to a tensor of the right shape and dtype; the meta device will do.
        actual: the tensors of the file.
        where: the file, for the message.
        error: what to raise.

    Raises:
        error: one sentence with every kind of difference: tensors that are missing, unexpected, or of another shape or
            dtype. If there is none, it names the tensors that hold NaN or infinity.
    """
    differences = by_shape(
        *({name: tuple(tensor.shape) for name, tensor in each.items()} for each in (expected, actual))
    )
    differences["of another dtype"] = [
        f"{name} {dtype_name(actual[name])} instead of {dtype_name(expected[name])}"
        for name in sorted(expected.keys() & actual.keys())
        if actual[name].dtype != expected[name].dtype
    ]
    # Names and shapes first: a tensor that does not belong here need not be read.
    refuse(differences, where, error)
    check_finite(actual, where, error)


def check_finite(tensors: Mapping[str, Tensor], where: str, error: type[StmError]) -> None:
    """Refuse NaN and infinity. The error names the tensors that hold them."""
    # NaN would not fail a run: it would make every prediction the same class.
    bad = [name for name, tensor in sorted(tensors.items()) if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise error(f"{where} holds NaN or infinity in {len(bad)} of {len(tensors)} tensors ({listed(bad)})")


def check_images(images: object, expected: tuple[int, int, int], device: torch.device | None = None) -> None:
    """Refuse images that the model cannot take, in a clearer sentence than torch's. No pixel is read.

    Args:
        images: (B, C, H, W), floating.
        expected: C, H and W.
        device: the model's; None if images of any device will do.

    Raises:
        UsageError: the images are of another kind, dtype, shape or device.
    """
    # Reading a value would wait for the device, and would break torch.compile(fullgraph=True).
    if not isinstance(images, Tensor) or images.layout != torch.strided:
        kind = (
            f"a tensor of layout {images.layout}" if isinstance(images, Tensor) else f"of type {type(images).__name__}"
        )
        raise UsageError(f"images are {kind}, expected a dense tensor (B, {', '.join(map(str, expected))})")
    if images.dim() != 4 or images.shape[1:] != expected:
        hint = (
            "resize and crop them as config.preprocessing says"
            if images.dim() == 4
            else "stack them: torch.stack(images)"
        )
        raise UsageError(f"images are {tuple(images.shape)}, expected (B, {', '.join(map(str, expected))})", hint)
    if not images.is_floating_point():
        hint = "divide bytes by 255, then subtract config.preprocessing.mean and divide by its std"
        raise UsageError(f"images are {dtype_name(images)}, expected floating numbers that are normalised", hint)
    if device is not None and images.device != device:
        raise UsageError(
            f"images are on {images.device}, expected {device}, where the model is", f'move them: images.to("{device}")'
        )


def dtype_name(tensor: Tensor) -> str:
    """Return the name of a tensor's dtype as configs write it, such as `float32`."""
    return str(tensor.dtype).removeprefix("torch.")
