"""MaMe-like: after arXiv 2508.13599, of which we could read the abstract alone. (MaMe, Matrix-Based Token Merging, is
another method.)

The abstract says: Delta as a token's informativeness, and an arrangement that keeps the order. The rest is ours: the
    patches with
the lowest Delta are absorbed by the nearest patch that stays, in scan order, as a mean weighted by Delta.
"""

import torch
from torch import Tensor

from stm.config import ModelConfig
from stm.merging.plan import Cost, State, Taps
from stm.peers.hsa import lowest
from stm.peers.mtr import informativeness
from stm.peers.peer import Peer
from stm.peers.tokens import absorbing, cls_of, merged, shares, staying


def nearest(gone: Tensor, stay: Tensor, cls: Tensor) -> Tensor:
    """(B, S): for each position in `gone` (B, S) the nearest in `stay` (B, L') but the class token at cls (B,); of two
    the earlier."""
    distance = (gone[:, :, None] - stay[:, None]).abs()  # (B, S, L')
    far = torch.where(stay == cls[:, None], torch.iinfo(distance.dtype).max, 0)[:, None]
    return stay.gather(1, torch.maximum(distance, far).argmin(-1))


class MaMeLike(Peer):
    """MaMe-like: see the module's text."""

    def taps(self) -> tuple[str, ...]:
        return ("delta",)

    def reduce(self, block: int, state: State, taps: Taps, count: int) -> State:
        assert taps.delta is not None  # it wants it
        score, cls, tokens = informativeness(taps.delta), cls_of(state), state.x.shape[1]
        src = lowest(score, cls, count)
        keep = staying(src, tokens)
        m = absorbing(keep, src, nearest(src, keep, cls), tokens)
        return merged(state, m, shares(score, m))

    @classmethod
    def most(cls, tokens: int) -> int:
        return tokens - 2

    def flops(self, block: int, model: ModelConfig) -> Cost:
        tokens, r = self.before(block)
        work = (2 * model.d_inner + model.d_model) * tokens if r else 0
        return Cost(work, work)
