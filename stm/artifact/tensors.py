"""Check that tensors are those that a model takes: weights by name, shape, dtype and finite values; images."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from stm.config import Config
from stm.errors import StmError, UsageError, listed

Shape = tuple[int, ...]


def check_claims(config: Config, actual: Mapping[str, Shape], where: str, error: type[StmError]) -> None:
    """Refuse a config whose tensors are not those of the file, before memory is taken for the sizes that it claims.

    Args:
        config: of a file that is not trusted; its numbers may be any.
        actual: the file's tensors, name to shape.
        where: the file that holds them, for the message.
        error: what to raise.

    Raises:
        error: it names the tensors that are missing, unexpected, or of another shape.
    """
    depth = config.model.depth
    # Each block has tensors of its own. Without this check a depth of 10^9 would make as many names to compare.
    if depth > len(actual):
        raise error(f"{where} does not hold the tensors that were expected: it has {len(actual)} for {depth:,} blocks")
    _refuse(_by_shape(dict(shapes(config)), actual), where, error)


def shapes(config: Config) -> Iterator[tuple[str, Shape]]:
    """Yield name and shape of each tensor in the state dict of `ViM(config)`, in another order, by arithmetic alone."""
    model, classes = config.model, config.num_classes
    D, E, N, R, K, W = model.d_model, model.d_inner, model.d_state, model.dt_rank, 2, model.d_conv
    yield "patch_embed.weight", (D, model.in_chans, model.patch, model.patch)
    yield "patch_embed.bias", (D,)
    yield "cls_token", (1, model.class_tokens, D)
    yield "pos_embed", (1, model.tokens, D)
    yield "norm_f.weight", (D,)
    if model.neck is not None:
        yield "neck.weight", (model.neck, D)
        yield "norm_neck.weight", (model.d_head,)
    yield "head.weight", (classes, model.d_head)
    yield "head.bias", (classes,)
    # What each direction has for itself is stacked on an axis K. The two projections of a block serve both directions.
    for block in (f"layers.{number}" for number in range(model.depth)):
        yield f"{block}.norm.weight", (D,)
        yield f"{block}.mixer.in_proj.weight", (2 * E, D)
        yield f"{block}.mixer.conv1d_weight", (K, E, W)
        yield f"{block}.mixer.conv1d_bias", (K, E)
        yield f"{block}.mixer.x_proj_weight", (K, R + 2 * N, E)
        yield f"{block}.mixer.dt_proj_weight", (K, E, R)
        yield f"{block}.mixer.dt_proj_bias", (K, E)
        yield f"{block}.mixer.A_log", (K, E, N)
        yield f"{block}.mixer.D", (K, E)
        yield f"{block}.mixer.out_proj.weight", (D, E)
    tokens, protection = model.tokens, config.protection
    if protection is None:
        return
    for step in config.schedule.steps:
        # Weights act on the tokens before the merge, the step scale on those after it.
        if protection.mode == "static":
            yield f"plan.{step.after}.weight", (tokens,)
        tokens -= len(step.absorb)
        if protection.step_scale > 0:
            yield f"plan.{step.after}.scale", (tokens,)


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
    differences = _by_shape(
        *({name: tuple(tensor.shape) for name, tensor in each.items()} for each in (expected, actual))
    )
    differences["of another dtype"] = [
        f"{name} {dtype_name(actual[name])} instead of {dtype_name(expected[name])}"
        for name in sorted(expected.keys() & actual.keys())
        if actual[name].dtype != expected[name].dtype
    ]
    # Names and shapes first: a tensor that does not belong here need not be read.
    _refuse(differences, where, error)
    check_finite(actual, where, error)


def _by_shape(expected: Mapping[str, Shape], actual: Mapping[str, Shape]) -> dict[str, list[str]]:
    """Return the names of the tensors that differ, by kind of difference."""
    both = sorted(expected.keys() & actual.keys())  # sorted, so that one file always gets one sentence
    return {
        "missing": sorted(expected.keys() - actual.keys()),
        "unexpected": sorted(actual.keys() - expected.keys()),
        "of another shape": [
            f"{name} {actual[name]} instead of {expected[name]}" for name in both if actual[name] != expected[name]
        ],
    }


def _refuse(differences: Mapping[str, list[str]], where: str, error: type[StmError]) -> None:
    if parts := [f"{len(names)} {kind} ({listed(names)})" for kind, names in differences.items() if names]:
        raise error(f"{where} does not hold the tensors that were expected: {', '.join(parts)}")


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
