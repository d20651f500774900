"""Merging tokens: one linear primitive on tensors. It knows nothing of models, schedules or weight rules.

Every rule is a choice of the weights: pruning gives a source the weight 0, a sum 1, a mean and the others what they
    say.
"""

from typing import NamedTuple

from torch import Tensor


class Merge(NamedTuple):
    """Where the tokens of one sequence go. 1-D indices are shared by the batch, 2-D ones are per image.

    Args:
        keep: (L',) or (B, L'): positions that stay, in their new order.
        src: (S,) or (B, S): positions that are absorbed.
        dst: (S,) or (B, S): the place in the new sequence that absorbs each source.
    """

    keep: Tensor
    src: Tensor
    dst: Tensor


def take(x: Tensor, index: Tensor) -> Tensor:
    """The tokens of x (..., L, D) at `index`, (L',) or (B, L'): (..., L', D)."""
    if index.dim() == 1:
        return x.index_select(-2, index)
    return x.gather(-2, _per_channel(index, x))


def add_at(x: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """x (..., L, D) with `values` (..., S, D) added to the tokens at `index`, (S,) or (B, S), which may repeat."""
    if index.dim() == 1:
        return x.index_add(-2, index, values)
    return x.scatter_add(-2, _per_channel(index, x), values)


def merge(x: Tensor, m: Merge, w: Tensor) -> Tensor:
    """Weigh every token and add the absorbed ones to those that absorb them.

    Args:
        x: (B, L, D).
        w: (L,) or (B, L): one weight a token.

    Returns:
        (B, L', D).
    """
    x = x * w[..., None]
    return add_at(take(x, m.keep), m.dst, take(x, m.src))


def _per_channel(index: Tensor, x: Tensor) -> Tensor:
    return index[..., None].expand(*x.shape[:-2], index.shape[-1], x.shape[-1])
