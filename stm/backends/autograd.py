"""Autograd for operators that come in pairs: the backward one takes the gradient and the inputs, and returns one gradient a tensor."""

from typing import Any

from torch import Tensor


def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep the inputs of an operator for its backward operator."""
    ctx.save_for_backward(*(v for v in inputs if isinstance(v, Tensor)))
    ctx.inputs = [None if isinstance(v, Tensor) else v for v in inputs]
    ctx.given = [isinstance(v, Tensor) for v in inputs]


def formula(backward: Any, constants: int = 0) -> Any:
    """The autograd formula of an operator whose last inputs, so many, are left out of its backward operator."""

    def differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors = iter(ctx.saved_tensors)
        inputs = [next(tensors) if given else v for given, v in zip(ctx.given, ctx.inputs, strict=True)]
        grads = iter(backward(grad, *inputs[: len(inputs) - constants]))
        return tuple(next(grads) if given else None for given in ctx.given)

    return differentiate
