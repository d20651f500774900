"""Hidden State Alignment (ToP-ViM, arXiv 2409.18962; ZLKong/ToP-ViM@b5bc231), and the pruning that its code releases.

A token's score is the sum over channels of max(0, y), y the output of the scan; the highest stay, in order, the class
token always. Where tokens before one that stays were pruned, the state still decays over them, as if they had injected
nothing: that is the alignment. The released code has none of it, and differs (`UpstreamHSA`).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stm.config import ModelConfig
from stm.merging.merge import take
from stm.merging.plan import Cost, State, Taps
from stm.peers.peer import Peer, Removals
from stm.peers.tokens import clipped, cls_of, patches, pruned, pruning, staying


def lowest(score: Tensor, cls: Tensor, count: int) -> Tensor:
    """(B, count): the patches with the lowest score (B, L). A tie goes to the earlier one."""
    at = patches(cls, score.shape[1])
    return at.gather(1, score.gather(1, at).argsort(dim=1, stable=True)[:, :count])


def gaps(elapsed: Tensor, keep: Tensor) -> Tensor:
    """The Delta that elapses over removed tokens before each one that stays, in each direction's walk.

    Args:
        elapsed: (K, B, L, E), Delta, and what had elapsed before the token already; forward first.
        keep: (B, L'), the positions that stay, in order.

    Returns:
        (K, B, L', E).
    """
    K, B, L, E = elapsed.shape
    stays = keep.new_zeros(B, L).scatter(1, keep, 1)
    gap = stays.cumsum(1)  # (B, L): between which of those that stay a removed token is, 0 before the first
    removed = elapsed * (1 - stays)[..., None]
    between = elapsed.new_zeros(K, B, keep.shape[1] + 1, E).scatter_add(
        2, gap[None, ..., None].expand_as(removed), removed
    )
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
        assert taps.y is not None  # it wants it
        keep = staying(lowest(clipped(taps.y), cls_of(state), count), state.x.shape[1])
        small = pruned(state, pruning(keep))
        if not self.aligned:
            return small
        assert taps.delta is not None
        if state.gap is None:
            return small._replace(gap=gaps(taps.delta, keep))
        return small._replace(gap=gaps(taps.delta + state.gap, keep) + take(state.gap, keep))

    @classmethod
    def most(cls, tokens: int) -> int:
        return tokens - 2

    def flops(self, block: int, model: ModelConfig) -> Cost:
        tokens, count = self.before(block)
        score = 2 * model.d_inner * tokens if count else 0  # a sum over the channels of both directions
        return Cost(score, score)


def upstream_removals(model: ModelConfig, keep: float = 0.8) -> dict[int, int]:
    """What the released code removes after blocks 5, 10 and 15, counted from 1: K = ceil(keep (L - 1)), made odd,
    stay."""
    tokens, removals = model.tokens, {}
    for block in (4, 9, 14):
        if block < model.depth - 1:
            stay = math.ceil((tokens - 1) * keep)
            removals[block] = tokens - (stay + 1 - stay % 2)
            tokens -= removals[block]
    return removals


class UpstreamHSA(Peer):
    """What ZLKong/ToP-ViM releases, to be equal to it and not to be used.

    The score is the sum over channels of the gated output of the backward scan, in walking order but used in token
    order, so that it is mirrored. Only in the first image of a batch is the class token kept apart; in the others it
    may be chosen among the patches too. It goes to the exact middle. L // 2 is taken for its position, which is right
    where L is odd.
    """

    def taps(self) -> tuple[str, ...]:
        return ("y", "z")

    def reduce(self, block: int, state: State, taps: Taps, count: int) -> State:
        assert taps.y is not None and taps.z is not None  # it wants them
        tokens = state.x.shape[1]
        score = (taps.y[1] * F.silu(taps.z)).sum(-1).flip(1)  # (B, L)
        cls = tokens // 2
        score[0, cls] = -torch.inf
        best = score.argsort(dim=1, descending=True, stable=True)[:, : tokens - count - 1].sort(1).values
        place = best.shape[1] // 2
        keep = torch.cat([best[:, :place], torch.full_like(best[:, :1], cls), best[:, place:]], 1)
        return pruned(state, pruning(keep), place)

    def place(self, block: int, cls: int, tokens: int) -> int | None:
        return (tokens - self.removals[block] - 1) // 2

    @classmethod
    def most(cls, tokens: int) -> int:
        return tokens - 2

    def flops(self, block: int, model: ModelConfig) -> Cost:
        tokens, count = self.before(block)
        score = 2 * model.d_inner * tokens if count else 0  # the gate and the sum over the channels of one direction
        return Cost(score, score)
