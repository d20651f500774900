"""MTR (arXiv 2507.14042): Delta tells how much a token matters; from a summary of the paper.

A token's score is the mean over channels of Delta, summed over directions. Sorting the patches by it makes three
groups: Keep (highest), Target and Source (lowest). Each Source is averaged into its most alike Target. Order is kept.
What we could read does not give the sizes of the groups, the blocks or the compared feature. They are parameters here,
tuned in the method's favour (benchmarks/tune_mtr.py).
"""

import torch
from torch import Tensor

from stm.config import ModelConfig
from stm.errors import UsageError, check_choice
from stm.merging.merge import take
from stm.merging.outline import Cost
from stm.merging.plan import State, Taps
from stm.peers.peer import Peer, Removals
from stm.peers.tokens import absorbing, cls_of, cosine, cosine_operations, merged, patches, shares, staying

FEATURES = ("stream", "h")


def informativeness(delta: Tensor) -> Tensor:
    """Return the mean over channels of Delta (K, B, L, E), summed over directions: (B, L)."""
    return delta.mean(-1).sum(0)


def matched(score: Tensor, feature: Tensor, sources: int, targets: int) -> tuple[Tensor, Tensor]:
    """Return the `sources` tokens with the lowest score, and for each the most alike of the next `targets` tokens.

    Args:
        score: (B, P).
        feature: (B, P, D), compared by cosine.

    Returns:
        Positions, (B, sources) each.
    """
    ranked = score.argsort(dim=1, stable=True)  # rising: Source, then Target, then Keep
    source, target = ranked[:, :sources], ranked[:, sources : sources + targets]
    partner = cosine(take(feature, source), take(feature, target)).argmax(-1)  # (B, sources)
    return source, target.gather(1, partner)


class MTR(Peer):
    """MTR.

    Args:
        target_share: share of the patches that are not sources which may take one in; the others are Keep.
        feature: what is compared: "stream", residual plus mixer output, or "h", the mixer's output.
    """

    def __init__(
        self, model: ModelConfig, removals: Removals, target_share: float = 0.5, feature: str = "stream"
    ) -> None:
        super().__init__(model, removals)
        if not 0 < target_share <= 1:
            raise UsageError(f"target_share is {target_share}, expected a number above 0 and at most 1")
        check_choice("feature", feature, FEATURES)
        self.target_share, self.feature = target_share, feature

    def taps(self) -> tuple[str, ...]:
        return ("delta",)

    def reduce(self, block: int, state: State, taps: Taps, count: int) -> State:
        assert taps.delta is not None and state.h is not None  # `taps` asks for it; a block has run
        tokens = state.x.shape[1]
        at = patches(cls_of(state), tokens)
        feature = take(state.stream if self.feature == "stream" else state.h, at)
        pairs = matched(informativeness(taps.delta).gather(1, at), feature, count, self._targets(tokens, count))
        src, into = (at.gather(1, numbers) for numbers in pairs)  # (B, S) each, from numbers of patches to positions
        m = absorbing(staying(src, tokens), src, into, tokens)
        return merged(state, m, shares(torch.ones_like(state.x[..., 0]), m))

    @classmethod
    def most(cls, tokens: int) -> int:
        return tokens - 2  # the class token and one target stay

    def _targets(self, tokens: int, sources: int) -> int:
        return max(1, round(self.target_share * (tokens - 1 - sources)))

    def cost(self, tokens: int, count: int, model: ModelConfig) -> Cost:
        # The mean of Delta over both directions, the comparison, and the mean of the merged tokens.
        compared = cosine_operations(count, self._targets(tokens, count), model.d_model)
        work = 2 * model.d_inner * tokens + compared + model.d_model * tokens
        return Cost(work, work)
