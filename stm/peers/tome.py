"""Token merging as on transformers: ToMe (facebookresearch/ToMe, arXiv 2210.09461) and Famba-V (arXiv 2409.09808).

ToMe deals the tokens into two halves by turns and joins the r most alike pairs. It does not keep the order: the rest of
one half comes first, then the other half. ToMe compares attention keys, which a ViM does not have. Here the mixer's
output is compared, as Famba-V does. Our reading for a class token that is not at the head: it stays out of the halves
and returns to the middle, which is its place in the model.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from stm.config import ModelConfig
from stm.merging.merge import Merge, take
from stm.merging.outline import Cost
from stm.merging.plan import State, Taps
from stm.merging.schedule import Fixed
from stm.peers.peer import Peer, Removals
from stm.peers.tokens import (
    absorbing,
    bipartite,
    bipartite_operations,
    cls_of,
    merged,
    middle,
    patches,
    shares,
    sizes,
    staying,
    with_cls,
)


def halves(metric: Tensor, cls: Tensor, r: int, new_cls: int) -> Merge:
    """Return the merge of ToMe: the kept tokens of the even half, then the odd half, each in order.

    Args:
        metric: (B, L, D).
        cls: (B,), the class token's position.
        r: tokens that leave.
        new_cls: the class token's place in the new order.
    """
    tokens = metric.shape[1]
    at = patches(cls, tokens)
    even, odd = bipartite(take(metric, at), r)  # (B, r) each, numbers of patches
    rest = staying(even, tokens - 1)  # (B, P - r), both halves still dealt by turns
    halved = rest.gather(1, (rest % 2).argsort(dim=1, stable=True))  # evens first; a stable sort keeps each in order
    return absorbing(with_cls(at.gather(1, halved), cls, new_cls), at.gather(1, even), at.gather(1, odd), tokens)


class ToMe(Peer):
    """ToMe: a size-weighted mean of each pair.

    Args:
        sized: whether the tokens' sizes weigh the mean.
    """

    def __init__(self, model: ModelConfig, removals: Removals, sized: bool = True) -> None:
        super().__init__(model, removals)
        self.sized = sized

    def reduce(self, block: int, state: State, taps: Taps, count: int) -> State:
        assert state.h is not None  # a block has run
        new_cls = middle(self.model.class_token, state.x.shape[1] - 1 - count)
        m = halves(state.h, cls_of(state), count, new_cls)
        size = sizes(state)
        return merged(state, m, shares(size if self.sized else torch.ones_like(size), m), new_cls)

    def place(self, block: int, cls: Fixed, tokens: int) -> int | None:
        return middle(self.model.class_token, tokens - 1 - self.removals[block])

    def cost(self, tokens: int, count: int, model: ModelConfig) -> Cost:
        work = bipartite_operations(tokens - 1, model.d_model) + model.d_model * tokens
        return Cost(work, work)


class DecreasingToMe(ToMe):
    """ToMe with its decreasing schedule: 2r tokens after the first block, falling evenly to none after the last."""

    @classmethod
    def budgets(cls, model: ModelConfig, places: Sequence[int]) -> Iterator[Removals]:
        n = len(places)
        weights = [2 * (n - 1 - i) / max(1, n * (n - 1)) if n > 1 else 1.0 for i in range(n)]
        up_to = [sum(weights[: i + 1]) for i in range(n)]
        for total in range(1, model.tokens):
            # Rounding the running sums, not the counts, makes the counts add up to `total`.
            ends = [0, *(round(total * share) for share in up_to)]
            yield cls.fitted(model, {block: ends[i + 1] - ends[i] for i, block in enumerate(places)})


class FambaV(ToMe):
    """Famba-V: ToMe's matching with a plain mean, on chosen blocks: all, every second, upper or lower."""

    def __init__(self, model: ModelConfig, removals: Removals) -> None:
        super().__init__(model, removals, sized=False)
