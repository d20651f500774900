"""Hidden State Alignment (ToP-ViM, arXiv 2409.18962): prune tokens, and let the state decay over their gaps.

A token's score is the sum over channels of max(0, y), y the output of the scan. The tokens with the highest scores
stay, in order; the class token always stays. A pruned token injects nothing, but the state still decays over it as if
it were there: that is the alignment. Without it the states that follow a gap would be too large. The code that the
authors released (ZLKong/ToP-ViM@b5bc231) has no alignment and differs in more; tests/golden/upstream.py mirrors it.
"""

import torch
from torch import Tensor

from stm.config import ModelConfig
from stm.merging.merge import take
from stm.merging.outline import Cost
from stm.merging.plan import State, Taps
from stm.peers.peer import Peer, Removals
from stm.peers.tokens import clipped, cls_of, patches, pruned, pruning, staying


def lowest(score: Tensor, cls: Tensor, count: int) -> Tensor:
    """Return the patches with the lowest score (B, L), the earlier first on a tie: (B, count)."""
    at = patches(cls, score.shape[1])
    return at.gather(1, score.gather(1, at).argsort(dim=1, stable=True)[:, :count])


def gaps(elapsed: Tensor, keep: Tensor) -> Tensor:
    """Return the Delta that elapses over the removed tokens before each staying one, per direction: (K, B, L', E).

    The state decays by exp(Delta A) per token, so the decays of consecutive removed tokens multiply and their Deltas
    add. One sum per gap is therefore exact.

    Args:
        elapsed: (K, B, L, E), forward first: each token's Delta, plus what had elapsed before the token already.
        keep: (B, L'), the positions that stay, in order.
    """
    K, B, L, E = elapsed.shape
    stays = keep.new_zeros(B, L).scatter(1, keep, 1)
    gap = stays.cumsum(1)  # (B, L): the number of the gap that a removed token lies in, 0 before the first staying one
    removed = elapsed * (1 - stays)[..., None]
    between = elapsed.new_zeros(K, B, keep.shape[1] + 1, E).scatter_add(
        2, gap[None, ..., None].expand_as(removed), removed
    )
    # The forward walk meets gap i before staying token i, the backward walk gap i + 1.
    return torch.stack([between[0, :, :-1], between[1, :, 1:]])


class HSA(Peer):
    """Hidden State Alignment.

    Args:
        aligned: whether the state decays over pruned tokens.
    """

    def __init__(self, model: ModelConfig, removals: Removals, aligned: bool = True) -> None:
        super().__init__(model, removals)
        self.aligned = aligned

    def taps(self) -> tuple[str, ...]:
        return ("y", "delta") if self.aligned else ("y",)

    def reduce(self, block: int, state: State, taps: Taps, count: int) -> State:
        assert taps.y is not None  # `taps` asks for it
        keep = staying(lowest(clipped(taps.y), cls_of(state), count), state.x.shape[1])
        small = pruned(state, pruning(keep))
        if not self.aligned:
            return small
        assert taps.delta is not None
        if state.gap is None:
            return small._replace(gap=gaps(taps.delta, keep))
        # A token that leaves now takes the gap before it along. A token that stays keeps its own gap from earlier
        # stages.
        return small._replace(gap=gaps(taps.delta + state.gap, keep) + take(state.gap, keep))

    @classmethod
    def most(cls, tokens: int) -> int:
        return tokens - 2  # the class token and one patch stay

    def cost(self, tokens: int, count: int, model: ModelConfig) -> Cost:
        score = 2 * model.d_inner * tokens  # a sum over the channels of both directions
        return Cost(score, score)
