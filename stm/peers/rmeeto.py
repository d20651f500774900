"""R-MeeTo without retraining (NUS-HPC-AI-Lab/R-MeeTo@535a826, image_task; arXiv 2412.12496).

At the entry of a block every even patch finds the odd patch that is most alike. The r most alike pairs become one token
each, their size-weighted mean. The fair method leaves out two quirks of the official code: it puts the class token back
at a proportional place instead of between its old neighbours, and near the last blocks it merges down to a fixed
length. tests/golden/upstream.py has both, and equals the official code's outputs.
"""

from torch import Tensor

from stm.config import ModelConfig
from stm.errors import check_choice
from stm.merging.merge import take
from stm.merging.outline import Cost
from stm.merging.plan import State, Taps
from stm.peers.peer import Peer, Removals
from stm.peers.tokens import absorbing, bipartite, bipartite_operations, cls_of, merged, patches, shares, sizes, staying

METRICS = ("X", "B", "C", "delta")


class RMeeTo(Peer):
    """R-MeeTo.

    Args:
        metric: what is compared: X, the mixer's output; or B, C or delta of the block, the mean of the directions.
    """

    def __init__(self, model: ModelConfig, removals: Removals, metric: str = "X") -> None:
        super().__init__(model, removals)
        check_choice("metric", metric, METRICS)
        self.metric = metric

    def taps(self) -> tuple[str, ...]:
        return () if self.metric == "X" else (self.metric,)

    def pairs(self, state: State, taps: Taps, count: int) -> tuple[Tensor, Tensor]:
        """Return the positions that leave and the positions that absorb them, (B, r) each."""
        at = patches(cls_of(state), state.x.shape[1])
        metric = state.h if self.metric == "X" else getattr(taps, self.metric).mean(0)  # (B, L, width)
        assert metric is not None  # a block has run
        even, odd = bipartite(take(metric, at), count)  # (B, r) each, numbers of patches
        return at.gather(1, even), at.gather(1, odd)

    def reduce(self, block: int, state: State, taps: Taps, count: int) -> State:
        src, into = self.pairs(state, taps, count)
        tokens = state.x.shape[1]
        m = absorbing(staying(src, tokens), src, into, tokens)
        return merged(state, m, shares(sizes(state), m))

    def cost(self, tokens: int, count: int, model: ModelConfig) -> Cost:
        D = model.d_model
        width = {"X": D, "B": model.d_state, "C": model.d_state, "delta": model.d_inner}[self.metric]
        # The paper's column takes R-MeeTo's own counter, so that its published figures come out to the unit.
        theirs = 6 * tokens * D + D * tokens * tokens // 2 + count * D
        return Cost(theirs, bipartite_operations(tokens - 1, width) + D * tokens)
