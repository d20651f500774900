"""What merging does to the states of a ViM, measured: the paper's figures and tables as quantities.

Sequential Token Merging (arXiv 2509.22691) reasons about h_c, the state of a block's scan at the class token. Here its
relative change |h_c - h_c'| / |h_c| is measured when one token alone is merged, removed or zeroed. What lies before the
class token reaches it through the forward walk, what lies after it through the backward one: that is the state that is
read.

- `fading`: merge one token at each distance, and follow the change through the blocks (equations 12 and 13, Figure 3).
- `losses`: the change in the next block, block by block, for each rule of merging (equations 8 to 10).
- `influence`: LDSD, the change when each token alone is zeroed (equation 7, Table 1).
- `plan_change`: the same of a whole plan, against the dense model.
- `groups_by_block`: which tokens went where.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from stm.bake import rule_weights
from stm.data.sets import evenly
from stm.explain.states import TAPS, Scan, change, decay_to, state_at
from stm.findings import Fit
from stm.merging import hsp
from stm.merging.groups import Groups, follow
from stm.merging.merge import Merge, merge
from stm.merging.plan import State
from stm.merging.schedule import Step
from stm.model.vim import ViM

T = TypeVar("T")

FORWARD, BACKWARD = 0, 1
REACHING_SIDES = ("left", "right")  # of the class token; the index is the direction that reaches it from there
RULES = ("prune", "mean", "hsp")  # removal, and merging without and with the paper's compensation


class BlockTrace(NamedTuple):
    """One block of a run: what entered it, what left it, and what its scan ran on."""

    number: int
    entered: State
    left: State
    scan: Scan


def walk(model: ViM, state: State, start: int = 0) -> Iterator[BlockTrace]:
    """The blocks from `start` on, with the model's plan between them; all of the last block too."""
    last = model.config.model.depth - 1
    for number in range(start, last + 1):
        wanted = model.plan.wants(number) if model.plan is not None else ()
        left, taps = model.blocks[number](state, (*TAPS, *wanted))
        yield BlockTrace(number, state, left, Scan.of(state, taps))
        state = left if model.plan is None or number == last else model.plan(number, left, taps)


@dataclass(frozen=True)
class Single:
    """One token that is absorbed by its neighbour toward the class token.

    Args:
        side: of the class token, an index of `REACHING_SIDES`.
        source, into: positions in the sequence.
        distance: of `into` from the class token, in tokens.
    """

    side: int
    source: int
    into: int
    distance: int


def singles(tokens: int, cls: int, most: int | None = None) -> list[Single]:
    """Every merge of one token, one at each distance and side; at most so many, evenly spread, of a side."""
    left = [Single(0, cls - d - 1, cls - d, d) for d in range(1, cls)]
    right = [Single(1, cls + d + 1, cls + d, d) for d in range(1, tokens - cls - 1)]
    return [*some(left, most), *some(right, most)]


def _portions(model: ViM, items: Sequence[Any]) -> list[Sequence[Any]]:
    """Variants of an image that run at once: as many as have states that stay in the cache."""
    size = min(64, max(4, 2**16 // (model.config.model.d_inner * model.config.model.d_state)))
    return [items[first : first + size] for first in range(0, len(items), size)]


def some(items: Sequence[T], most: int | None) -> list[T]:
    """Return all items, or `most` of them, evenly spread from the first to the last."""
    if most is None or most >= len(items):
        return list(items)
    return [items[round(position)] for position in evenly(most, len(items) - 1)]


def single_weights(seen: BlockTrace, rule: str, merges: Sequence[Single]) -> Tensor:
    """What each merge multiplies the tokens that left the block by, (S, L): prune, mean, or hsp from that block's
    scan."""
    tokens, cls = seen.left.x.shape[1], int(seen.left.cls)
    if rule == "hsp":
        pairs = Step(seen.number, tuple((each.source, each.into) for each in merges))
        absorbed = hsp.Absorbed(*(v.to(seen.left.x.device) for v in hsp.absorbed(pairs, tokens, cls)))
        w = hsp.least_squares(seen.scan.delta, seen.scan.B, seen.scan.A, absorbed)[0]  # (S,)
        weights = w.new_ones(len(merges), tokens)
        return weights.scatter(1, absorbed.src[:, None], w[:, None])
    rows = [rule_weights(rule, Step(seen.number, ((each.source, each.into),)), [1] * tokens) for each in merges]
    return torch.tensor(rows, device=seen.left.x.device)


def merge_singles(seen: BlockTrace, rule: str, merges: Sequence[Single]) -> State:
    """What enters the next block after each merge: S images of L - 1 tokens. All merges are of one side."""
    tokens, cls = seen.left.x.shape[1], int(seen.left.cls)
    device = seen.left.x.device
    keep = torch.tensor(
        [[p for p in range(tokens) if p != each.source] for each in merges], device=device
    )  # (S, L - 1)
    place = [each.into - (each.into > each.source) for each in merges]
    index = Merge(
        keep,
        torch.tensor([[each.source] for each in merges], device=device),
        torch.tensor(place, device=device)[:, None],
    )
    x = seen.left.stream.expand(len(merges), -1, -1)  # (S, L, D)
    return State(merge(x, index, single_weights(seen, rule, merges).to(x)), cls=cls - (merges[0].side == 0))


@dataclass(frozen=True)
class Faded:
    """What one merge changed, as relative changes.

    Args:
        side: left or right of the class token.
        distance: from the merge to the class token, in tokens.
        merged: of the state at the merge, in the first block after it.
        predicted: of the class token's state there, if nothing had changed but the state at the merge: that times the
            decays between the two.
        cls: of the class token's state, in each block after the merge.
        logits: of the logits.
    """

    side: str
    distance: int
    merged: float
    predicted: float
    cls: tuple[float, ...]
    logits: float


def fading(dense: ViM, image: Tensor, before: int, rule: str = "mean", most: int | None = None) -> list[Faded]:
    """Merge one token before a block, at each distance and side, and follow the change.

    Args:
        image: (1, C, H, W), normalised.
        before: the block that the merged sequence enters, at least 1.
        rule: one of `RULES`.
        most: the most distances of a side; None: all.
    """
    run = list(walk(dense, dense.embed(image)))
    here, logits = run[before - 1], dense.classify(run[-1].left)
    c = int(here.left.cls)
    at_cls = [
        [state_at(seen.scan, side, [c]) for side in range(len(REACHING_SIDES))] for seen in run
    ]  # of each block and direction, (1, E, N)
    out = []
    for side, name in enumerate(REACHING_SIDES):
        chosen = [each for each in singles(here.left.x.shape[1], c, most) if each.side == side]
        for part in _portions(dense, chosen):
            merged = merge_singles(here, rule, part)
            first, changes = None, []
            for seen in walk(dense, merged, before):
                first = first or seen
                h = state_at(seen.scan, side, [int(merged.cls)] * len(part))  # (S, E, N)
                changes.append(change(at_cls[seen.number][side], h))
                last = seen.left
            assert first is not None
            at = [each.into for each in part]
            was = state_at(run[before].scan, side, at)  # (S, E, N)
            now = state_at(first.scan, side, [each.into - (each.into > each.source) for each in part])
            to_cls = decay_to(run[before].scan, side, c)[0, at]  # (S, E, N)
            reached = (to_cls * (was - now)).flatten(1).norm(dim=1) / at_cls[before][side].norm()
            moved = (dense.classify(last) - logits).norm(dim=1) / logits.norm()
            rows = zip(part, change(was, now), reached, torch.stack(changes, 1), moved, strict=True)
            out += [
                Faded(name, each.distance, m.item(), p.item(), tuple(h.tolist()), y.item()) for each, m, p, h, y in rows
            ]
    return out


def fit_exponential(distances: Sequence[int], changes: Sequence[float]) -> Fit | None:
    """The exponential that falls with the distance; None for fewer than three changes above zero."""
    points = [(d, math.log(value)) for d, value in zip(distances, changes, strict=True) if value > 0]
    if len({d for d, _ in points}) < 3:
        return None
    mean_d, mean_y = (math.fsum(column) / len(points) for column in zip(*points, strict=True))
    slope = math.fsum((d - mean_d) * (y - mean_y) for d, y in points) / math.fsum((d - mean_d) ** 2 for d, _ in points)
    start = mean_y - slope * mean_d
    left = math.fsum((y - start - slope * d) ** 2 for d, y in points)
    spread = math.fsum((y - mean_y) ** 2 for _, y in points)
    return Fit(math.exp(start), -slope, 1 - left / spread if spread else 1.0)


@dataclass(frozen=True)
class Loss:
    """The mean relative change in the block after a merge: of the state at the merge, and of the class token's."""

    after: int
    rule: str
    merged: float
    cls: float


def losses(dense: ViM, image: Tensor, most: int | None = None) -> list[Loss]:
    """One token removed or merged after every block but the last, by each rule: the mean over places and both sides.

    Args:
        image: (1, C, H, W), normalised.
        most: the most places of a side, evenly spread; None: all.
    """
    run = list(walk(dense, dense.embed(image)))
    out = []
    for here, following in pairwise(run):
        c = int(here.left.cls)
        every = singles(here.left.x.shape[1], c, most)
        for rule in RULES:
            merged, cls = [], []
            for side in range(len(REACHING_SIDES)):
                at_cls = state_at(following.scan, side, [c])
                for part in _portions(dense, [each for each in every if each.side == side]):
                    state = merge_singles(here, rule, part)
                    _, taps = dense.blocks[following.number](state, TAPS)
                    scan = Scan.of(state, taps)
                    now = state_at(scan, side, [each.into - (each.into > each.source) for each in part])
                    merged.append(change(state_at(following.scan, side, [each.into for each in part]), now))
                    cls.append(change(at_cls, state_at(scan, side, [int(state.cls)] * len(part))))
            out.append(Loss(here.number, rule, torch.cat(merged).mean().item(), torch.cat(cls).mean().item()))
    return out


@dataclass(frozen=True)
class Influence:
    """LDSD of one token, by block: how much the class token's state changes when that token is zero as the block
    begins."""

    side: str
    distance: int
    blocks: tuple[float, ...]


def influence(dense: ViM, image: Tensor, most: int | None = None) -> list[Influence]:
    """The influence of each token on the class token's state, from the border of the left side to that of the right.

    Args:
        image: (1, C, H, W), normalised.
        most: the most tokens of a side, evenly spread; None: all.
    """
    tokens, c = dense.config.model.tokens, dense.config.model.cls
    sides = [some(range(c), most), some(range(c + 1, tokens), most)]
    columns: list[list[Tensor]] = [[], []]
    for seen in walk(dense, dense.embed(image)):
        x = seen.entered.stream  # (1, L, D)
        for side, chosen in enumerate(sides):
            at_cls, found = state_at(seen.scan, side, [c]), [x.new_empty(0)]
            for part in _portions(dense, chosen):
                without = x.repeat(len(part), 1, 1)
                without[torch.arange(len(part)), torch.tensor(part)] = 0
                state = State(without, cls=c)
                _, taps = dense.blocks[seen.number](state, TAPS)
                found.append(change(at_cls, state_at(Scan.of(state, taps), side, [c] * len(part))))
            columns[side].append(torch.cat(found))
    return [
        Influence(name, abs(position - c), tuple(row.tolist()))
        for name, chosen, blocks in zip(REACHING_SIDES, sides, columns, strict=True)
        for position, row in zip(chosen, torch.stack(blocks, 1), strict=True)
    ]


def plan_change(was: Sequence[BlockTrace], now: Sequence[BlockTrace]) -> Tensor:
    """What a plan changes of the class token's state in each block: (depth, K), from a run without it and one with
    it."""
    return torch.stack(
        [
            torch.cat([change(*(_at_class(run, k) for run in pair)) for k in (FORWARD, BACKWARD)])
            for pair in zip(was, now, strict=True)
        ]
    )


def _at_class(seen: BlockTrace, direction: int) -> Tensor:
    return state_at(seen.scan, direction, [int(seen.entered.cls)])


def groups_by_block(run: Sequence[BlockTrace]) -> tuple[Groups, ...]:
    """The positions that each token holds as it enters each block of a run of one image, from the maps that its plan
    left."""
    groups: Groups = tuple((position,) for position in range(run[0].entered.x.shape[1]))
    out, last = [groups], None
    for seen in run[1:]:
        if seen.entered.last_merge is not None and seen.entered.last_merge is not last:
            groups = follow(groups, *(index.flatten().tolist() for index in seen.entered.last_merge))
        last = seen.entered.last_merge
        out.append(groups)
    return tuple(out)
