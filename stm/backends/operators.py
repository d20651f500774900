"""Our operators in torch's registry: torch.compile and torch.export see one node each, and autograd works through them.

`torch.library.custom_op` would do, but the first call of one imports torch's compiler: a second, and 35 MB for the rest
of the run.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("stm", "FRAGMENT")


def operator(
    schema: str,
    *,
    fake: Callable[..., Any],
    device: str = "CompositeExplicitAutograd",
    backward: Callable[..., Any] | None = None,
    constants: int = 0,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as the operator `stm::` of a schema; what comes back calls it by way of the dispatcher.

    Args:
        schema: its name and signature in torch's notation; it changes no input, and none is an alias of its output.
        fake: the same signature; returns empty tensors of the right shapes.
        device: the dispatch key that the function serves; every device by default.
        backward: the operator that takes the gradient and the inputs, and returns one gradient for each tensor that was
            given.
        constants: so many of the last inputs are left out of it.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = schema.partition("(")[0]
        _LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
        _LIBRARY.impl(name, function if backward is not None else _in_own_dtypes(function), device)
        torch.library.register_fake(f"stm::{name}", fake, lib=_LIBRARY)
        formula = _once(name) if backward is None else _formula(backward, constants)
        torch.library.register_autograd(f"stm::{name}", formula, setup_context=_save, lib=_LIBRARY)
        registered: Callable[..., Any] = getattr(torch.ops.stm, name).default
        return registered

    return register


def _in_own_dtypes(function: Callable[..., Any]) -> Callable[..., Any]:
    """A backward operator without autocast, which may be on when `backward()` is called, and would give its products
    another dtype."""

    def run(*inputs: Any) -> Any:
        tensor = inputs[0] if isinstance(inputs[0], Tensor) else inputs[0][0]
        with torch.autocast(tensor.device.type, enabled=False):
            return function(*inputs)

    return run


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Keep the inputs of an operator for its backward operator."""
    ctx.save_for_backward(*(v for v in inputs if isinstance(v, Tensor)))
    ctx.inputs = [None if isinstance(v, Tensor) else v for v in inputs]
    ctx.given = [isinstance(v, Tensor) for v in inputs]


def _formula(backward: Callable[..., Any], constants: int) -> Callable[..., Any]:
    def differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors = iter(ctx.saved_tensors)
        inputs = [next(tensors) if given else v for given, v in zip(ctx.given, ctx.inputs, strict=True)]
        grads = iter(backward(grad, *inputs[: len(inputs) - constants]))
        return tuple(next(grads) if given else None for given in ctx.given)

    return differentiate


def _once(name: str) -> Callable[..., Any]:
    def differentiate(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(f"stm::{name} has no gradient of its own: models can be differentiated once")

    return differentiate
