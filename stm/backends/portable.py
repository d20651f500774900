"""The three operations in torch's own operators, and few of them: for a program that other processes run without stm.

A walk of L tokens, one after the other, would be thousands of nodes in a program. Here the tokens stand in chunks of T.
All chunks walk side by side, T steps, as if each were the first; L / T steps carry the states from chunk to chunk; T
more steps walk again from there. Every factor is an exp of something negative, so nothing overflows. Decays and states
of all tokens are in memory at once, which is why `auto` does not take this backend.

A compiler wants one loop instead: a step is then compiled once and runs L times (`loop`). Torch without a compiler runs
that loop in Python, about five times as slow as the chunks.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._higher_order_ops.scan  # registers the operator
import torch.nn.functional as F
from torch import Tensor

from stm.backends import conv
from stm.backends.reference import add_norm, gated, projected, step_sizes

__all__ = ["add_norm", "conv_silu", "loop", "scan"]

# From elapsed, x, A, B, C and the directions that walk backwards; see `chunks`.
Recurrence = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Sequence[bool]], Tensor]


def conv_silu(
    x: Tensor, w: Tensor, b: Tensor, reverse: tuple[bool, ...], *, sizes: tuple[int, ...] | None = None
) -> Tensor:
    """Return what `stm.backends.reference.conv_silu` returns."""
    if sizes is None:
        return conv.conv_silu(x, w, b, reverse)
    wide = x.to(torch.promote_types(x.dtype, w.dtype))
    return torch.stack([conv.span(wide, w[k], b[k], sizes, back) for k, back in enumerate(reverse)]).to(x.dtype)


def scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    reverse: tuple[bool, ...],
    *,
    dt_weight: Tensor | None = None,
    dt_bias: Tensor | None = None,
    scale: Tensor | None = None,
    gap: Tensor | None = None,
    split: bool = False,
    recurrence: Recurrence | None = None,
) -> Tensor:
    """Return what `stm.backends.reference.scan` returns, by one of the two forms below; None for `chunks`."""
    delta = step_sizes(projected(dt, dt_weight), scale, dt_bias)  # (K, B, L, E)
    elapsed = delta if gap is None else delta + gap
    walk = recurrence or chunks
    y = walk(elapsed, delta * u, A, B.to(delta), C.to(delta), reverse) + D[:, None, None] * u
    return (y if split else gated(y, z)).to(u.dtype)


def chunks(elapsed: Tensor, x: Tensor, A: Tensor, B: Tensor, C: Tensor, reverse: Sequence[bool]) -> Tensor:
    """Return y_t = C_t h_t of the recurrence h_t = exp(elapsed_t A) h_{t-1} + x_t B_t; see `stm.backends.blocked`."""
    length = x.shape[2]
    size = max(1, round(math.sqrt(length / 2)))  # T: 2 T + L / T steps are fewest
    count = -(-length // size)

    def cut(v: Tensor) -> Tensor:
        """Return v (K, B, L, X) in walking order, zeros behind it, as (K, B, count, T, X)."""
        return F.pad(_walked(v, reverse), (0, 0, 0, count * size - length)).unflatten(2, (count, size))

    time, rates = cut(elapsed), A.mT[:, None, None]  # (K, B, count, T, E), (K, 1, 1, N, E)
    decays = (time[..., None, :] * rates[:, :, :, None]).exp().unbind(3)  # T of (K, B, count, N, E)
    inputs = (cut(x)[..., None, :] * cut(B)[..., None]).unbind(3)
    h = inputs[0]  # of the first token of every chunk, as if nothing were before it
    for decay, new in zip(decays[1:], inputs[1:], strict=True):
        h = torch.addcmul(new, decay, h)
    # From chunk to chunk: the state before each, (K, B, N, E).
    across, state = (time.sum(3)[..., None, :] * rates).exp(), torch.zeros_like(h[:, :, 0])
    before = []
    for decay, new in zip(across.unbind(2), h.unbind(2), strict=True):
        before.append(state)
        state = torch.addcmul(new, decay, state)
    h, states = torch.stack(before, 2), []
    for decay, new in zip(decays, inputs, strict=True):
        h = torch.addcmul(new, decay, h)
        states.append(h)
    y = cut(C)[..., None, :].matmul(torch.stack(states, 3))[..., 0, :]  # (K, B, count, T, E)
    return _walked(y.flatten(2, 3)[:, :, :length], reverse)


def loop(elapsed: Tensor, x: Tensor, A: Tensor, B: Tensor, C: Tensor, reverse: Sequence[bool]) -> Tensor:
    """Return what `chunks` returns, as one node with one step inside."""

    def step(h: Tensor, elapsed: Tensor, x: Tensor, B: Tensor, C: Tensor, rates: Tensor, *_: object) -> list[Tensor]:
        """Return the state (K, B, N, E) after a token and its output (K, B, E), from the state before it."""
        h = (elapsed[..., None, :] * rates).exp() * h + x[..., None, :] * B[..., None]
        return [h, (h * C[..., None]).sum(-2)]

    tokens = [_walked(v, reverse).permute(2, 0, 1, 3).contiguous() for v in (elapsed, x, B, C)]  # L of (K, B, X)
    rates = A.mT.contiguous()[:, None]  # (K, 1, N, E)
    images: Any = x.shape[1]  # a number, or a symbol if any may come
    zero = x.new_zeros(x.shape[0], images, A.shape[2], A.shape[1])  # (K, B, N, E)
    # No step reads the symbol. Inductor looks for it among the inputs of the loop (torch 2.13).
    others = (rates, images) if isinstance(images, torch.SymInt) else (rates,)
    _, y = torch.ops.higher_order.scan(step, [zero], tokens, others)
    return _walked(y.permute(1, 2, 0, 3), reverse)


def _walked(v: Tensor, reverse: Sequence[bool]) -> Tensor:
    """Return v (K, B, L, X) with the tokens of each backward direction turned around; twice is v itself."""
    if not any(reverse):
        return v
    return torch.stack([v[k].flip(1) if back else v[k] for k, back in enumerate(reverse)])
