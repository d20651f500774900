"""The three operations in torch's own operators, and few of them: for a program that other processes run without stm.

A walk of L tokens, one after the other, would be thousands of nodes in a program. Here the tokens stand in chunks of T.
All chunks walk side by side, T steps, as if each were the first; L / T steps carry the states from chunk to chunk; T
more steps walk again from there. Every factor is an exp of something negative, so nothing overflows. Decays and states
of all tokens are in memory at once, which is why `auto` does not take this backend.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stm.backends import conv
from stm.backends.reference import add_norm, gated, projected, step_sizes

__all__ = ["add_norm", "conv_silu", "scan"]


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
) -> Tensor:
    """Return what `stm.backends.reference.scan` returns."""
    delta = step_sizes(projected(dt, dt_weight), scale, dt_bias)  # (K, B, L, E)
    elapsed = delta if gap is None else delta + gap
    y = _recurrence(elapsed, delta * u, A, B.to(delta), C.to(delta), reverse) + D[:, None, None] * u
    return (y if split else gated(y, z)).to(u.dtype)


def _recurrence(elapsed: Tensor, x: Tensor, A: Tensor, B: Tensor, C: Tensor, reverse: Sequence[bool]) -> Tensor:
    """Return y_t = C_t h_t of the recurrence h_t = exp(elapsed_t A) h_{t-1} + x_t B_t; see `stm.backends.blocked`."""
    length = x.shape[2]
    size = max(1, round(math.sqrt(length / 2)))  # T: 2 T + L / T steps are fewest
    count = -(-length // size)

    def chunks(v: Tensor) -> Tensor:
        """Return v (K, B, L, X) in walking order, zeros behind it, as (K, B, count, T, X)."""
        return F.pad(_walked(v, reverse), (0, 0, 0, count * size - length)).unflatten(2, (count, size))

    time, rates = chunks(elapsed), A.mT[:, None, None]  # (K, B, count, T, E), (K, 1, 1, N, E)
    decays = (time[..., None, :] * rates[:, :, :, None]).exp().unbind(3)  # T of (K, B, count, N, E)
    inputs = (chunks(x)[..., None, :] * chunks(B)[..., None]).unbind(3)
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
    y = chunks(C)[..., None, :].matmul(torch.stack(states, 3))[..., 0, :]  # (K, B, count, T, E)
    return _walked(y.flatten(2, 3)[:, :, :length], reverse)


def _walked(v: Tensor, reverse: Sequence[bool]) -> Tensor:
    """Return v (K, B, L, X) with the tokens of each backward direction turned around; twice is v itself."""
    if not any(reverse):
        return v
    return torch.stack([v[k].flip(1) if back else v[k] for k, back in enumerate(reverse)])
