"""Merging tokens: one linear primitive on tensors. It knows nothing of models, schedules or weight rules.

A merge weighs every token, then adds each absorbed token to the token that absorbs it. A weight rule is nothing but a
choice of the weights: a source weighs 0 if it is pruned, 1 in a sum, and every member of a group of n weighs 1 / n in a
mean.
"""

from typing import NamedTuple

from torch import Tensor


class Merge(NamedTuple):
    """Indices that say where the tokens of one sequence go. 1-D indices are shared by the batch, 2-D ones per image.

    Args:
        keep: (L',) or (B, L'): positions that stay, in their new order.
        src: (S,) or (B, S): positions that are absorbed.
        dst: (S,) or (B, S): the position in the new sequence, L' long, that absorbs each source.
    """

    keep: Tensor
    src: Tensor
    dst: Tensor


def take(x: Tensor, index: Tensor) -> Tensor:
    """Return the tokens of x (..., L, D) at `index`, (L',) or (B, L'), as (..., L', D)."""
    if index.dim() == 1:  # copies whole rows, while a gather reads an index per channel
        return x.index_select(-2, index)
    return x.gather(-2, _per_channel(index, x))


def add_at(x: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """Return x (..., L, D) with `values` (..., S, D) added to the tokens at `index`, (S,) or (B, S).

    An index may repeat, so that one token absorbs several; their order of addition is then the device's own.
    """
    if index.dim() == 1:
        return x.index_add(-2, index, values)
    return x.scatter_add(-2, _per_channel(index, x), values)


def merge(x: Tensor, m: Merge, w: Tensor) -> Tensor:
    """Weigh every token and add the absorbed ones to those that absorb them.

    Args:
        x: (B, L, D).
        m: the indices; every position below L is in `keep` or `src`, or its token is dropped.
        w: (L,) or (B, L): one weight per token.

    Returns:
        (B, L', D).
    """
    x = x * w[..., None]  # (B, L, D); destinations have weights too, as a mean needs
    return add_at(take(x, m.keep), m.dst, take(x, m.src))


def _per_channel(index: Tensor, x: Tensor) -> Tensor:
    """Return an index (B, S) repeated along the channels of x (..., L, D), as gather and scatter take it."""
    return index[..., None].expand(*x.shape[:-2], index.shape[-1], x.shape[-1])
