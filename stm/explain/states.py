"""The state of a selective scan and its hidden attention, written out: pure functions of what a block's scan ran on.

With A_i = exp(elapsed_i A) and B_j = Delta_j B_j (elementwise, (E, N)), the recurrence unrolled is the paper's general
form (arXiv 2509.22691, equations 4 and 5):

    h_t = sum_j [prod_{j < i <= t} A_i] B_j u_j          a_tj = mean over E of |C_t [prod_{j < i <= t} A_i] B_j|

where j runs over the tokens that the direction's walk has passed when it reaches t, t included.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stm.merging.plan import State, Taps
from stm.model.layers import REVERSE

TAPS = ("u", "delta", "A", "B", "C")


class Scan(NamedTuple):
    """What the scan of a block ran on, in token order, direction axis first.

    Args:
        u: (K, B, L, E), its input.
        delta: (K, B, L, E), step scale included.
        elapsed: (K, B, L, E), Delta with that of removed tokens: what the state decays by.
        A: (K, E, N), negative.
        B, C: (K, B, L, N).
        h0: (K, E, N), the state before the first token of each walk, or None.
    """

    u: Tensor
    delta: Tensor
    elapsed: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    h0: Tensor | None = None

    @classmethod
    def of(cls, entering: State, taps: Taps) -> "Scan":
        """From what entered a block and its taps, `TAPS`."""
        u, delta, A, B, C = (getattr(taps, name) for name in TAPS)
        gap = entering.gap
        return cls(
            u.to(delta),
            delta,
            delta if gap is None else delta + gap,
            A.to(delta),
            B.to(delta),
            C.to(delta),
            entering.h0,
        )


def states(scan: Scan, direction: int) -> Iterator[tuple[int, Tensor]]:
    """The recurrence, token by token in walking order: each token's position and the state after it, (B, E, N)."""
    tokens, A = scan.u.shape[2], scan.A[direction]
    inputs = scan.delta[direction] * scan.u[direction]  # (B, L, E)
    h = torch.zeros_like(A) if scan.h0 is None else scan.h0[direction]
    for t in reversed(range(tokens)) if REVERSE[direction] else range(tokens):
        new = inputs[:, t, :, None] * scan.B[direction, :, t, None]
        h = torch.addcmul(new, torch.exp(scan.elapsed[direction, :, t, :, None] * A), h)
        yield t, h


def state_at(scan: Scan, direction: int, at: Sequence[int]) -> Tensor:
    """The state h_t at one token of each image, (S, E, N).

    Args:
        direction: 0 forward, 1 backward.
        at: t of each of the S images; a batch of one image is read at all of them.
    """
    wanted: dict[int, list[int]] = {}
    for row, t in enumerate(at):
        wanted.setdefault(t, []).append(row)
    out = scan.u.new_empty(len(at), *scan.A.shape[1:])
    for t, h in states(scan, direction):
        if rows := wanted.pop(t, None):
            out[rows] = h if h.shape[0] == 1 else h[rows]
        if not wanted:
            break
    return out


def decay_to(scan: Scan, direction: int, t: int) -> Tensor:
    """What is left at token t of each token before it, prod_{j < i <= t} A_i, (B, L, E, N) by j; zero for those that
    come after."""
    elapsed = scan.elapsed[direction]  # (B, L, E)
    passed = torch.zeros(elapsed.shape[1], dtype=torch.bool, device=elapsed.device)
    passed[slice(t, None) if REVERSE[direction] else slice(t + 1)] = True
    if REVERSE[direction]:
        between = elapsed[:, t:].cumsum(1) - elapsed[:, t:]  # of the tokens t .. j - 1
    else:
        between = elapsed[:, : t + 1].flip(1).cumsum(1).flip(1) - elapsed[:, : t + 1]  # of j + 1 .. t
    out = elapsed.new_zeros(*elapsed.shape, scan.A.shape[-1])
    out[:, passed] = torch.exp(between[..., None] * scan.A[direction])
    return out


def state_norms(scan: Scan) -> Tensor:
    """The Frobenius norm of every token's state: (K, B, L)."""
    rows = [dict(_norms(states(scan, k))) for k in range(scan.u.shape[0])]
    return torch.stack([torch.stack([row[t] for t in sorted(row)], -1) for row in rows])


def _norms(walk: Iterator[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor]]:
    return ((t, h.flatten(1).norm(dim=1)) for t, h in walk)


def attention(scan: Scan) -> Tensor:
    """The hidden attention a_tj of one image: (K, L, L), t down and j across; zero where the walk meets j after t.

    Each token's B_j is followed through the walk as a state of its own.
    """
    (K, _, L, E), N = scan.u.shape, scan.A.shape[-1]
    out = scan.u.new_zeros(K, L, L)
    for k in range(K):
        left = scan.u.new_zeros(L, E, N)  # of each token j, at the token t in hand
        for t in reversed(range(L)) if REVERSE[k] else range(L):
            passed = slice(t, None) if REVERSE[k] else slice(t + 1)
            left[t] = 0
            left[passed] *= torch.exp(scan.elapsed[k, 0, t, :, None] * scan.A[k])
            left[t] = scan.delta[k, 0, t, :, None] * scan.B[k, 0, t]
            out[k, t, passed] = (left[passed] @ scan.C[k, 0, t]).abs().mean(-1)
    return out


def change(before: Tensor, after: Tensor) -> Tensor:
    """|h - h'| / |h| of each image, (S,): h (S or 1, E, N), h' (S, E, N). Zero where both are zero."""
    difference = (before - after).flatten(1).norm(dim=1)
    return difference / before.flatten(1).norm(dim=1).clamp_min(torch.finfo(difference.dtype).tiny)
