"""Hidden States Protection: the paper's merge weights, as pure functions of Delta, B and A.

Let i be absorbed by k, and let j run over the tokens that the direction's scan passes from i (left out) to k. With A_j
= exp(Delta_j A) and B_j = Delta_j * B_j, both (E, N), what i would have left in the state at k is P_i = [prod_j A_j]
B_i. The paper's bracket (its merging function 11) is reduced to one scalar a token, the least-squares solution over (E,
N): w_i = <P_i, B_k> / <B_k, B_k>. Left of the class token the forward direction decides, right of it the backward one.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from stm.merging.schedule import Step


class Absorbed(NamedTuple):
    """The S absorbed tokens of a step, as positions before the merge.

    Args:
        src: (S,).
        into: (S,), the token that absorbs each.
        direction: (S,), whose parameters decide: 0 forward, 1 backward.
        between: (S, L): 1 where a token's decay lies on the way from the source to its destination, which counts.
    """

    src: Tensor
    into: Tensor
    direction: Tensor
    between: Tensor


def absorbed(step: Step, tokens: int, cls: int) -> Absorbed:
    """The constants of a step that acts on `tokens` tokens."""
    between = torch.zeros(len(step.absorb), tokens)
    for row, (i, k) in enumerate(step.absorb):
        between[row, min(i + 1, k) : max(i, k + 1)] = 1
    direction = [int(source > cls) for source in step.sources]
    return Absorbed(torch.tensor(step.sources), torch.tensor(step.destinations), torch.tensor(direction), between)


def least_squares(delta: Tensor, B: Tensor, A: Tensor, a: Absorbed) -> Tensor:
    """The weight of each absorbed token.

    Args:
        delta: (K, B, L, E), as the block ran it, step scale included.
        B: (K, B, L, N). Ones give the data-free form, a ratio of means over (E, N).
        A: (K, E, N), negative.

    Returns:
        (B, S). Not clamped: a weight may be negative.
    """
    B = B.to(delta.dtype)  # half precision where the GEMMs are
    delta_src, delta_into = delta[a.direction, :, a.src], delta[a.direction, :, a.into]  # (S, B, E)
    b_src, b_into = B[a.direction, :, a.src], B[a.direction, :, a.into]  # (S, B, N)
    elapsed = (a.between.to(delta.dtype) @ delta)[
        a.direction, :, torch.arange(a.src.shape[0], device=delta.device)
    ]  # (S, B, E)
    decay = torch.exp(elapsed[..., None] * A[a.direction, None])  # (S, B, E, N)
    overlap = torch.einsum("sben,sbe,sbn->bs", decay, delta_src * delta_into, b_src * b_into)
    norm = (delta_into.square().sum(-1) * b_into.square().sum(-1)).mT  # (B, S)
    return overlap / norm.clamp_min(torch.finfo(norm.dtype).tiny)


def operations(step: Step, d_inner: int, d_state: int) -> int:
    """The multiply-accumulates of `least_squares` for one image: for each absorbed token the Delta that elapses on its
    way to its destination (E a token), the decay and its overlap with both inputs (EN each), and the products of E and
    of N."""
    E, N = d_inner, d_state
    return sum(E * abs(source - destination) + 2 * E * N + 3 * E + 2 * N for source, destination in step.absorb)


def token_weights(w: Tensor, a: Absorbed) -> Tensor:
    """One weight a token, (B, L): w (B, S) for those that are absorbed, 1 for the others."""
    return w.new_ones(w.shape[0], a.between.shape[1]).index_copy(1, a.src, w)


def normalize(weights: Tensor, a: Absorbed) -> Tensor:
    """Divide the weights (B, L) of every merged group by their sum: (x_k + sum_i w_i x_i) / (1 + sum_i w_i)."""
    total = weights.index_add(1, a.into, weights.index_select(1, a.src)).index_select(
        1, a.into
    )  # (B, S): 1 + sum_i w_i
    return weights / torch.ones_like(weights).index_copy(1, a.into, total).index_copy(1, a.src, total)
