"""Random pruning: the floor. A method that does not beat it has learned nothing from the tokens that it looks at."""

import random

import torch
from torch import Tensor

from stm.config import ModelConfig
from stm.merging.merge import Merge
from stm.merging.plan import State, Taps
from stm.merging.schedule import Fixed, left_over, others
from stm.peers.peer import Peer, Removals
from stm.peers.tokens import pruned


def drawn(tokens: int, cls: Fixed, count: int, generator: random.Random) -> tuple[list[int], Fixed]:
    """Draw `count` patches to leave; return the positions that stay, in order, and where the class tokens are among
    them."""
    gone = set(generator.sample(others(tokens, cls), count))
    return [position for position in range(tokens) if position not in gone], left_over(cls, gone)


class RandomPruning(Peer):
    """Prune patches that a seed draws: the same in every image, so that no image's result depends on another's.

    Args:
        seed: of the draw.
    """

    static = True
    several = True

    def __init__(self, model: ModelConfig, removals: Removals, seed: int = 0) -> None:
        super().__init__(model, removals)
        # Python's generator, not torch's: drawing must not move the global state that callers seed for other things.
        generator, tokens, cls = random.Random(seed), model.tokens, model.cls
        self.cls: dict[int, Fixed] = {}
        for block, count in self.removals.items():
            keep, cls = drawn(tokens, cls, count, generator)
            self.register_buffer(f"keep{block}", torch.tensor(keep), persistent=False)
            self.cls[block], tokens = cls, len(keep)

    def reduce(self, block: int, state: State, taps: Taps, count: int) -> State:
        keep: Tensor = getattr(self, f"keep{block}")  # (L',), shared by the batch
        return pruned(state, Merge(keep, keep[:0], keep[:0]), self.cls[block])

    def place(self, block: int, cls: Fixed, tokens: int) -> Fixed | None:
        return self.cls[block]

    @classmethod
    def most(cls, tokens: int) -> int:
        return tokens - 2  # the class token and one patch stay
