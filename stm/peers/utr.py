"""UTR: unified token reduction for state-space models (arXiv 2410.14725), from its text.

The patches are ranked by the mean over channels of max(0, y), y the output of the scan. Each of the lower half finds
the most alike of the upper half; of these pairs the most alike leave. On the residual they are averaged into their
partners; on the hidden branch, half of them are and half are pruned. Order is kept. Our readings: likeness is the
cosine of the mixer's output; the pruned half are the most alike pairs, which lose least; several tokens that choose one
partner make one mean with it.
"""

import torch
from torch import Tensor

from stm.config import ModelConfig
from stm.merging.merge import merge, take
from stm.merging.plan import Cost, State, Taps
from stm.peers.peer import Peer
from stm.peers.tokens import (
    absorbing,
    clipped,
    cls_of,
    cosine,
    cosine_operations,
    patches,
    places,
    shares,
    sizes,
    staying,
    sums,
)


def pairs(score: Tensor, metric: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """The r tokens of the lower half that are most alike to one of the upper half, by falling likeness, and their
    partners.

    Args:
        score: (B, P).
        metric: (B, P, D), compared by cosine.

    Returns:
        Positions, (B, r) each.
    """
    ranked = score.argsort(dim=1, stable=True)
    lower, upper = ranked.tensor_split([score.shape[1] // 2], 1)
    likeness, partner = cosine(take(metric, lower), take(metric, upper)).max(-1)  # (B, P // 2)
    best = likeness.argsort(dim=1, descending=True, stable=True)[:, :r]
    return lower.gather(1, best), upper.gather(1, partner.gather(1, best))


class UTR(Peer):
    """UTR."""

    def taps(self) -> tuple[str, ...]:
        return ("y",)

    def reduce(self, block: int, state: State, taps: Taps, count: int) -> State:
        assert taps.y is not None and state.h is not None  # it wants it; a block has run
        cls, tokens = cls_of(state), state.x.shape[1]
        at = patches(cls, tokens)
        src, into = (at.gather(1, found) for found in pairs(clipped(taps.y).gather(1, at), take(state.h, at), count))
        m = absorbing(staying(src, tokens), src, into, tokens)
        ones = torch.ones_like(state.x[..., 0])
        left = ones.scatter(1, src[:, : count // 2], 0.0)  # what the hidden branch averages
        return State(
            merge(state.x, m, shares(ones, m)),
            merge(state.h, m, shares(left, m)),
            cls=places(m.keep, tokens).gather(1, cls[:, None])[:, 0],
            size=sums(sizes(state), m),
            last_merge=m,
        )

    def flops(self, block: int, model: ModelConfig) -> Cost:
        tokens, r = self.before(block)
        if not r:
            return Cost()
        half = (tokens - 1) // 2
        work = 2 * model.d_inner * tokens + cosine_operations(half, tokens - 1 - half, model.d_model)
        work += 2 * model.d_model * tokens  # both branches are merged
        return Cost(work, work)
