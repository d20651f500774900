"""Whether tensors are the ones that a model takes: weights by their names, shapes, dtypes and finite values; images."""

from collections.abc import Mapping

import torch
from torch import Tensor

from stm.errors import StmError, UsageError, listed


def check_tensors(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str, error: type[StmError]) -> None:
    """Refuse tensors that are not exactly the expected ones.

    Args:
        expected: name to a tensor of the right shape and dtype; the meta device will do.
        found: what is there.
        where: the file, for the message.
        error: what to raise.

    Raises:
        error: with every kind of difference in one sentence: what is missing, unexpected, of another shape or dtype; or else the
            tensors that hold NaN or infinity.
    """
    both = sorted(expected.keys() & found.keys())
    differences = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": [
            f"{name} {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in both
            if found[name].shape != expected[name].shape
        ],
        "of another dtype": [
            f"{name} {dtype_name(found[name])} instead of {dtype_name(expected[name])}"
            for name in both
            if found[name].dtype != expected[name].dtype
        ],
    }
    if told := [f"{len(names)} {kind} ({listed(names)})" for kind, names in differences.items() if names]:
        raise error(f"{where} does not hold the tensors that were expected: {', '.join(told)}")
    check_finite(found, where, error)


def check_finite(tensors: Mapping[str, Tensor], where: str, error: type[StmError]) -> None:
    """Refuse NaN and infinity, by the names of the tensors that hold them."""
    bad = [name for name, tensor in sorted(tensors.items()) if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise error(f"{where} holds NaN or infinity in {len(bad)} of {len(tensors)} tensors ({listed(bad)})")


def check_images(images: object, expected: tuple[int, int, int], device: torch.device | None = None) -> None:
    """Refuse what no model takes as its input, before torch does in words of its own. Looks at no value.

    Args:
        images: (B, C, H, W), floating.
        expected: C, H and W.
        device: the model's; None where images of any device will do.

    Raises:
        UsageError: they are of another kind, dtype, shape or device.
    """
    if not isinstance(images, Tensor) or images.layout != torch.strided:
        kind = f"a tensor of layout {images.layout}" if isinstance(images, Tensor) else f"of type {type(images).__name__}"
        raise UsageError(f"images are {kind}, expected a dense tensor (B, {', '.join(map(str, expected))})")
    if images.dim() != 4 or images.shape[1:] != expected:
        hint = "resize and crop them as config.preprocessing says" if images.dim() == 4 else "stack them: torch.stack(images)"
        raise UsageError(f"images are {tuple(images.shape)}, expected (B, {', '.join(map(str, expected))})", hint)
    if not images.is_floating_point():
        hint = "divide bytes by 255, then subtract config.preprocessing.mean and divide by its std"
        raise UsageError(f"images are {dtype_name(images)}, expected floating numbers that are normalised", hint)
    if device is not None and images.device != device:
        raise UsageError(f"images are on {images.device}, expected {device}, where the model is", f'move them: images.to("{device}")')


def dtype_name(tensor: Tensor) -> str:
    """`float32` and so on, as configs name it."""
    return str(tensor.dtype).removeprefix("torch.")
