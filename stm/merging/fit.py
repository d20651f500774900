"""The fitted schedule: which neighbours become one token, and before which block, so that a budget costs least.

Each side of a class token is cut into groups of 1 to 16 neighbours. A group of two or more merges at once, before
one block t: n tokens enter the first t blocks, one token the others. For a price per token-layer, a dynamic programme
over the positions finds the cut of the smallest cost plus price; a bisection over the price finds the budget.

The costs come from stm/merging/costs.py. Here are positions and numbers only.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from stm.merging.schedule import Fixed, Schedule, Step, fixed

_BISECTIONS = 60
# Prices per token-layer, in units of the largest cost. Between the first and the last blocks of some models lie twenty
# orders of magnitude.
_LOWEST, _HIGHEST = 1e-30, 1e4


@dataclass(frozen=True, order=True)
class Group:
    """Neighbours that become one token.

    Args:
        start: the first position, before any merge.
        size: the number of positions.
        before: the block before which they merge.
    """

    start: int
    size: int
    before: int

    @property
    def positions(self) -> range:
        """The positions of its members."""
        return range(self.start, self.start + self.size)


class CostTable:
    """What each merge costs, and the cuts that cost least.

    Args:
        cost: (depth - 1, L, n), float64: [t - 1, i, n] of the n neighbours from position i before block t, not
            increasing in t. Groups that hold the class token are never read.
        parts: the positions of each side of the class token that may merge, ascending.
    """

    def __init__(self, cost: Tensor, parts: Sequence[range]) -> None:
        self.depth, self.tokens, self.largest_group = cost.shape[0] + 1, cost.shape[1], cost.shape[2] - 1
        self.parts = tuple(part for part in parts if part)
        cost = cost * _within(self.parts, cost)
        # The level of the costs differs by orders of magnitude between models. The prices are the same for all.
        self.unit = float(cost.max()) or 1.0
        self._cost = cost / self.unit
        before, size = torch.arange(1, self.depth), torch.arange(cost.shape[2])
        self._layers = (before[:, None] * size + (self.depth - before)[:, None]).double()  # (depth - 1, n)

    def cost(self, group: Group) -> float:
        """Return the cost of a group in units of the largest; nothing if it is one token."""
        return float(self._cost[group.before - 1, group.start, group.size]) if group.size > 1 else 0.0

    def cut(self, price: float) -> list[Group]:
        """Return the groups of two or more whose cost plus price is smallest.

        Of equal choices the smaller group is taken, and then the earlier block.

        Args:
            price: per token-layer, in units of the largest cost.
        """
        total, block = (self._cost + price * self._layers[:, None]).min(0)  # (L, n): of the best block
        totals, blocks = total.tolist(), (block + 1).tolist()
        return sorted(group for part in self.parts for group in self._cut(part, price, totals, blocks))

    def _cut(self, part: range, price: float, totals: list[list[float]], blocks: list[list[int]]) -> Iterator[Group]:
        """Yield the groups of one side, from its end to its start."""
        alone = price * self.depth  # a token that never merges enters every block
        best, last = [0.0], [0]  # per number of first positions: the smallest total, and the size of the last group
        for end in range(1, len(part) + 1):
            value, size = best[end - 1] + alone, 1
            for n in range(2, min(end, self.largest_group) + 1):
                candidate = best[end - n] + totals[part[end - n]][n]
                if candidate < value:
                    value, size = candidate, n
            best.append(value)
            last.append(size)
        end = len(part)
        while end:
            start, size = part[end - last[end]], last[end]
            if size > 1:
                yield Group(start, size, blocks[start][size])
            end -= size

    def saved(self, groups: Iterable[Group]) -> int:
        """Return the token-layers that groups save; see `as_schedule` for groups that hold others."""
        tokens, saved = set(range(self.tokens)), 0
        for group in sorted(groups, key=_by_block):
            gone = [position for position in group.positions if position in tokens][1:]
            saved += len(gone) * (self.depth - group.before)
            tokens.difference_update(gone)
        return saved

    def most(self) -> int:
        """Return the most token-layers that groups can save: those of the largest groups before block 1."""
        free = CostTable(torch.zeros_like(self._cost), self.parts)
        return self.saved(free.cut(1.0))

    def nearest(self, layers: int) -> list[Group]:
        """Return the cut whose saving is nearest to so many token-layers; of two, the one that saves more.

        A price reaches only the cuts on the convex hull of cost over saving, so the saving may be some groups off.
        """
        return at_price(self.cut, self.saved, layers)[1]

    def fitted(self, layers: int) -> list[Group]:
        """Return the nearest cut, adjusted until its saving is as near as one more change can bring it."""
        return self.adjusted(self.nearest(layers), layers)

    def adjusted(self, groups: Iterable[Group], layers: int) -> list[Group]:
        """Return groups with a saving nearer to `layers`, by small changes.

        Each change is the one that costs least per token-layer gained, or that relieves most per token-layer given up.
        Groups that hold others, and those that are held, stay as they are. A new pair merges only if no change of the
        groups helps, because the price has had its say about every pair.
        """
        groups = set(groups)
        held = {one for one in groups for other in groups if one != other and set(one.positions) & set(other.positions)}
        gap = layers - self.saved(groups)
        while gap:
            change = self._best(self._changes(groups - held, held), gap) or self._best(self._new_pairs(groups), gap)
            if change is None:
                break
            groups -= {change.old}
            groups |= {change.new} if change.new.size > 1 else set()
            gap -= change.gained
        return sorted(groups)

    @staticmethod
    def _best(changes: Iterable["_Change"], gap: int) -> "_Change | None":
        """Return the cheapest change, per token-layer, of those that end nearer to a saving than they began."""
        useful = [
            (change.cost / abs(change.gained), change.old, change.new, change)
            for change in changes
            if (change.gained > 0) == (gap > 0) and abs(gap - change.gained) < abs(gap)
        ]
        return min(useful)[3] if useful else None

    def _new_pairs(self, groups: set[Group]) -> Iterator["_Change"]:
        """Yield the pairs that could merge before the last block."""
        taken = {position for group in groups for position in group.positions}
        for part in self.parts:
            for start in part[:-1]:
                if start not in taken and start + 1 not in taken:
                    alone, pair = (Group(start, size, self.depth - 1) for size in (1, 2))
                    yield _Change(alone, pair, self.cost(pair), self._gain(pair))

    def _gain(self, group: Group) -> int:
        """Return the token-layers that a group saves if it holds no other."""
        return (group.size - 1) * (self.depth - group.before)

    def _changes(self, groups: set[Group], held: set[Group]) -> Iterator["_Change"]:
        """Yield what can happen to one of the groups: one block or one position more or less, or none of it."""
        taken = {position for group in groups | held for position in group.positions}
        for old in groups:
            start, size, before = old.start, old.size, old.before
            part = next(part for part in self.parts if start in part)
            others = [Group(start, size, before - 1), Group(start, size, before + 1)]
            others += [Group(start, size - 1, before), Group(start + 1, size - 1, before), Group(start, 1, before)]
            others += [Group(start - 1, size + 1, before)] if start - 1 in part and start - 1 not in taken else []
            others += [Group(start, size + 1, before)] if start + size in part and start + size not in taken else []
            for new in others:
                gained = self._gain(new) - self._gain(old)
                if gained and 1 <= new.before < self.depth and new.size <= self.largest_group:
                    yield _Change(old, new, self.cost(new) - self.cost(old), gained)


class _Change(NamedTuple):
    """A group that becomes another: the cost that this adds, the token-layers that it gains. Of size 1, it is none."""

    old: Group
    new: Group
    cost: float
    gained: int


def at_price(
    solve: Callable[[float], list[Group]],
    saved: Callable[[list[Group]], int],
    layers: int,
    *,
    low: float = _LOWEST,
    high: float = _HIGHEST,
    bisections: int = _BISECTIONS,
) -> tuple[float, list[Group]]:
    """Return the price whose groups save nearest to `layers` token-layers, and these groups.

    Bisection halves the logarithm of the price, because costs span many orders of magnitude. Of two that are as near,
    the groups that save more are taken.

    Args:
        solve: the groups of a price; a higher one saves more.
        saved: the token-layers that groups save.
    """
    best: tuple[float, list[Group]] = (low, [])
    for _ in range(bisections):
        price = (low * high) ** 0.5
        groups = solve(price)
        gap, nearest = saved(groups) - layers, saved(best[1]) - layers
        if (abs(gap), gap < 0) < (abs(nearest), nearest < 0):
            best = price, groups
        low, high = (price, high) if gap < 0 else (low, price)
    return best


def _within(parts: Iterable[range], cost: Tensor) -> Tensor:
    """Return 1 for each group (L, n) that lies within one side, else 0."""
    out = torch.zeros(cost.shape[1:], dtype=cost.dtype)
    size = torch.arange(cost.shape[2])
    for part in parts:
        end = torch.tensor(list(part))[:, None] + size
        out[part.start : part.stop] = (end <= part.stop).to(cost.dtype)
    return out


def _by_block(group: Group) -> tuple[int, int]:
    return group.before, group.start


def as_schedule(groups: Iterable[Group], tokens: int, cls: Fixed) -> Schedule:
    """Return groups as a schedule. The member nearest to the group's class token, the nearest one, absorbs the others.

    Without a class token that is the first member.

    Args:
        groups: a group may hold whole groups that merge earlier; it then merges what is left of them.
        tokens: L, class token included.
        cls: the position of the class token, or the positions of several.
    """
    ordered = sorted(groups, key=_by_block)
    sequence, steps = list(range(tokens)), []  # the original positions that are still tokens
    for before in sorted({group.before for group in ordered}):
        index = {position: number for number, position in enumerate(sequence)}
        into: dict[int, int] = {}  # from each absorbed position to the one that absorbs it
        for group in ordered:
            if group.before == before:
                members = [position for position in group.positions if position in index]
                # of all members, as of the first
                nearest = min(fixed(cls), key=lambda c: abs(c - group.start), default=-1)
                kept = members[-1] if group.start < nearest else members[0]
                into |= {position: kept for position in members if position != kept}
        steps.append(Step(before - 1, tuple(sorted((index[source], index[kept]) for source, kept in into.items()))))
        sequence = [position for position in sequence if position not in into]
    return Schedule(tokens, cls, tuple(steps))
