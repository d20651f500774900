"""The fitted schedule: cuts against brute force over all of them, budgets, and what becomes of groups in groups."""

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stm.merging.costs import never_dearer
from stm.merging.fit import CostTable, Group, as_schedule, at_price
from stm.merging.regroup import Regrouping

LARGEST = 16


def table_of(seed: int, depth: int, parts: list[range], *, decades: float = 3.0) -> CostTable:
    return CostTable(costs_of(seed, depth, parts, decades=decades), parts)


def costs_of(seed: int, depth: int, parts: list[range], *, decades: float = 3.0) -> Tensor:
    """Random costs that do not increase in t: positions and blocks differ by orders of magnitude."""
    g = torch.Generator().manual_seed(seed)
    tokens = max(part.stop for part in parts)
    spread = (10 ** (decades * torch.rand(tokens, generator=g, dtype=torch.float64)))[None, :, None]
    sizes = torch.arange(LARGEST + 1).double()
    return never_dearer(torch.rand(depth - 1, tokens, LARGEST + 1, generator=g, dtype=torch.float64) * spread * sizes)


def cuts_of(part: range, depth: int) -> Iterator[list[Group]]:
    """Every cut of a side, with every block for every group."""
    for borders in itertools.product((False, True), repeat=max(len(part) - 1, 0)):
        edges = [part.start, *(part.start + 1 + i for i, border in enumerate(borders) if border), part.stop]
        sizes = [(start, end - start) for start, end in itertools.pairwise(edges)]
        larger = [(start, size) for start, size in sizes if size > 1]
        for blocks in itertools.product(range(1, depth), repeat=len(larger)):
            yield [Group(start, size, before) for (start, size), before in zip(larger, blocks, strict=True)]


def layers_of(groups: list[Group], tokens: int, depth: int) -> int:
    """Token-layers by following each token: the members of a group enter its first blocks, one of them the others."""
    return tokens * depth - sum((group.size - 1) * (depth - group.before) for group in groups)


@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(2, 4), st.floats(-5, 1))
def test_the_cut_is_the_best_of_all_cuts(seed: int, tokens: int, depth: int, exponent: float) -> None:
    table, price = table_of(seed, depth, [range(tokens)]), 10**exponent

    def total(groups: list[Group]) -> float:
        return sum(map(table.cost, groups)) + price * layers_of(groups, tokens, depth)

    found = table.cut(price)
    best = min(map(total, cuts_of(range(tokens), depth)))
    assert total(found) == pytest.approx(best, rel=1e-12)
    assert table.saved(found) == tokens * depth - layers_of(found, tokens, depth)


def test_both_sides_are_cut_alone() -> None:
    left, right = range(5), range(6, 12)
    cost = costs_of(3, 4, [left, right])
    both = CostTable(cost, [left, right])
    for price in (1e-4, 1e-3, 1e-2, 0.1):
        # one unit for all, so that a price means the same
        expected = sorted(
            group
            for side in (left, right)
            for group in CostTable(cost, [side]).cut(price * both.unit / unit(cost, side))
        )
        assert both.cut(price) == expected
        assert not any(5 in group.positions for group in both.cut(price))


def unit(cost: Tensor, side: range) -> float:
    return CostTable(cost, [side]).unit


def test_groups_that_pass_a_side_are_never_read() -> None:
    cost = costs_of(0, 4, [range(5), range(6, 12)])
    poisoned = cost.clone()
    for part in (range(5), range(6, 12)):
        for start in range(12):
            for size in range(2, LARGEST + 1):
                if not (start in part and start + size <= part.stop) and not any(
                    start in other and start + size <= other.stop for other in (range(5), range(6, 12))
                ):
                    poisoned[:, start, size] = 1e12
    plain, other = (CostTable(values, [range(5), range(6, 12)]) for values in (cost, poisoned))
    assert plain.unit == other.unit
    assert all(plain.cut(price) == other.cut(price) for price in (1e-3, 1e-2, 0.1))


def test_of_equal_choices_the_smaller_group_and_then_the_earlier_block() -> None:
    def cut(costs: dict[tuple[int, int], float]) -> list[Group]:
        """The cut of four tokens at a price of 1/4, by the costs per block and size; what is left out costs 8."""
        cost = torch.full((3, 4, LARGEST + 1), 8.0, dtype=torch.float64)
        for (before, size), value in costs.items():
            cost[before - 1, :, size] = value
        return CostTable(cost, [range(4)]).cut(0.25 / 8)  # 8 is the unit; binary fractions keep the sums exact

    # a pair saves 3, 2 or 1 token-layers, and costs what the price pays for them: single tokens stay
    tie = {(1, 2): 0.75, (2, 2): 0.5, (3, 2): 0.25}
    assert cut(tie) == []
    # a little cheaper before every block: the earliest is taken
    assert cut({key: value - 0.125 for key, value in tie.items()}) == [Group(0, 2, 1), Group(2, 2, 1)]
    # four tokens save 9 token-layers, two pairs 6; the price pays the difference: the smaller groups are taken
    assert cut({(1, 2): 0.25, (1, 4): 0.5 + 0.75}) == [Group(0, 2, 1), Group(2, 2, 1)]
    assert cut({(1, 2): 0.25, (1, 4): 0.5 + 0.625}) == [Group(0, 4, 1)]


@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 16, 17, 33])
def test_the_most_that_can_be_saved(tokens: int) -> None:
    """Groups of at most sixteen, all before block 1: one token stays of each."""
    depth = 5
    expected = (tokens - math.ceil(tokens / LARGEST)) * (depth - 1)
    assert table_of(0, depth, [range(tokens)]).most() == expected
    assert table_of(0, depth, [range(tokens), range(tokens + 1, tokens + 3)]).most() == expected + depth - 1
    assert CostTable(torch.zeros(depth - 1, tokens, LARGEST + 1, dtype=torch.float64), []).most() == 0


SIDES = {"both": [range(24), range(25, 50)], "left": [range(24)], "right": [range(25, 50)], "head": [range(1, 50)]}


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from(sorted(SIDES)), st.integers(2, 24), st.floats(0.1, 0.45))
def test_a_budget_is_reached(seed: int, sides: str, depth: int, saving: float) -> None:
    """However far the costs are apart. A change of one group can be as coarse as the blocks after it."""
    table = table_of(seed, depth, SIDES[sides], decades=seed % 12)
    layers = min(round(saving * 50 * depth), table.most())
    groups = table.fitted(layers)
    assert abs(table.saved(groups) - layers) <= depth / 2
    schedule = as_schedule(groups, 50, 0 if sides == "head" else 24)
    assert 50 * depth - sum(schedule.tokens_per_block(depth)) == table.saved(groups)


@pytest.mark.parametrize("saving", [0.1, 0.22, 0.45])
@pytest.mark.parametrize("decades", [0, 3, 12])
def test_a_budget_of_197_tokens_is_reached_within_half_a_point(saving: float, decades: int) -> None:
    table = table_of(decades, 24, [range(98), range(99, 197)], decades=decades)
    layers = round(saving * 197 * 24)
    assert abs(table.saved(table.fitted(layers)) - layers) <= 0.005 * 197 * 24


@pytest.mark.parametrize("layers", range(0, 46, 3))
def test_small_budgets_and_tables_of_nothing_but_zeros(layers: int) -> None:
    """If no price reaches a budget, pairs before the last block do; what costs nothing is no reason to merge more."""
    zeros = CostTable(torch.zeros(5, 20, LARGEST + 1, dtype=torch.float64), [range(9), range(10, 20)])
    assert abs(zeros.saved(zeros.fitted(layers)) - layers) <= 3
    steep = table_of(1, 6, [range(9), range(10, 20)], decades=30)
    assert abs(steep.saved(steep.fitted(layers)) - layers) <= 3


def test_the_nearest_cut_lies_on_the_hull_and_the_adjusted_one_nearer() -> None:
    table = table_of(5, 6, SIDES["both"])
    gaps = []
    for layers in range(30, 130):
        nearest, fitted = table.nearest(layers), table.fitted(layers)
        gaps.append(abs(table.saved(nearest) - layers))
        assert abs(table.saved(fitted) - layers) <= min(3, gaps[-1])
        if not gaps[-1]:
            assert fitted == nearest
    assert max(gaps) > 3  # or nothing was adjusted


def test_of_two_cuts_as_near_the_one_that_saves_more() -> None:
    def solve(price: float) -> list[Group]:
        return [Group(0, 4, 1)] if price > 1e-3 else [Group(0, 2, 1)]

    table = table_of(0, 3, [range(8)])  # 6 and 2 token-layers
    assert at_price(solve, table.saved, 4)[1] == [Group(0, 4, 1)]
    assert at_price(solve, table.saved, 3)[1] == [Group(0, 2, 1)]
    assert at_price(solve, table.saved, 1)[1] == [Group(0, 2, 1)]


@given(st.integers(0, 10**6), st.integers(20, 120))
def test_adjusting_leaves_nested_groups_alone(seed: int, layers: int) -> None:
    table = table_of(seed, 6, SIDES["both"])
    outer, inner = Group(4, 6, 4), [Group(4, 2, 1), Group(6, 3, 2)]
    free = [Group(12, 2, 3), Group(30, 4, 2), Group(40, 2, 5)]
    groups = table.adjusted([outer, *inner, *free], layers)
    assert {outer, *inner} <= set(groups)
    others = [group for group in groups if group not in (outer, *inner)]
    taken = [position for group in [outer, *others] for position in group.positions]
    assert len(taken) == len(set(taken))  # nothing grew into another group
    before = table.saved([outer, *inner, *free])
    assert abs(table.saved(groups) - layers) <= abs(before - layers)
    schedule = as_schedule(groups, 50, 24)
    assert 50 * 6 - sum(schedule.tokens_per_block(6)) == table.saved(groups)


def test_a_group_grows_into_the_free_position_beside_it() -> None:
    """Of the positions 0 to 7, (1, 2) and (4, 5) are held: 3 is free to both, and 2, behind it, is not."""
    groups = {Group(1, 2, 1), Group(4, 2, 1)}
    larger = {each.new for each in table_of(0, 3, [range(8)])._changes(groups, set()) if each.new.size == 3}
    assert larger == {Group(0, 3, 1), Group(1, 3, 1), Group(3, 3, 1), Group(4, 3, 1)}
    groups = {Group(1, 2, 1), Group(3, 2, 1)}  # nothing between
    larger = {each.new for each in table_of(0, 3, [range(8)])._changes(groups, set()) if each.new.size == 3}
    assert larger == {Group(0, 3, 1), Group(3, 3, 1)}


def test_groups_of_groups_become_steps() -> None:
    """Of 9 tokens, class token at 4: two pairs before block 1, their union and a pair on the right before block 3."""
    groups = [Group(0, 4, 3), Group(0, 2, 1), Group(2, 2, 1), Group(6, 3, 3)]
    schedule = as_schedule(groups, 9, 4)
    assert schedule.groups == (
        ((0,), (1,), (2,), (3,), (4,), (5,), (6,), (7,), (8,)),
        ((0, 1), (2, 3), (4,), (5,), (6,), (7,), (8,)),
        ((0, 1, 2, 3), (4,), (5,), (6, 7, 8)),
    )
    assert [(step.after, step.absorb) for step in schedule.steps] == [
        (0, ((0, 1), (2, 3))),
        (2, ((0, 1), (5, 4), (6, 4))),
    ]  # the member nearest to the class token absorbs: the last on its left, the first on its right
    assert schedule.cls_per_block(5) == (4, 2, 2, 1, 1)


def test_no_groups_are_no_steps() -> None:
    assert as_schedule([], 9, 4).steps == ()


def random_effects(seed: int, depth: int, tokens: int, probes: int = 6) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    out = torch.randn(probes, depth - 1, tokens, LARGEST + 1, generator=g)
    out[..., :2] = 0  # a group of one changes nothing
    return out


def unions_of(tokens: list[Group]) -> Iterator[list[tuple[list[Group], Group | None]]]:
    """Every way to join runs of neighbouring tokens of a side; a run of one stays what it is."""
    for borders in itertools.product((False, True), repeat=len(tokens) - 1):
        edges = [0, *(i + 1 for i, border in enumerate(borders) if border), len(tokens)]
        yield [(tokens[a:b], None) for a, b in itertools.pairwise(edges)]


@given(st.integers(0, 10**6), st.floats(-2.5, 0))
def test_one_regrouping_is_the_best_of_all(seed: int, exponent: float) -> None:
    """Cost and price of every union by the definition: the mean square of the union's effect less its parts'."""
    depth, tokens, price = 4, 6, 10**exponent
    effects = random_effects(seed, depth, tokens)
    table = CostTable(never_dearer(effects.double().square().mean(0)), [range(tokens)])
    regrouping = Regrouping(table, effects)
    parts = [Group(0, 2, 1), Group(2, 1, 0), Group(3, 2, 2), Group(5, 1, 0)]

    def effect(group: Group) -> Tensor:
        if group.size == 1:
            return torch.zeros(len(effects))
        return effects[:, group.before - 1, group.start, group.size] / table.unit**0.5

    def worth(run: list[Group], before: int) -> float:
        union = Group(run[0].start, sum(part.size for part in run), before)
        difference = effect(union) - torch.stack([effect(part) for part in run]).sum(0)
        return float(difference.square().mean()) - price * (len(run) - 1) * (depth - before)

    def best(run: list[Group]) -> float:
        later = range(max(part.before for part in run) + 1, depth)
        return min((worth(run, before) for before in later), default=math.inf) if len(run) > 1 else 0.0

    expected = min(sum(best(run) for run, _ in joined) for joined in unions_of(parts))
    found = regrouping._joined(parts, price)
    total = 0.0
    for token in found:
        run = [part for part in parts if part.start in token.positions]
        assert sum(part.size for part in run) == token.size
        total += worth(run, token.before) if len(run) > 1 else 0.0
        assert len(run) > 1 or run == [token]
        assert len(run) == 1 or token.before > max(part.before for part in run)
    assert total == pytest.approx(expected, rel=1e-4, abs=1e-6)


@settings(max_examples=8)
@given(st.integers(0, 10**6), st.floats(0.1, 0.4))
def test_regrouped_schedules_are_schedules(seed: int, saving: float) -> None:
    depth = 6
    effects = random_effects(seed, depth, 50)
    table = CostTable(never_dearer(effects.double().square().mean(0)), SIDES["both"])
    layers = round(saving * 50 * depth)
    groups = Regrouping(table, effects).fitted(layers)
    schedule = as_schedule(groups, 50, 24)  # refuses what is no schedule
    assert 50 * depth - sum(schedule.tokens_per_block(depth)) == table.saved(groups)
    assert all(size <= LARGEST for sizes in schedule.sizes for size in sizes)
    assert len({(group.start, group.size) for group in groups}) == len(groups)
