"""The state of a selective scan and its hidden attention, written out: pure functions of what a block's scan ran on.

With A_i = exp(elapsed_i A) and B_j = Delta_j B_j (elementwise, (E, N)), the recurrence unrolled is the paper's general
form (arXiv 2509.22691, equations 4 and 5):

    h_t = sum_j [prod_{j < i <= t} A_i] B_j u_j          a_tj = mean over E of |C_t [prod_{j < i <= t} A_i] B_j|

In both sums j runs over the tokens that the direction's walk has passed when it reaches t, t included.

Everything here is a plain loop over tokens, apart from the backends: kernels never form the states of all tokens, and a
measurement should not depend on the code that it measures. K directions, B images, L tokens, E channels, N states.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stm.merging.plan import State, Taps
from stm.model.layers import REVERSE

TAPS = ("u", "delta", "A", "B", "C")


class Scan(NamedTuple):
    """The inputs of a block's scan, in token order, direction axis first.

    Args:
        u: (K, B, L, E), the sequence that enters the scan.
        delta: (K, B, L, E), step scale included.
        elapsed: (K, B, L, E), Delta plus that of tokens removed just before: what the state decays by.
        A: (K, E, N), negative.
        B, C: (K, B, L, N).
    """

    u: Tensor
    delta: Tensor
    elapsed: Tensor
    A: Tensor
    B: Tensor
    C: Tensor

    @classmethod
    def of(cls, entering: State, taps: Taps) -> "Scan":
        """Return the scan of a block, from the state that entered it and its taps `TAPS`."""
        u, delta, A, B, C = (getattr(taps, name) for name in TAPS)
        gap = entering.gap
        # Delta is float32 in every dtype of a model; raising the others to it keeps long products of decays exact.
        return cls(
            u.to(delta),
            delta,
            delta if gap is None else delta + gap,
            A.to(delta),
            B.to(delta),
            C.to(delta),
        )


def states(scan: Scan, direction: int) -> Iterator[tuple[int, Tensor]]:
    """Walk the recurrence, and yield each token's position and the state after it, (B, E, N), in walking order."""
    tokens, A = scan.u.shape[2], scan.A[direction]
    inputs = scan.delta[direction] * scan.u[direction]  # (B, L, E)
    h = torch.zeros_like(A)
    for t in reversed(range(tokens)) if REVERSE[direction] else range(tokens):
        new = inputs[:, t, :, None] * scan.B[direction, :, t, None]
        h = torch.addcmul(new, torch.exp(scan.elapsed[direction, :, t, :, None] * A), h)
        yield t, h


def state_at(scan: Scan, direction: int, at: Sequence[int]) -> Tensor:
    """Return the state h_t at one token of each image, (S, E, N).

    Args:
        direction: 0 forward, 1 backward.
        at: t of each of the S images. If the batch has one image, it is read at every t.
    """
    # One walk serves all rows, and it stops after the last token that a row asks for.
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
    """Return the decay factor from each earlier token j to token t, prod_{j < i <= t} A_i: (B, L, E, N), indexed by j.

    Zero for tokens that the walk meets after t.
    """
    elapsed = scan.elapsed[direction]  # (B, L, E)
    passed = torch.zeros(elapsed.shape[1], dtype=torch.bool, device=elapsed.device)
    passed[slice(t, None) if REVERSE[direction] else slice(t + 1)] = True
    # A product of exponentials is the exponential of a sum: one `exp` per pair instead of a long product.
    if REVERSE[direction]:
        between = elapsed[:, t:].cumsum(1) - elapsed[:, t:]  # the sum over tokens t .. j - 1
    else:
        between = elapsed[:, : t + 1].flip(1).cumsum(1).flip(1) - elapsed[:, : t + 1]  # the sum over tokens j + 1 .. t
    out = elapsed.new_zeros(*elapsed.shape, scan.A.shape[-1])
    out[:, passed] = torch.exp(between[..., None] * scan.A[direction])
    return out


def state_norms(scan: Scan) -> Tensor:
    """Return the Frobenius norm of every token's state, (K, B, L)."""
    # Norms are taken as the walk goes, so that only one state per image is in memory; the backward walk is then sorted.
    rows = [dict(_norms(states(scan, k))) for k in range(scan.u.shape[0])]
    return torch.stack([torch.stack([row[t] for t in sorted(row)], -1) for row in rows])


def _norms(walk: Iterator[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor]]:
    return ((t, h.flatten(1).norm(dim=1)) for t, h in walk)


def attention(scan: Scan) -> Tensor:
    """Return the hidden attention a_tj of one image, (K, L, L), t down and j across; zero if the walk meets j after t.

    Each token's B_j is followed through the walk as a state of its own: L states instead of the one of their sum.
    """
    (K, _, L, E), N = scan.u.shape, scan.A.shape[-1]
    out = scan.u.new_zeros(K, L, L)
    for k in range(K):
        left = scan.u.new_zeros(L, E, N)  # of each token j, what is left of it at the current token t
        for t in reversed(range(L)) if REVERSE[k] else range(L):
            passed = slice(t, None) if REVERSE[k] else slice(t + 1)
            # Decay the earlier tokens, then let token t enter: its own input does not decay over itself.
            left[passed] *= torch.exp(scan.elapsed[k, 0, t, :, None] * scan.A[k])
            left[t] = scan.delta[k, 0, t, :, None] * scan.B[k, 0, t]
            out[k, t, passed] = (left[passed] @ scan.C[k, 0, t]).abs().mean(-1)
    return out


def change(before: Tensor, after: Tensor) -> Tensor:
    """Return |h - h'| / |h| of each image, (S,), given h (S or 1, E, N) and h' (S, E, N). Zero if both are zero."""
    difference = (before - after).flatten(1).norm(dim=1)
    return difference / before.flatten(1).norm(dim=1).clamp_min(torch.finfo(difference.dtype).tiny)
