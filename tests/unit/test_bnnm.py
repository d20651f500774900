"""Which token absorbs which: the orders on sides small enough to work out by hand, and what holds for all of them.

The hand-worked lists follow the wording of the orders; tests/golden/test_schedules.py compares whole schedules with an
independent reference.
"""

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stm.merging.bnnm import gradual, staged
from stm.merging.schedule import Schedule, Step

GRADUAL = ("border", "sweep", "even", "outward")


def _absorbed(schedule: Schedule) -> list[list[tuple[int, int]]]:
    return [list(step.absorb) for step in schedule.steps]


@st.composite
def asked(draw: st.DrawFn) -> tuple[int, int, str, int, int, str]:
    """Tokens, class token, order, r, K and sides, with a token on a side that takes part."""
    tokens = draw(st.integers(2, 90))
    cls = draw(st.sampled_from([0, (tokens - 1) // 2, tokens - 1]) | st.integers(0, tokens - 1))
    sides = draw(st.sampled_from(["both", "left", "right"]))
    assume((cls > 0 and sides != "right") or (cls < tokens - 1 and sides != "left"))
    return tokens, cls, draw(st.sampled_from(GRADUAL)), draw(st.integers(1, 9)), draw(st.integers(1, 8)), sides


def _side_sizes(tokens: int, cls: int, sides: str) -> list[int]:
    sizes = {"left": cls, "right": tokens - 1 - cls}
    return [n for side, n in sizes.items() if n and sides in (side, "both")]


def test_border_always_merges_the_two_outermost_groups() -> None:
    # With r = 2 three tokens become one in a step; the merged one goes on to the next.
    schedule = gradual(9, 8, "border", 2, 2)
    assert _absorbed(schedule) == [[(0, 2), (1, 2)], [(0, 2), (1, 2)]]
    assert schedule.sizes[-1] == (5, 1, 1, 1, 1)


def test_sweep_takes_the_pairs_of_a_pass_from_the_border() -> None:
    schedule = gradual(8, 7, "sweep", 1, 4)  # of 0..6: (0, 1), (2, 3), (4, 5); 6 stays; then a new pass
    assert _absorbed(schedule) == [[(0, 1)], [(1, 2)], [(2, 3)], [(0, 1)]]
    assert schedule.groups[3] == ((0, 1), (2, 3), (4, 5), (6,), (7,))
    assert schedule.groups[4] == ((0, 1, 2, 3), (4, 5), (6,), (7,))


def test_even_takes_the_pairs_by_their_reversed_bits() -> None:
    for pairs, order in {8: [0, 4, 2, 6, 1, 5, 3, 7], 5: [0, 4, 2, 1, 3], 1: [0]}.items():
        schedule = gradual(2 * pairs + 1, 2 * pairs, "even", 1, pairs)
        now, taken = list(range(2 * pairs)), []
        for ((source, _),) in _absorbed(schedule):
            taken.append(now.pop(source) // 2)
        assert taken == order


def test_outward_takes_the_pairs_from_the_class_token() -> None:
    schedule = gradual(6, 5, "outward", 1, 3)  # of 0..4: (2, 3), (0, 1); 4, the odd one next to the class token, stays
    assert _absorbed(schedule) == [[(2, 3)], [(0, 1)], [(0, 1)]]
    assert schedule.groups[3] == ((0, 1, 2, 3), (4,), (5,))


def test_staged_takes_every_pair_at_once() -> None:
    schedule = staged(12, 5, (2, 4))  # 5 tokens on the left, 6 on the right
    assert [step.after for step in schedule.steps] == [1, 3]
    assert schedule.groups[1] == ((0, 1), (2, 3), (4,), (5,), (6, 7), (8, 9), (10, 11))
    assert schedule.groups[2] == ((0, 1, 2, 3), (4,), (5,), (6, 7), (8, 9, 10, 11))


def test_a_pass_may_end_inside_a_step() -> None:
    # (0, 1), (2, 3) is a pass of 0..4; the third merge of the step is the first of a new pass over 1, 3, 4.
    schedule = gradual(6, 5, "sweep", 3, 1)
    assert schedule.groups[1] == ((0, 1, 2, 3), (4,), (5,))


def test_a_source_whose_destination_is_absorbed_too_goes_to_the_last_destination() -> None:
    # 0 into 1, 2 into 3, then 1 into 3: all in one step, and three sources share one destination.
    assert _absorbed(gradual(6, 5, "sweep", 3, 1)) == [[(0, 3), (1, 3), (2, 3)]]
    assert _absorbed(gradual(6, 5, "border", 4, 1)) == [[(0, 4), (1, 4), (2, 4), (3, 4)]]


@pytest.mark.parametrize("order", GRADUAL)
def test_the_right_side_mirrors_the_left(order: str) -> None:
    left = gradual(21, 20, order, 3, 5)
    right = gradual(21, 0, order, 3, 5)
    assert right.groups == tuple(
        tuple(tuple(sorted(20 - i for i in group)) for group in reversed(groups)) for groups in left.groups
    )


@pytest.mark.parametrize("order", GRADUAL)
def test_with_the_class_token_at_the_head_both_is_right(order: str) -> None:
    assert gradual(17, 0, order, 2, 3, "both") == gradual(17, 0, order, 2, 3, "right")
    assert staged(17, 0, (2, 5), "both") == staged(17, 0, (2, 5), "right")


@given(asked())
def test_neighbours_are_absorbed_toward_the_class_token(case: tuple[int, int, str, int, int, str]) -> None:
    tokens, cls, order, r, steps, sides = case
    assume(r * steps < min(_side_sizes(tokens, cls, sides)))
    schedule = gradual(tokens, cls, order, r, steps, sides)
    now, at = tokens, cls
    for step in schedule.steps:
        left = [pair for pair in step.absorb if pair[0] < at]
        right = [pair for pair in step.absorb if pair[0] > at]
        assert len(left) == (r if cls and sides != "right" else 0)
        assert len(right) == (r if cls < tokens - 1 and sides != "left" else 0)
        assert all(source < destination < at for source, destination in left)
        assert all(at < destination < source for source, destination in right)
        gone = set(step.sources)
        for source, destination in step.absorb:  # nearest: nothing that stays lies between them
            between = range(min(source, destination) + 1, max(source, destination))
            assert gone.issuperset(between)
        now, at = now - len(step.absorb), at - len(left)
    for groups in schedule.groups:  # order is kept: every token holds a run of neighbours, the class token itself alone
        assert [position for group in groups for position in group] == list(range(tokens))
        assert (cls,) in groups
    assert sum(schedule.sizes[-1]) == tokens


@given(asked())
def test_a_side_too_small_for_the_steps_is_refused(case: tuple[int, int, str, int, int, str]) -> None:
    tokens, cls, order, r, steps, sides = case
    assume(r * steps >= min(_side_sizes(tokens, cls, sides)))
    with pytest.raises(ValueError, match=r"the step after block \d finds \d+ tokens to merge on a side, expected \d"):
        gradual(tokens, cls, order, r, steps, sides)


@given(st.integers(2, 200), st.data())
def test_stages_halve_each_side(tokens: int, data: st.DataObject) -> None:
    cls = data.draw(st.integers(0, tokens - 1))
    sides = data.draw(
        st.sampled_from([s for s in ("both", "left", "right") if max([0, *_side_sizes(tokens, cls, s)]) > 1] or [None])
    )
    assume(sides is not None)
    blocks = sorted(
        data.draw(
            st.sets(st.integers(1, 9), min_size=1, max_size=(max(_side_sizes(tokens, cls, sides)) - 1).bit_length())
        )
    )
    schedule = staged(tokens, cls, blocks, sides)
    left, right = cls, tokens - 1 - cls
    for (block, step), (before, after) in zip(
        zip(blocks, schedule.steps, strict=True), pairwise(schedule.sizes), strict=True
    ):
        assert step.after == block - 1
        merged_left, merged_right = (left // 2 if sides != "right" else 0), (right // 2 if sides != "left" else 0)
        assert len(before) - len(after) == merged_left + merged_right
        left, right = left - merged_left, right - merged_right
        assert len(after) == left + 1 + right


def test_a_stage_without_a_pair_is_refused() -> None:
    staged(9, 4, (1, 2))
    with pytest.raises(ValueError, match=r"step 2 \(after block 2\): absorbs nothing"):
        staged(9, 4, (1, 2, 3))


def test_steps_follow_the_first_blocks() -> None:
    schedule = gradual(197, 98, "border", 2, 20)
    assert [step.after for step in schedule.steps] == list(range(20))
    assert schedule.tokens_per_block(24) == (*range(197, 117, -4), *(117,) * 4)
    assert isinstance(schedule.steps[0], Step)
