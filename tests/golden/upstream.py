"""The peers as their official code has them, quirks included: what the golden outputs are compared with.

They show that we read the code rightly. The methods that users run (stm/peers) leave the quirks out, so these stand
here, beside the only tests that need them.
"""

import math

import torch
import torch.nn.functional as F

from stm.config import ModelConfig
from stm.merging.outline import Cost
from stm.merging.plan import State, Taps
from stm.peers.peer import Peer, Removals
from stm.peers.rmeeto import RMeeTo
from stm.peers.tokens import absorbing, cls_of, merged, pruned, pruning, shares, sizes, staying, with_cls


def rmeeto_removals(
    model: ModelConfig,
    num_prune: int = 5,
    merge_interval: int = 2,
    odd: bool = False,
    compare: int = 11,
    tail_rule: bool = True,
) -> dict[int, int]:
    """Return what R-MeeTo's code removes, keyed by the block after which it does; the settings have its names.

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


class UpstreamRMeeTo(RMeeTo):
    """NUS-HPC-AI-Lab/R-MeeTo@535a826: the class token goes back at a proportional place, often not its own rank.

    Only the metric X is known to equal the official code, so this takes no other.
    """

    def __init__(self, model: ModelConfig, removals: Removals) -> None:
        super().__init__(model, removals)

    def reduce(self, block: int, state: State, taps: Taps, count: int) -> State:
        assert isinstance(state.cls, int)  # it starts as one, and this method keeps it one
        src, into = self.pairs(state, taps, count)
        tokens, cls = state.x.shape[1], cls_of(state)
        new_cls = self.place(block, state.cls, tokens)
        rest = staying(torch.cat([src, cls[:, None]], 1), tokens)  # (B, P - r), the patches that stay
        m = absorbing(with_cls(rest, cls, new_cls), src, into, tokens)
        return merged(state, m, shares(sizes(state), m), new_cls)

    def place(self, block: int, cls: int, tokens: int) -> int:
        return cls * (tokens - self.removals[block]) // tokens


def topvim_removals(model: ModelConfig, keep: float = 0.8) -> dict[int, int]:
    """Return what ToP-ViM's code removes after blocks 5, 10 and 15, counted from 1.

    K = ceil(keep (L - 1)) tokens stay, made odd.
    """
    tokens, removals = model.tokens, {}
    for block in (4, 9, 14):
        if block < model.depth - 1:
            stay = math.ceil((tokens - 1) * keep)
            removals[block] = tokens - (stay + 1 - stay % 2)
            tokens -= removals[block]
    return removals


class UpstreamHSA(Peer):
    """ZLKong/ToP-ViM@b5bc231: the pruning that it releases, without alignment.

    The score is the sum over channels of the gated output of the backward scan. It is in walking order but used in
    token order, so it is mirrored. Only in the first image of a batch is the class token kept apart; in the others it
    may be chosen among the patches too. It goes to the exact middle. The code takes L // 2 for its position, which is
    right if L is odd.
    """

    def taps(self) -> tuple[str, ...]:
        return ("y", "z")

    def reduce(self, block: int, state: State, taps: Taps, count: int) -> State:
        assert taps.y is not None and taps.z is not None  # `taps` asks for them
        tokens = state.x.shape[1]
        score = (taps.y[1] * F.silu(taps.z)).sum(-1).flip(1)  # (B, L)
        cls = tokens // 2
        score[0, cls] = -torch.inf  # of the first image alone, as the code has it
        best = score.argsort(dim=1, descending=True, stable=True)[:, : tokens - count - 1].sort(1).values
        new_cls = best.shape[1] // 2
        keep = with_cls(best, torch.full_like(best[:, 0], cls), new_cls)
        return pruned(state, pruning(keep), new_cls)

    def place(self, block: int, cls: int, tokens: int) -> int:
        return (tokens - self.removals[block] - 1) // 2

    @classmethod
    def most(cls, tokens: int) -> int:
        return tokens - 2

    def cost(self, tokens: int, count: int, model: ModelConfig) -> Cost:
        score = 2 * model.d_inner * tokens  # the gate and the sum over the channels of one direction
        return Cost(score, score)
