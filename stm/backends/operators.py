"""Our operators in torch's registry: torch.compile and torch.export see one node each, and autograd works through them.

`torch.library.custom_op` does the same, but its first call imports torch's compiler: a second, and 35 MB for the rest
of the run. So the pieces are registered one by one.
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
    """Return a decorator that registers a function as an operator `stm::`, and replaces it by the registered operator.

    Args:
        schema: name and signature in torch's notation. The function changes no input and returns none.
        fake: a function of the same inputs that returns empty tensors of the right shapes, for tracing.
        device: the dispatch key that the function serves; every device by default.
        backward: the operator that takes the gradient and the inputs, and returns one gradient per tensor among them.
            Without it the operator is itself a backward operator, which cannot be differentiated again.
        constants: the number of last inputs that `backward` does not take.
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
    """Return a backward operator that runs without autocast.

    Autocast may be on when `backward()` is called, and would give the operator's products another dtype than its fake
    function promises.
    """

    def run(*inputs: Any) -> Any:
        tensor = inputs[0] if isinstance(inputs[0], Tensor) else inputs[0][0]
        with torch.autocast(tensor.device.type, enabled=False):
            return function(*inputs)

    return run


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Keep the inputs of an operator for its backward operator: tensors in autograd's way, the others as they are."""
    ctx.save_for_backward(*(v for v in inputs if isinstance(v, Tensor)))
    ctx.inputs = [None if isinstance(v, Tensor) else v for v in inputs]
    ctx.given = [isinstance(v, Tensor) for v in inputs]


def _formula(backward: Callable[..., Any], constants: int) -> Callable[..., Any]:
    """Return autograd's function for an operator: call `backward`, and put None in the gradients of non-tensors."""

    def differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors = iter(ctx.saved_tensors)
        inputs = [next(tensors) if given else v for given, v in zip(ctx.given, ctx.inputs, strict=True)]
        grads = iter(backward(grad, *inputs[: len(inputs) - constants]))
        return tuple(next(grads) if given else None for given in ctx.given)

    return differentiate


def _once(name: str) -> Callable[..., Any]:
    """Return autograd's function for a backward operator, which has no gradient: raise instead of returning zeros."""

    def differentiate(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(f"stm::{name} has no gradient of its own: models can be differentiated once")

    return differentiate
