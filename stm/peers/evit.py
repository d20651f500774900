"""Token Recognition: EViT (Liang et al. 2022, arXiv 2202.07800) on a ViM, which has no attention to rank tokens by.

At three stages EViT keeps the patches to which the class token attends most, highest first. It may add one token for
all that it drops: their sum, weighted by attention. Two scores stand in for the attention, as others used them: the
clipped output of the scan, and the likeness to the class token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from stm.config import ModelConfig
from stm.errors import check_choice
from stm.merging.outline import Cost
from stm.merging.plan import State, Taps
from stm.merging.schedule import Fixed
from stm.peers.peer import Peer, Removals
from stm.peers.tokens import absorbing, clipped, cls_of, merged, middle, patches, pruned, pruning, with_cls

SCORES = ("clipped", "cls_similarity")
ORDERS = ("original", "score")


def cls_similarity(x: Tensor, cls: Tensor) -> Tensor:
    """Return the cosine of each token of x (B, L, D) with the class token at cls (B,): (B, L)."""
    token = x[torch.arange(x.shape[0], device=x.device), cls]  # (B, D)
    return F.cosine_similarity(x, token[:, None], dim=-1)


class EViT(Peer):
    """Token Recognition.

    Args:
        score: "clipped", the sum over channels of max(0, y), or "cls_similarity".
        order: of the patches that stay: "original", or EViT's own "score", highest first with the class token in the
            middle.
        fuse: whether the dropped patches become one token at the end: their sum, each weighted by its share of the
            score of all patches. Negative scores count as 0.
    """

    def __init__(
        self,
        model: ModelConfig,
        removals: Removals,
        score: str = "clipped",
        order: str = "original",
        fuse: bool = False,
    ) -> None:
        super().__init__(model, removals)
        for name, value, allowed in (("score", score, SCORES), ("order", order, ORDERS)):
            check_choice(name, value, allowed)
        self.score, self.order, self.fuse = score, order, fuse

    def taps(self) -> tuple[str, ...]:
        return ("y",) if self.score == "clipped" else ()

    def reduce(self, block: int, state: State, taps: Taps, count: int) -> State:
        cls, tokens = cls_of(state), state.x.shape[1]
        score = clipped(taps.y) if taps.y is not None else cls_similarity(state.stream, cls)  # (B, L)
        at = patches(cls, tokens)  # (B, P)
        ranked = at.gather(1, score.gather(1, at).argsort(dim=1, descending=True, stable=True))  # (B, P)
        # The fused token takes a place of its own, so one more patch drops out for the same length.
        stay = tokens - 1 - count - self.fuse
        best, dropped = ranked[:, :stay], ranked[:, stay:]
        new_cls = self.place(block, 0, tokens)
        sequence = (
            torch.cat([best, cls[:, None]], 1).sort(1).values if new_cls is None else with_cls(best, cls, new_cls)
        )
        holder = dropped[:, : self.fuse]  # (B, 1), or (B, 0): the best dropped patch's place holds the fused token
        keep = torch.cat([sequence, holder], 1)  # (B, L')
        if not self.fuse:
            return pruned(state, pruning(keep), new_cls)
        positive = score.clamp_min(0)
        # An image in which no patch scores above 0 would divide by 0; its fused token becomes 0.
        share = positive / positive.gather(1, at).sum(1, keepdim=True).clamp_min(torch.finfo(score.dtype).tiny)
        weights = torch.ones_like(score).scatter(1, dropped, share.gather(1, dropped))  # (B, L)
        m = absorbing(keep, dropped[:, 1:], holder.expand_as(dropped[:, 1:]), tokens)
        return merged(state, m, weights, new_cls)

    def place(self, block: int, cls: Fixed, tokens: int) -> int | None:
        return None if self.order == "original" else middle(self.model.class_token, tokens - 1 - self.removals[block])

    @classmethod
    def most(cls, tokens: int) -> int:
        return tokens - 3  # the class token, one patch and the fused token stay

    def cost(self, tokens: int, count: int, model: ModelConfig) -> Cost:
        # The clipped score sums both directions; the likeness takes a product and two norms.
        score = 2 * model.d_inner * tokens if self.score == "clipped" else 3 * model.d_model * tokens
        work = score + (model.d_model * tokens if self.fuse else 0)
        return Cost(work, work)
