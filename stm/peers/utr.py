"""UTR: unified token reduction for state-space models (arXiv 2410.14725), from its text.

The patches are ranked by the mean over channels of max(0, y), y the output of the scan; the code takes the sum, which
ranks them alike. Each patch of the lower half finds the most alike patch of the upper half. The most alike of these
pairs leave. On the residual every source is averaged into its partner; on the hidden branch half of the sources are
averaged and half are pruned. Order is kept.

Our readings of what the text leaves open:

- Likeness is the cosine of the mixer's output.
- The pruned half are the most alike pairs, which lose least.
- Several tokens that choose one partner make one mean with it.
"""

import torch
from torch import Tensor

from stm.config import ModelConfig
from stm.merging.merge import merge, take
from stm.merging.outline import Cost
from stm.merging.plan import State, Taps
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
    """Return the r tokens of the lower half that are most alike to one of the upper half, by falling likeness, and
    their partners.

    Args:
        score: (B, P).
        metric: (B, P, D), compared by cosine.

    Returns:
        Positions, (B, r) each.
    """
    ranked = score.argsort(dim=1, stable=True)
    lower, upper = ranked.tensor_split([score.shape[1] // 2], 1)
    likeness, partner = cosine(take(metric, lower), take(metric, upper)).max(-1)  # (B, P // 2) each
    best = likeness.argsort(dim=1, descending=True, stable=True)[:, :r]
    return lower.gather(1, best), upper.gather(1, partner.gather(1, best))


class UTR(Peer):
    """UTR."""

    def taps(self) -> tuple[str, ...]:
        return ("y",)

    def reduce(self, block: int, state: State, taps: Taps, count: int) -> State:
        assert taps.y is not None and state.h is not None  # `taps` asks for it; a block has run
        cls, tokens = cls_of(state), state.x.shape[1]
        at = patches(cls, tokens)
        chosen = pairs(clipped(taps.y).gather(1, at), take(state.h, at), count)
        src, into = (at.gather(1, numbers) for numbers in chosen)  # (B, r) each, from numbers of patches to positions
        m = absorbing(staying(src, tokens), src, into, tokens)
        ones = torch.ones_like(state.x[..., 0])
        # On the hidden branch the first half of the sources weighs 0: merging them is pruning them, in the same
        # indices.
        left = ones.scatter(1, src[:, : count // 2], 0.0)  # (B, L)
        return State(
            merge(state.x, m, shares(ones, m)),
            merge(state.h, m, shares(left, m)),
            cls=places(m.keep, tokens).gather(1, cls[:, None])[:, 0],
            size=sums(sizes(state), m),
            last_merge=m,
        )

    def cost(self, tokens: int, count: int, model: ModelConfig) -> Cost:
        half = (tokens - 1) // 2
        compared = cosine_operations(half, tokens - 1 - half, model.d_model)
        work = 2 * model.d_inner * tokens + compared + 2 * model.d_model * tokens  # both branches are merged
        return Cost(work, work)
