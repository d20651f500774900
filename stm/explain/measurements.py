"""What merging does to the states of a ViM, measured: the paper's figures and tables as quantities.

Sequential Token Merging (arXiv 2509.22691) reasons about h_c, the state of a block's scan at the class token. This
module measures its relative change |h_c - h_c'| / |h_c| when one token alone is merged, removed or zeroed. Tokens
before the class token reach it through the forward walk, tokens after it through the backward walk. So each measurement
reads the state of the walk that passes the changed token before the class token; the other walk cannot show the change
there.

- `fading`: merge one token at each distance, and follow the change through the blocks (equations 12 and 13, Figure 3).
- `losses`: the change in the next block, block by block, for each rule of merging (equations 8 to 10).
- `influence`: LDSD, the change when each token alone is zeroed (equation 7, Table 1).
- `plan_change`: the change that a whole plan makes, against the dense model.
- `groups_by_block`: which tokens went where.

Of several class tokens (Mamba-R) the middle one is measured, and the tokens that merge toward it.

One image is run with many variants of a merge at once: the variants are the batch. S counts them.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from stm.data.sets import evenly
from stm.explain.states import TAPS, Scan, change, decay_to, state_at
from stm.findings import Fit
from stm.merging import hsp
from stm.merging.bnnm import parts_of
from stm.merging.constants import rule_weights
from stm.merging.groups import Groups, follow
from stm.merging.merge import Merge, merge
from stm.merging.plan import State
from stm.merging.schedule import Fixed, Step, fixed, left_over
from stm.model.vim import ViM

T = TypeVar("T")

FORWARD, BACKWARD = 0, 1
REACHING_SIDES = ("left", "right")  # of the class token; the index is the direction that reaches it from there
RULES = ("prune", "mean", "hsp")  # removal, and merging without and with the paper's compensation


class BlockTrace(NamedTuple):
    """One block of a run: the state that entered it, the state that left it, and what its scan ran on."""

    number: int
    entered: State
    left: State
    scan: Scan


def walk(model: ViM, state: State, start: int = 0) -> Iterator[BlockTrace]:
    """Run the blocks from `start` on with the model's plan between them, and yield a trace of each.

    The last block computes all tokens here, unlike a forward pass: its states are measured too.
    """
    last = model.config.model.depth - 1
    for number in range(start, last + 1):
        wanted = model.plan.wants(number) if model.plan is not None else ()
        left, taps = model.blocks[number](state, (*TAPS, *wanted))
        yield BlockTrace(number, state, left, Scan.of(state, taps))
        state = left if model.plan is None or number == last else model.plan(number, left, taps)


def measured(cls: Fixed | Tensor) -> int:
    """Return the position of the class token whose state is measured: of several, the middle one."""
    if isinstance(cls, Tensor):
        return int(cls)
    return fixed(cls)[len(fixed(cls)) // 2]


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

    @property
    def merged_into(self) -> int:
        """The position of `into` after the merge: one less if the source, which has left, stood before it."""
        return self.into - (self.into > self.source)


def singles(tokens: int, cls: Fixed, most: int | None = None) -> list[Single]:
    """Return every merge of one token, one per distance and side; at most `most` per side, evenly spread."""
    c, out = measured(cls), []
    for side, name in enumerate(REACHING_SIDES):
        step = 1 if side else -1
        length = next((len(part) for part in parts_of(tokens, cls, name) if part[-1] == c + step), 0)
        out += some([Single(side, c + step * (d + 1), c + step * d, d) for d in range(1, length)], most)
    return out


def _portions(model: ViM, items: Sequence[Any]) -> list[Sequence[Any]]:
    """Split variants of an image into those that run at once."""
    # As many as have states (S, E, N) of at most 2^16 values together, which stay in a processor's cache. Wide models
    # still get four, and narrow ones no more than 64, whose other activations would fill the memory.
    size = min(64, max(4, 2**16 // (model.config.model.d_inner * model.config.model.d_state)))
    return [items[first : first + size] for first in range(0, len(items), size)]


def some(items: Sequence[T], most: int | None) -> list[T]:
    """Return all items, or `most` of them, evenly spread from the first to the last."""
    if most is None or most >= len(items):
        return list(items)
    return [items[round(position)] for position in evenly(most, len(items) - 1)]


def single_weights(trace: BlockTrace, rule: str, merges: Sequence[Single]) -> Tensor:
    """Return the factor by which each merge multiplies each token that left the block, (S, L).

    `rule` is prune, mean, or hsp, which takes its weights from the block's own scan.
    """
    tokens = trace.left.x.shape[1]
    if rule == "hsp":
        # The least-squares weight of a pair depends on no other pair, so one step holds all variants.
        pairs = Step(trace.number, tuple((single.source, single.into) for single in merges))
        absorbed = hsp.Absorbed(*(index.to(trace.left.x.device) for index in hsp.absorbed(pairs, tokens)))
        w = hsp.least_squares(trace.scan.delta, trace.scan.B, trace.scan.A, absorbed)[0]  # (S,)
        weights = w.new_ones(len(merges), tokens)
        return weights.scatter(1, absorbed.src[:, None], w[:, None])
    rows = [rule_weights(rule, Step(trace.number, ((single.source, single.into),)), [1] * tokens) for single in merges]
    return torch.tensor(rows, device=trace.left.x.device)


def merge_singles(trace: BlockTrace, rule: str, merges: Sequence[Single]) -> State:
    """Return the state that enters the next block after each merge: S images of L - 1 tokens.

    All merges must be of one side: the class tokens behind it move by one.
    """
    tokens, cls = trace.left.x.shape[1], trace.left.cls
    assert not isinstance(cls, Tensor)  # the dense model's
    device = trace.left.x.device
    keep = torch.tensor(
        [[p for p in range(tokens) if p != single.source] for single in merges], device=device
    )  # (S, L - 1)
    index = Merge(
        keep,
        torch.tensor([[single.source] for single in merges], device=device),
        torch.tensor([[single.merged_into] for single in merges], device=device),
    )
    x = trace.left.stream.expand(len(merges), -1, -1)  # (S, L, D)
    return State(merge(x, index, single_weights(trace, rule, merges).to(x)), cls=left_over(cls, [merges[0].source]))


@dataclass(frozen=True)
class Faded:
    """The relative changes that one merge makes.

    Args:
        side: left or right of the class token.
        distance: from the merge to the class token, in tokens.
        merged: change of the state at the merge, in the first block after it.
        predicted: change of the class token's state in that block if only the state at the merge had changed: that
            change times the decays between the two tokens.
        cls: change of the class token's state, in each block after the merge.
        logits: change of the logits.
    """

    side: str
    distance: int
    merged: float
    predicted: float
    cls: tuple[float, ...]
    logits: float


def fading(dense: ViM, image: Tensor, before: int, rule: str = "mean", most: int | None = None) -> list[Faded]:
    """Merge one token before a block, at each distance and side, and follow the change through the later blocks.

    Args:
        image: (1, C, H, W), normalised.
        before: the block that the merged sequence enters, at least 1.
        rule: one of `RULES`.
        most: the most distances per side; None: all.
    """
    run = list(walk(dense, dense.embed(image)))
    merging, logits = run[before - 1], dense.classify(run[-1].left)
    cls = dense.config.model.cls
    c = measured(cls)
    # Per block and direction, (1, E, N). Only a plan moves the class token, and the dense model has none.
    at_cls = [[state_at(trace.scan, side, [c]) for side in range(len(REACHING_SIDES))] for trace in run]
    out = []
    for side, name in enumerate(REACHING_SIDES):
        chosen = [single for single in singles(merging.left.x.shape[1], cls, most) if single.side == side]
        for part in _portions(dense, chosen):
            merged = merge_singles(merging, rule, part)
            first, changes = None, []
            for trace in walk(dense, merged, before):
                first = first or trace
                h = state_at(trace.scan, side, [measured(merged.cls)] * len(part))  # (S, E, N)
                changes.append(change(at_cls[trace.number][side], h))
                last = trace.left
            assert first is not None
            at = [single.into for single in part]
            was = state_at(run[before].scan, side, at)  # (S, E, N)
            now = state_at(first.scan, side, [single.merged_into for single in part])  # (S, E, N)
            # The recurrence is linear in the state: a difference at the merge reaches the class token times the decays.
            to_cls = decay_to(run[before].scan, side, c)[0, at]  # (S, E, N)
            reached = (to_cls * (was - now)).flatten(1).norm(dim=1) / at_cls[before][side].norm()
            moved = (dense.classify(last) - logits).norm(dim=1) / logits.norm()
            rows = zip(part, change(was, now), reached, torch.stack(changes, 1), moved, strict=True)
            out += [
                Faded(name, single.distance, m.item(), p.item(), tuple(h.tolist()), y.item())
                for single, m, p, h, y in rows
            ]
    return out


def fit_exponential(distances: Sequence[int], changes: Sequence[float]) -> Fit | None:
    """Return the exponential that falls with the distance, or None for fewer than three changes above zero."""
    # Least squares on the logarithm, in which the exponential is a line: far tokens, whose changes are tiny, count as
    # much as near ones. `fsum` makes the result independent of the order of the rows.
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
    """The mean relative changes in the block after a merge: of the state at the merge, and of the class token's state.

    Args:
        after: the block that precedes the merge.
        rule: one of `RULES`.
        merged: change of the state at the merge.
        cls: change of the class token's state.
    """

    after: int
    rule: str
    merged: float
    cls: float


def losses(dense: ViM, image: Tensor, most: int | None = None) -> list[Loss]:
    """Remove or merge one token after every block but the last, by each rule; return means over places and both sides.

    Args:
        image: (1, C, H, W), normalised.
        most: the most places per side, evenly spread; None: all.
    """
    run = list(walk(dense, dense.embed(image)))
    out = []
    for merging, following in pairwise(run):
        c = measured(dense.config.model.cls)
        every = singles(merging.left.x.shape[1], dense.config.model.cls, most)
        for rule in RULES:
            merged, cls = [], []
            for side in range(len(REACHING_SIDES)):
                at_cls = state_at(following.scan, side, [c])
                for part in _portions(dense, [single for single in every if single.side == side]):
                    state = merge_singles(merging, rule, part)
                    _, taps = dense.blocks[following.number](state, TAPS)
                    scan = Scan.of(state, taps)
                    was = state_at(following.scan, side, [single.into for single in part])  # (S, E, N)
                    now = state_at(scan, side, [single.merged_into for single in part])  # (S, E, N)
                    merged.append(change(was, now))
                    cls.append(change(at_cls, state_at(scan, side, [measured(state.cls)] * len(part))))
            out.append(Loss(merging.number, rule, torch.cat(merged).mean().item(), torch.cat(cls).mean().item()))
    return out


@dataclass(frozen=True)
class Influence:
    """LDSD of one token, by block: the change of the class token's state if that token is zero as the block begins.

    LDSD is the paper's measure of how strongly a token reaches the class token over a distance (equation 7).
    """

    side: str
    distance: int
    blocks: tuple[float, ...]


def influence(dense: ViM, image: Tensor, most: int | None = None) -> list[Influence]:
    """Return the influence of each token on the class token's state, from the left border to the right one.

    Args:
        image: (1, C, H, W), normalised.
        most: the most tokens per side, evenly spread; None: all.
    """
    tokens, c = dense.config.model.tokens, measured(dense.config.model.cls)
    sides = [some(range(c), most), some(range(c + 1, tokens), most)]
    columns: list[list[Tensor]] = [[], []]
    for trace in walk(dense, dense.embed(image)):
        x = trace.entered.stream  # (1, L, D)
        for side, chosen in enumerate(sides):
            # The empty tensor makes `cat` work for a side without tokens, as before a class token at the head.
            at_cls, changes = state_at(trace.scan, side, [c]), [x.new_empty(0)]
            for part in _portions(dense, chosen):
                without = x.repeat(len(part), 1, 1)  # (S, L, D)
                without[torch.arange(len(part)), torch.tensor(part)] = 0
                # Each block starts from the dense model's own stream: a token's influence on one block, not on all
                # before.
                state = State(without, cls=dense.config.model.cls)
                _, taps = dense.blocks[trace.number](state, TAPS)
                changes.append(change(at_cls, state_at(Scan.of(state, taps), side, [c] * len(part))))
            columns[side].append(torch.cat(changes))
    return [
        Influence(name, abs(position - c), tuple(row.tolist()))
        for name, chosen, blocks in zip(REACHING_SIDES, sides, columns, strict=True)
        for position, row in zip(chosen, torch.stack(blocks, 1), strict=True)
    ]


def plan_change(was: Sequence[BlockTrace], now: Sequence[BlockTrace]) -> Tensor:
    """Return a plan's relative change of the class token's state in each block and direction, (depth, K).

    Args:
        was, now: traces of all blocks of one image, without the plan and with it.
    """
    return torch.stack(
        [
            torch.cat([change(*(_at_class(run, k) for run in pair)) for k in (FORWARD, BACKWARD)])
            for pair in zip(was, now, strict=True)
        ]
    )


def _at_class(trace: BlockTrace, direction: int) -> Tensor:
    return state_at(trace.scan, direction, [measured(trace.entered.cls)])


def groups_by_block(run: Sequence[BlockTrace]) -> tuple[Groups, ...]:
    """Return the original positions that each token holds as it enters each block of a run of one image."""
    groups: Groups = tuple((position,) for position in range(run[0].entered.x.shape[1]))
    out, last = [groups], None
    for trace in run[1:]:
        # A state keeps its last merge until the next one. The same object again means that nothing merged in between.
        if trace.entered.last_merge is not None and trace.entered.last_merge is not last:
            groups = follow(groups, *(index.flatten().tolist() for index in trace.entered.last_merge))
        last = trace.entered.last_merge
        out.append(groups)
    return tuple(out)
