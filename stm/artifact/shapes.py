"""The tensors that a model's file holds, by name and shape, and whether a file holds them. No tensor is read."""

from collections.abc import Iterator, Mapping

from stm.config import INT8, Config
from stm.errors import StmError, listed

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
    refuse(by_shape(dict(shapes(config)), actual), where, error)


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
        yield from _product(f"{block}.mixer.in_proj", config.dtype, 2 * E, D)
        yield f"{block}.mixer.conv1d_weight", (K, E, W)
        yield f"{block}.mixer.conv1d_bias", (K, E)
        if config.dtype == INT8:
            yield from _product(f"{block}.mixer.x_proj", config.dtype, K, R + 2 * N, E)
        else:
            yield f"{block}.mixer.x_proj_weight", (K, R + 2 * N, E)
        yield f"{block}.mixer.dt_proj_weight", (K, E, R)
        yield f"{block}.mixer.dt_proj_bias", (K, E)
        yield f"{block}.mixer.A_log", (K, E, N)
        yield f"{block}.mixer.D", (K, E)
        yield from _product(f"{block}.mixer.out_proj", config.dtype, D, E)
        if model.scan_norm:
            yield f"{block}.mixer.scan_norm.weight", (E,)
            yield f"{block}.mixer.scan_norm.bias", (E,)
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


def _product(name: str, dtype: str, *shape: int) -> Iterator[tuple[str, Shape]]:
    """Yield the tensors of a matrix product whose weight has a shape (..., out, in)."""
    yield f"{name}.weight", shape
    if dtype == INT8:
        yield f"{name}.scale", shape[:-1]
        yield f"{name}.equalizer", (*shape[:-2], shape[-1])


def by_shape(expected: Mapping[str, Shape], actual: Mapping[str, Shape]) -> dict[str, list[str]]:
    """Return the names of the tensors that differ, by kind of difference."""
    both = sorted(expected.keys() & actual.keys())  # sorted, so that one file always gets one sentence
    return {
        "missing": sorted(expected.keys() - actual.keys()),
        "unexpected": sorted(actual.keys() - expected.keys()),
        "of another shape": [
            f"{name} {actual[name]} instead of {expected[name]}" for name in both if actual[name] != expected[name]
        ],
    }


def refuse(differences: Mapping[str, list[str]], where: str, error: type[StmError]) -> None:
    """Raise `error` with one sentence about all differences, if there are any."""
    if parts := [f"{len(names)} {kind} ({listed(names)})" for kind, names in differences.items() if names]:
        raise error(f"{where} does not hold the tensors that were expected: {', '.join(parts)}")
