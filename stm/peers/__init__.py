"""The methods that ours is compared with, each one a pure function of tokens and a thin `Plan` around it.

`PEERS` names them as the tables use them: the blocks after which each acts as published, and its name for people. All
are the fair variants, without the quirks of official code. Variants that equal the official code's own outputs, quirks
included, stand beside the tests that hold them to it (tests/golden/upstream.py).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from stm.config import ModelConfig
from stm.peers.evit import EViT
from stm.peers.hsa import HSA
from stm.peers.mame import MaMeLike
from stm.peers.mtr import MTR
from stm.peers.peer import Peer, Removals, every, scaled
from stm.peers.random_pruning import RandomPruning
from stm.peers.rmeeto import RMeeTo
from stm.peers.storm import STORM
from stm.peers.tome import DecreasingToMe, FambaV, ToMe
from stm.peers.utr import UTR


class Method(NamedTuple):
    """A row of a table.

    Args:
        title: the name for people.
        kind: the class, which knows the method's budgets.
        places: from a depth to the blocks after which the method acts as published.
        make: from a model's shape, removals and a seed to the plan.
    """

    title: str
    kind: type[Peer]
    places: Callable[[int], tuple[int, ...]]
    make: Callable[[ModelConfig, Removals, int], Peer]


# Options are bound here, so that a row reads as the method is published. A peer that draws takes the seed itself.
def _method(title: str, kind: type[Peer], places: Callable[[int], tuple[int, ...]], **options: Any) -> Method:
    build: Callable[..., Peer] = partial(kind, **options)
    return Method(title, kind, places, lambda model, removals, seed: build(model, removals))


def _thirds(depth: int) -> tuple[int, ...]:
    """Return the ends of three stages: after blocks 5, 10 and 15 of 24, counted from 1."""
    return scaled((4, 9, 14), depth)


def _late(depth: int) -> tuple[int, ...]:
    """Return every fifth block from block 10 on, of 24."""
    return scaled((10, 15, 20), depth)


def _second(depth: int) -> tuple[int, ...]:
    """Return the blocks that act at the entry of blocks 2, 4, ..."""
    return every(2, 2, depth)


def _all(depth: int) -> tuple[int, ...]:
    return every(1, 1, depth)


PEERS: dict[str, Method] = {
    "random": Method("random pruning", RandomPruning, _second, RandomPruning),
    "hsa": _method("Hidden State Alignment", HSA, _thirds),
    "hsa-unaligned": _method("HSA without alignment", HSA, _thirds, aligned=False),
    "rmeeto": _method("R-MeeTo, no retraining", RMeeTo, _second),
    "evit": _method("Token Recognition (EViT)", EViT, _thirds),
    "evit-similarity": _method("EViT, class similarity", EViT, _thirds, score="cls_similarity"),
    "evit-score-order": _method("EViT, in score order", EViT, _thirds, order="score"),
    "evit-fused": _method("EViT, fused token", EViT, _thirds, fuse=True),
    # ToMe acts in every block, on all tokens; Famba-V's strategies are choices among the same blocks.
    "tome": _method("ToMe", ToMe, _all),
    "tome-decreasing": _method("ToMe, decreasing", DecreasingToMe, _all),
    "famba-v": _method("Famba-V, upper blocks", FambaV, lambda depth: tuple(range(depth // 2, depth - 1))),
    "famba-v-all": _method("Famba-V, all blocks", FambaV, _all),
    "famba-v-second": _method("Famba-V, every second block", FambaV, _second),
    "famba-v-lower": _method("Famba-V, lower blocks", FambaV, lambda depth: tuple(range(depth // 2))),
    "utr": _method("UTR", UTR, _late),
    # MTR's blocks are not published: these are the best of those that benchmarks/tune_mtr.py tries.
    "mtr": _method("MTR", MTR, _late),
    "mame-like": _method("MaMe-like", MaMeLike, _second),
    "storm": _method("STORM", STORM, lambda depth: scaled((4, 10, 16, 22), depth)),
}
# One row per published method; the variants of a method need to be asked for by name.
DEFAULT = ("random", "hsa", "rmeeto", "evit", "tome", "famba-v", "utr", "mtr", "mame-like", "storm")


def suited(names: Sequence[str], model: ModelConfig) -> tuple[str, ...]:
    """Return the names of a default that take a model.

    STORM merges squares of patches, so it needs a square grid. Most peers take one class token only (`Peer.several`).
    """
    rows, columns = model.grid
    return tuple(
        name
        for name in names
        if (name != "storm" or rows == columns)
        and (model.class_tokens == 1 or name not in PEERS or PEERS[name].kind.several)
    )
