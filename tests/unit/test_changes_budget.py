"""What tools/mutate.py changed in budget.py and fit.py and no other test of these files saw."""

import pytest
import torch

from stm.errors import InfeasibleBudget, UsageError
from stm.merging import budget
from stm.merging.budget import Capacity, paper_saving, steps_for_rate, steps_for_saving
from stm.merging.fit import CostTable, Group, as_schedule


def test_what_a_model_holds() -> None:
    assert [Capacity(9, 8, (n,)).most_stages() for n in (1, 2, 4, 5, 8, 9)] == [0, 1, 2, 3, 3, 4]
    assert Capacity(9, 8, (4, 4)).patches == 8
    assert Capacity(9, 8, (4, 4)).staged_saving((4,)) == 2 * 2 * 4 and Capacity(9, 8, (4, 4)).staged_saving(()) == 0


@pytest.mark.parametrize(
    ("side", "rate", "r", "problem"),
    [
        (8, 0.01, None, "takes less than one merge step"),
        (2, 0.01, 1, "takes less than one merge step"),
        (8, 0.01, 5, "takes more than half of the tokens of a side"),
        (8, 0.99, None, "takes more than half of the tokens of a side"),
        (8, 0, None, "is 0, expected a number above 0"),
    ],
)
def test_why_a_rate_is_refused(side: int, rate: float, r: int | None, problem: str) -> None:
    with pytest.raises(UsageError, match=f"rate {rate} {problem}|rate {problem}"):
        steps_for_rate(Capacity(2 * side + 1, 8, (side, side)), rate, r)


def test_the_nearest_possible_rate() -> None:
    with pytest.raises(InfeasibleBudget) as caught:
        steps_for_rate(Capacity(17, 8, (8, 8)), 0.99)
    assert caught.value.best is not None and f"the largest {caught.value.best:.2f}" in str(caught.value)


def test_one_side_goes_as_far_as_half_of_it() -> None:
    assert steps_for_rate(Capacity(5, 2, (4,)), 0.9) == (2, 1)


def test_a_side_of_one_token_saves_nothing() -> None:
    with pytest.raises(InfeasibleBudget, match="the largest possible saving is 0"):
        steps_for_saving(Capacity(3, 50, (1, 1)), 0.001)


def test_the_paper_s_sides_of_an_odd_number_of_patches() -> None:
    """Eleven are five and six: two steps of two would take more than half of the five."""
    assert paper_saving(Capacity(12, 9, (11,)), 0.4) == 2 * 2 * 8
    with pytest.raises(InfeasibleBudget, match="more than half"):
        paper_saving(Capacity(12, 9, (11,)), 0.7)


def test_where_stages_are_tried() -> None:
    """The distance is at least one block, and as many stages are tried as find a pair."""
    assert [placed[0] for placed in budget._stage_choices(Capacity(17, 8, (8, 8)))] == [(1,), (1, 3), (1, 2, 3)]
    assert len(budget._stage_choices(Capacity(9, 8, (4, 4)))) == 2


def table(depth: int, parts: list[range], costs: dict[Group, float], largest: int = 4) -> CostTable:
    """Costs in units of the largest, which is that of all that is left out: 1."""
    cost = torch.ones(depth - 1, parts[-1].stop, largest + 1, dtype=torch.float64)
    for group, value in costs.items():
        cost[group.before - 1, group.start, group.size] = value
    return CostTable(cost, parts)


def test_a_token_alone_costs_nothing() -> None:
    costs = table(3, [range(4)], {Group(0, 2, 1): 0.25})
    assert [costs.cost(Group(0, size, 1)) for size in (1, 2, 3)] == [0, 0.25, 1]


@pytest.mark.parametrize(
    ("old", "new", "depth", "layers", "largest"),
    [
        (Group(2, 2, 1), Group(1, 3, 1), 3, 4, 3),  # one more on the left, as many as there may be
        (Group(1, 2, 1), Group(0, 3, 1), 3, 4, 3),  # up to the border
        (Group(2, 2, 1), Group(2, 3, 1), 3, 4, 3),  # one more on the right, up to the class token
        (Group(7, 2, 1), Group(6, 3, 1), 3, 4, 3),  # on the second side
        (Group(2, 2, 2), Group(2, 2, 1), 4, 3, 2),  # a block earlier
        (Group(2, 3, 1), Group(2, 3, 2), 4, 4, 3),  # a block later
        (Group(2, 3, 1), Group(2, 2, 1), 4, 3, 3),  # one less on the right
        (Group(2, 3, 1), Group(3, 2, 1), 4, 3, 3),  # one less on the left
    ],
)
def test_the_cheapest_change_is_taken(old: Group, new: Group, depth: int, layers: int, largest: int) -> None:
    costs = table(depth, [range(5), range(6, 9)], {old: 0.5, new: 0.25}, largest)
    assert costs.adjusted([old], layers) == [new]


def test_a_change_is_judged_per_token_layer() -> None:
    """Two token-layers for 0.3 are cheaper than one for 0.2."""
    first, second = Group(1, 2, 1), Group(5, 2, 2)
    costs = table(3, [range(8)], {first: 0, second: 0, Group(1, 3, 1): 0.3, Group(5, 2, 1): 0.2})
    assert costs.adjusted([first, second], 5) == [Group(1, 3, 1), second]


def test_what_a_change_costs_is_a_difference() -> None:
    """From 0.2 to 0.3 is less than from nothing to 0.2, and gains more."""
    first, second = Group(1, 2, 1), Group(5, 2, 2)
    costs = table(3, [range(8)], {first: 0.2, second: 0, Group(1, 3, 1): 0.3, Group(5, 2, 1): 0.2})
    assert costs.adjusted([first, second], 5) == [Group(1, 3, 1), second]


def test_a_new_pair_merges_before_the_last_block() -> None:
    assert table(4, [range(2)], {}).adjusted([], 1) == [Group(0, 2, 3)]


def test_the_nearest_of_two_class_tokens_decides_which_member_stays() -> None:
    (step,) = as_schedule([Group(5, 2, 1)], 10, (2, 7)).steps
    assert step.absorb == ((5, 6),)
    (step,) = as_schedule([Group(3, 2, 1)], 10, (2, 7)).steps
    assert step.absorb == ((4, 3),)


@pytest.mark.parametrize(
    ("tokens", "groups", "cheap", "expected"),
    [
        (2, [], Group(0, 2, 1), Group(0, 2, 1)),
        (5, [Group(1, 2, 1)], Group(0, 2, 1), Group(3, 2, 1)),  # the cheap one overlaps
        (6, [Group(2, 2, 1)], Group(0, 2, 1), Group(0, 2, 1)),
        (6, [Group(2, 2, 1)], Group(4, 2, 1), Group(4, 2, 1)),
    ],
)
def test_a_new_pair_is_of_tokens_that_are_free(tokens: int, groups: list[Group], cheap: Group, expected: Group) -> None:
    costs = table(2, [range(tokens)], {cheap: 0.25}, largest=2)
    assert costs.adjusted(groups, len(groups) + 1) == sorted([*groups, expected])
