"""MaMe-like: after arXiv 2508.13599, of which we could read the abstract alone. (MaMe, Matrix-Based Token Merging, is
another method.)

The abstract names two ideas: Delta is a token's informativeness, and the arrangement keeps the order. The rest is our
reading: the nearest staying patch in scan order absorbs each patch with a low Delta, as a mean weighted by Delta.
"""

import torch
from torch import Tensor

from stm.config import ModelConfig
from stm.merging.outline import Cost
from stm.merging.plan import State, Taps
from stm.peers.hsa import lowest
from stm.peers.mtr import informativeness
from stm.peers.peer import Peer
from stm.peers.tokens import absorbing, cls_of, merged, shares, staying


def nearest(gone: Tensor, stay: Tensor, cls: Tensor) -> Tensor:
    """Return the position in `stay` (B, L') that is nearest to each one in `gone` (B, S), never the class token's:
    (B, S). Of two equally near the earlier wins."""
    distance = (gone[:, :, None] - stay[:, None]).abs()  # (B, S, L')
    # The class token must not absorb a patch: put it further away than any other.
    far = torch.where(stay == cls[:, None], torch.iinfo(distance.dtype).max, 0)[:, None]
    return stay.gather(1, torch.maximum(distance, far).argmin(-1))


class MaMeLike(Peer):
    """MaMe-like: see the module's text."""

    def taps(self) -> tuple[str, ...]:
        return ("delta",)

    def reduce(self, block: int, state: State, taps: Taps, count: int) -> State:
        assert taps.delta is not None  # `taps` asks for it
        score, cls, tokens = informativeness(taps.delta), cls_of(state), state.x.shape[1]
        src = lowest(score, cls, count)
        keep = staying(src, tokens)
        m = absorbing(keep, src, nearest(src, keep, cls), tokens)
        return merged(state, m, shares(score, m))

    @classmethod
    def most(cls, tokens: int) -> int:
        return tokens - 2  # the class token and one patch stay

    def cost(self, tokens: int, count: int, model: ModelConfig) -> Cost:
        # The mean of Delta over both directions, and the weighted sum; distances are of integers and not counted.
        work = (2 * model.d_inner + model.d_model) * tokens
        return Cost(work, work)
