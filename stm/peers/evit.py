"""Token Recognition: EViT (Liang et al. 2022, arXiv 2202.07800) on a ViM, which has no attention to rank tokens by.

EViT keeps the patches to which the class token attends most, in that order, at three stages, and may put one token in
for all that it drops: their sum, weighted by attention. Scores that others used in its place: the clipped output of the
scan, or the likeness to the class token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from stm.config import ModelConfig
from stm.errors import UsageError
from stm.merging.plan import Cost, State, Taps
from stm.peers.peer import Peer, Removals
from stm.peers.tokens import absorbing, clipped, cls_of, merged, middle, patches, pruned, pruning, with_cls

SCORES = ("clipped", "cls_similarity")
ORDERS = ("original", "score")


def cls_similarity(x: Tensor, cls: Tensor) -> Tensor:
    """(B, L): the cosine of each token of x (B, L, D) with the class token at cls (B,)."""
    token = x[torch.arange(x.shape[0], device=x.device), cls]  # (B, D)
    return F.cosine_similarity(x, token[:, None], dim=-1)


class EViT(Peer):
    """Token Recognition.

    Args:
        score: "clipped", the sum over channels of max(0, y), or "cls_similarity".
        order: of the patches that stay: "original", or "score", highest first, as EViT has it; then the class token is
            in the middle.
        fuse: whether what is dropped becomes one token, at the end: the sum, weighted by each one's share of the score
            of all patches (the part above 0).
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
            if value not in allowed:
                raise UsageError(f"{name} is {value!r}, expected one of {', '.join(allowed)}")
        self.score, self.order, self.fuse = score, order, fuse

    def taps(self) -> tuple[str, ...]:
        return ("y",) if self.score == "clipped" else ()

    def reduce(self, block: int, state: State, taps: Taps, count: int) -> State:
        cls, tokens = cls_of(state), state.x.shape[1]
        score = clipped(taps.y) if taps.y is not None else cls_similarity(state.stream, cls)  # (B, L)
        at = patches(cls, tokens)
        ranked = at.gather(1, score.gather(1, at).argsort(dim=1, descending=True, stable=True))  # (B, P)
        stay = tokens - 1 - count - self.fuse
        best, dropped = ranked[:, :stay], ranked[:, stay:]
        place = self.place(block, 0, tokens)
        if place is None:
            keep = torch.cat([best, cls[:, None]], 1).sort(1).values
        else:
            keep = with_cls(torch.cat([best, dropped[:, : self.fuse]], 1), cls, place)
        if not self.fuse:
            return pruned(state, pruning(keep), place)
        if place is None:
            keep = torch.cat([keep, dropped[:, :1]], 1)
        positive = score.clamp_min(0)
        share = positive / positive.gather(1, at).sum(1, keepdim=True).clamp_min(torch.finfo(score.dtype).tiny)
        weights = torch.ones_like(score).scatter(1, dropped, share.gather(1, dropped))
        m = absorbing(keep, dropped[:, 1:], dropped[:, :1].expand_as(dropped[:, 1:]), tokens)
        return merged(state, m, weights, place)

    def place(self, block: int, cls: int, tokens: int) -> int | None:
        return None if self.order == "original" else middle(self.model.class_token, tokens - 1 - self.removals[block])

    @classmethod
    def most(cls, tokens: int) -> int:
        return tokens - 3

    def flops(self, block: int, model: ModelConfig) -> Cost:
        tokens, count = self.before(block)
        if not count:
            return Cost()
        score = (
            2 * model.d_inner * tokens if self.score == "clipped" else 3 * model.d_model * tokens
        )  # a sum; a product and two norms
        work = score + (model.d_model * tokens if self.fuse else 0)
        return Cost(work, work)
