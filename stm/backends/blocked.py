"""The backend of torch alone: the scan in blocks of tokens that stay in the cache. It runs wherever torch does.

The reference runs several small kernels per token and direction. Here the decays and inputs of a block of T tokens are
computed at once, into two buffers (T, K, B, N, E) with E innermost, for both directions and all states. What is left
per token is one fused multiply-add, as the recurrence itself is sequential. Nothing of size (B, L, E, N) is ever built.

The recurrence is an opaque operator, so that torch.compile and torch.export see one node instead of thousands.
"""

import torch
from torch import Tensor

from stm.backends.conv import conv_silu
from stm.backends.operators import operator
from stm.backends.reference import add_norm, gated, projected, step_sizes

__all__ = ["add_norm", "conv_silu", "scan"]

# Elements of each of a block's two buffers, float32: a few megabytes, the fastest of 2**13 to 2**21 on processors.
BUFFER = 2**19
LONGEST = 32  # the most tokens of a block


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
    y: Tensor = _recurrence(elapsed, delta * u, A, B.to(delta), C.to(delta), list(reverse))
    y = y + D[:, None, None] * u
    return (y if split else gated(y, z)).to(u.dtype)


_RECURRENCE = "Tensor elapsed, Tensor x, Tensor A, Tensor B, Tensor C, bool[] reverse"


@operator(
    f"blocked_recurrence_backward(Tensor grad, {_RECURRENCE}) -> ({', '.join(['Tensor'] * 5)})",
    fake=lambda grad, *inputs: tuple(torch.empty_like(v) for v in inputs[:-1]),
)
def _recurrence_backward(
    grad: Tensor, elapsed: Tensor, x: Tensor, A: Tensor, B: Tensor, C: Tensor, reverse: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of elapsed, x, A, B and C.

    Keeping all states would take (B, L, E, N). Only those between the blocks are kept, in a first walk; the states
    inside a block are computed again when the gradients, walking backwards, reach it.
    """
    blocks = _blocks(x, A)
    between = [_first_state(x, A)]  # the state before each block, (K, B, N, E)
    for lo, hi in blocks[:-1]:
        between.append(_states(elapsed, x, A, B, between[-1], reverse, lo, hi)[1][-1].clone())
    g_elapsed, g_x, g_B, g_C = (torch.empty_like(v) for v in (elapsed, x, B, C))
    g_A = torch.zeros_like(A.mT)  # (K, N, E)
    g_h = torch.zeros_like(between[0])  # the gradient of the current token's state, from the tokens after it
    for (lo, hi), h in zip(reversed(blocks), reversed(between), strict=True):
        decay, states = _states(elapsed, x, A, B, h, reverse, lo, hi)  # (T, K, B, N, E)
        g_y = _walk(grad, reverse, lo, hi)  # (T, K, B, E)
        _put(g_C, states.matmul(g_y[..., None])[..., 0], reverse, lo, hi)
        before = torch.cat([h[None], states[:-1]])  # the state before each token
        g_states = _walk(C, reverse, lo, hi)[..., None] * g_y[..., None, :]  # (T, K, B, N, E)
        for t in reversed(range(hi - lo)):
            g_states[t] += g_h
            g_h = decay[t] * g_states[t]
        _put(g_x, _walk(B, reverse, lo, hi)[..., None, :].matmul(g_states)[..., 0, :], reverse, lo, hi)
        _put(g_B, g_states.matmul(_walk(x, reverse, lo, hi)[..., None])[..., 0], reverse, lo, hi)
        # The gradient of elapsed * A, in place, since nothing reads g_states again.
        g_exponent = g_states.mul_(before).mul_(decay)
        _put(g_elapsed, (g_exponent * A.mT[:, None]).sum(-2), reverse, lo, hi)
        g_A += (g_exponent * _walk(elapsed, reverse, lo, hi)[..., None, :]).sum((0, 2))
    return g_elapsed, g_x, g_A.mT.contiguous(), g_B, g_C


@operator(
    f"blocked_recurrence({_RECURRENCE}) -> Tensor",
    fake=lambda elapsed, x, *_: torch.empty_like(x),
    backward=_recurrence_backward,
)
def _recurrence(elapsed: Tensor, x: Tensor, A: Tensor, B: Tensor, C: Tensor, reverse: list[bool]) -> Tensor:
    """Return y_t = C_t h_t of the recurrence h_t = exp(elapsed_t A) h_{t-1} + x_t B_t.

    Args:
        elapsed: (K, B, L, E), Delta and gap.
        x: (K, B, L, E), Delta times the input; the other arguments are those of `stm.backends.reference.scan`.
    """
    y = torch.empty_like(x)
    h = _first_state(x, A)
    for lo, hi in _blocks(x, A):
        _, states = _states(elapsed, x, A, B, h, reverse, lo, hi)  # (T, K, B, N, E)
        h = states[-1]  # of the block's last token
        _put(y, _walk(C, reverse, lo, hi)[..., None, :].matmul(states)[..., 0, :], reverse, lo, hi)
    return y


def _first_state(x: Tensor, A: Tensor) -> Tensor:
    """Return the state before the first token of each walk: zeros, (K, B, N, E)."""
    return A.new_zeros(A.shape[0], x.shape[1], A.shape[2], A.shape[1])


def _blocks(x: Tensor, A: Tensor) -> list[tuple[int, int]]:
    """Return the walk cut into blocks of tokens, as pairs (first, end)."""
    length, elements_per_token = x.shape[2], x.shape[1] * A.numel()
    size = max(1, min(LONGEST, BUFFER // max(1, elements_per_token)))
    return [(lo, min(lo + size, length)) for lo in range(0, length, size)]


def _states(
    elapsed: Tensor, x: Tensor, A: Tensor, B: Tensor, h: Tensor, reverse: list[bool], lo: int, hi: int
) -> tuple[Tensor, Tensor]:
    """Return the decays and states of one block, each (T, K, B, N, E) in walking order.

    Args:
        h: (K, B, N, E), the state before the block.
        lo, hi: the block.
    """
    decay = (_walk(elapsed, reverse, lo, hi)[..., None, :] * A.mT[:, None]).exp_()
    states = _walk(x, reverse, lo, hi)[..., None, :] * _walk(B, reverse, lo, hi)[..., None]
    for t in range(hi - lo):
        h = torch.addcmul(states[t], decay[t], h, out=states[t])  # in place: inputs become states
    return decay, states


def _walk(v: Tensor, reverse: list[bool], lo: int, hi: int) -> Tensor:
    """Return steps lo to hi of each direction's walk through v (K, B, L, X), as (T, K, B, X), contiguous."""
    length = v.shape[2]
    parts = [v[k, :, length - hi : length - lo].flip(1) if back else v[k, :, lo:hi] for k, back in enumerate(reverse)]
    return torch.stack([part.movedim(1, 0) for part in parts], 1)


def _put(v: Tensor, values: Tensor, reverse: list[bool], lo: int, hi: int) -> None:
    """Write values (T, K, B, X) to steps lo to hi of each direction's walk through v (K, B, L, X): inverts `_walk`."""
    length = v.shape[2]
    for k, back in enumerate(reverse):
        part = values[:, k].movedim(0, 1)  # (B, T, X)
        v[k, :, slice(length - hi, length - lo) if back else slice(lo, hi)] = part.flip(1) if back else part
