"""R-MeeTo without retraining (NUS-HPC-AI-Lab/R-MeeTo@535a826, image_task; arXiv 2412.12496).

At the entry of a block: of the patches, every even one finds the odd one that is most alike, and the r most alike pairs
become one token each, their size-weighted mean. Two quirks of the official code are left out of the fair method and
kept in the `upstream` one, which equals its outputs: the class token goes back at a proportional place instead of
between its old neighbours, and near the last blocks all is merged down to a fixed length.
"""

from stm.config import ModelConfig
from stm.errors import UsageError
from stm.merging.merge import take
from stm.merging.plan import Cost, State, Taps
from stm.peers.peer import Peer, Removals
from stm.peers.tokens import (
    absorbing,
    bipartite,
    bipartite_operations,
    cls_of,
    merged,
    patches,
    shares,
    sizes,
    staying,
    with_cls,
)

METRICS = ("X", "B", "C", "delta")
QUIRKS = ("off", "upstream")


def upstream_removals(
    model: ModelConfig,
    num_prune: int = 5,
    merge_interval: int = 2,
    odd: bool = False,
    compare: int = 11,
    tail_rule: bool = True,
) -> dict[int, int]:
    """What the official code removes, by the block after which it does; its names of the settings.

    Args:
        tail_rule: near the last block it merges to 197 - 11 compare tokens, whatever the model; its own FLOPs counter
            leaves that out.
    """
    tokens, removals = model.tokens, {}
    for block in range(1, model.depth):
        if block % merge_interval != (1 if odd else 0):
            continue
        r = num_prune
        if tail_rule and model.depth - block <= merge_interval:
            r = tokens - (197 - 11 * compare)
        removals[block - 1] = r = max(0, min(r, (tokens - 1) // 2))
        tokens -= r
    return removals


class RMeeTo(Peer):
    """R-MeeTo.

    Args:
        metric: what is compared: X, the mixer's output; B, C or delta of the block, the mean of the directions.
        quirks: "off", the fair method, or "upstream": the class token is put back where the official code puts it.
    """

    def __init__(self, model: ModelConfig, removals: Removals, metric: str = "X", quirks: str = "off") -> None:
        super().__init__(model, removals)
        for name, value, allowed in (("metric", metric, METRICS), ("quirks", quirks, QUIRKS)):
            if value not in allowed:
                raise UsageError(f"{name} is {value!r}, expected one of {', '.join(allowed)}")
        if quirks == "upstream" and metric != "X":
            raise UsageError(
                f"the upstream quirks were given with the metric {metric}, but only X is known to equal the official"
                " code"
            )
        self.metric, self.quirks = metric, quirks

    def taps(self) -> tuple[str, ...]:
        return () if self.metric == "X" else (self.metric,)

    def reduce(self, block: int, state: State, taps: Taps, count: int) -> State:
        tokens, cls = state.x.shape[1], cls_of(state)
        at = patches(cls, tokens)
        metric = state.h if self.metric == "X" else getattr(taps, self.metric).mean(0)  # (B, L, D)
        assert metric is not None  # a block has run
        even, odd = bipartite(take(metric, at), count)  # (B, r) each, among the patches
        src, into = at.gather(1, even), at.gather(1, odd)
        if self.quirks == "upstream":
            assert isinstance(state.cls, int)  # it starts as one and this keeps it
            place = self.place(block, state.cls, tokens)
            assert place is not None
            rest = at.gather(1, staying(even, tokens - 1))
            m = absorbing(with_cls(rest, cls, place), src, into, tokens)
        else:
            place, m = None, absorbing(staying(src, tokens), src, into, tokens)
        return merged(state, m, shares(sizes(state), m), place)

    def place(self, block: int, cls: int, tokens: int) -> int | None:
        return cls * (tokens - self.removals[block]) // tokens if self.quirks == "upstream" else None

    def flops(self, block: int, model: ModelConfig) -> Cost:
        tokens, r = self.before(block)
        if not r:
            return Cost()
        D = model.d_model
        width = {"X": D, "B": model.d_state, "C": model.d_state, "delta": model.d_inner}[self.metric]
        theirs = 6 * tokens * D + D * tokens * tokens // 2 + r * D  # R-MeeTo's own counter
        return Cost(theirs, bipartite_operations(tokens - 1, width) + D * tokens)
