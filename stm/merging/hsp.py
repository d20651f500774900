"""Hidden States Protection: the paper's merge weights, as pure functions of Delta, B and A.

An absorbed token no longer reaches the scan's state. Its weight in the merge is chosen so that the merged token injects
what both tokens would have injected. Let token i be absorbed by token k, and let j run over the tokens that the scan
passes after i, up to and including k:

    decay factor of token j    A_j = exp(Delta_j A)     (E, N)
    input factor of token j    B'_j = Delta_j B_j       (E, N)
    left of token i at k       P_i = [prod_j A_j] B'_i  (E, N)

The paper's weight is an (E, N) bracket (its merging function 11), but a merge takes one scalar per token. We take the
least-squares solution of w B'_k = P_i over (E, N): w_i = <P_i, B'_k> / <B'_k, B'_k>. Every source lies on the border's
side of its destination, so left of the class token the forward scan passes i before k, and right of it the backward
scan does: that direction decides.

Source: Sequential Token Merging, arXiv 2509.22691.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from stm.merging.schedule import Step


class Absorbed(NamedTuple):
    """The S absorbed tokens of a step, as positions before the merge.

    Args:
        src: (S,), the absorbed tokens.
        into: (S,), the token that absorbs each one.
        direction: (S,), the direction whose parameters decide: 0 forward, 1 backward.
        between: (S, L): 1 for each token j that the scan passes from the source (excluded) to its destination
            (included), else 0.
    """

    src: Tensor
    into: Tensor
    direction: Tensor
    between: Tensor


def absorbed(step: Step, tokens: int) -> Absorbed:
    """Return the constants of a step that acts on `tokens` tokens."""
    between = torch.zeros(len(step.absorb), tokens)  # (S, L)
    for row, (i, k) in enumerate(step.absorb):
        # Forward (i < k): i + 1 to k. Backward (k < i): k to i - 1.
        between[row, min(i + 1, k) : max(i, k + 1)] = 1
    direction = [int(source > destination) for source, destination in step.absorb]
    return Absorbed(torch.tensor(step.sources), torch.tensor(step.destinations), torch.tensor(direction), between)


def least_squares(delta: Tensor, B: Tensor, A: Tensor, a: Absorbed) -> Tensor:
    """Return the weight w_i of each absorbed token; see the module's text.

    The tensors P_i and B'_k, (E, N) per token, are never built whole: the sums factor into E and N.

    Args:
        delta: (K, B, L, E), as the block ran it, step scale included.
        B: (K, B, L, N). Ones give the data-free form, a ratio of means over (E, N).
        A: (K, E, N), negative.
        a: the S absorbed tokens.

    Returns:
        (B, S). Not clamped: a weight is negative if the two tokens inject in opposite directions.
    """
    B = B.to(delta.dtype)  # B has half precision if the matrix products have
    delta_src, delta_into = delta[a.direction, :, a.src], delta[a.direction, :, a.into]  # (S, B, E)
    b_src, b_into = B[a.direction, :, a.src], B[a.direction, :, a.into]  # (S, B, N)
    # The product of the A_j is exp(A times the sum of the Delta_j), and one product gives the sums of all sources.
    each_source = torch.arange(a.src.shape[0], device=delta.device)
    elapsed = (a.between.to(delta.dtype) @ delta)[a.direction, :, each_source]  # (S, B, E)
    decay = torch.exp(elapsed[..., None] * A[a.direction, None])  # (S, B, E, N)
    overlap = torch.einsum("sben,sbe,sbn->bs", decay, delta_src * delta_into, b_src * b_into)
    norm = (delta_into.square().sum(-1) * b_into.square().sum(-1)).mT  # (B, S)
    # A destination that injects nothing has norm 0; its overlap is 0 too, and the weight becomes 0 instead of NaN.
    return overlap / norm.clamp_min(torch.finfo(norm.dtype).tiny)


def token_weights(w: Tensor, a: Absorbed) -> Tensor:
    """Return one weight per token, (B, L): w (B, S) for absorbed tokens, 1 for the others."""
    return w.new_ones(w.shape[0], a.between.shape[1]).index_copy(1, a.src, w)


def normalize(weights: Tensor, a: Absorbed) -> Tensor:
    """Divide the weights (B, L) of every merged group by their sum: (x_k + sum_i w_i x_i) / (1 + sum_i w_i)."""
    # Sum at the destinations, which weigh 1 themselves, then read the sum back for each source.
    sums = weights.index_add(1, a.into, weights.index_select(1, a.src))  # (B, L)
    total = sums.index_select(1, a.into)  # (B, S): 1 + sum_i w_i
    return weights / torch.ones_like(weights).index_copy(1, a.into, total).index_copy(1, a.src, total)
