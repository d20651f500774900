"""Properties of a schedule: what it derives, and what it refuses."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stm.merging.schedule import Schedule, Step


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """Any schedule that is allowed: every token but the class token is kept or absorbed by one that is kept."""
    tokens = now = draw(st.integers(1, 24))
    cls = at = draw(st.integers(0, tokens - 1))
    steps: list[Step] = []
    for _ in range(draw(st.integers(0, 4))):
        places = draw(st.permutations([place for place in range(now) if place != at]))
        sources = places[: draw(st.integers(0, len(places) - 1))] if places else []
        if not sources:
            continue
        kept = places[len(sources) :]
        absorb = tuple((source, draw(st.sampled_from(kept))) for source in sources)
        steps.append(Step((steps[-1].after if steps else -1) + draw(st.integers(1, 3)), absorb))
        now -= len(sources)
        at -= sum(source < at for source in sources)
    return Schedule(tokens, cls, tuple(steps))


def _depth(schedule: Schedule) -> int:
    return schedule.steps[-1].after + 2 if schedule.steps else 1


@given(schedules())
def test_no_token_is_lost_and_none_counted_twice(schedule: Schedule) -> None:
    for groups, sizes in zip(schedule.groups, schedule.sizes, strict=True):
        assert sorted(position for group in groups for position in group) == list(range(schedule.tokens))
        assert sizes == tuple(len(group) for group in groups)
        assert sum(sizes) == schedule.tokens


@given(schedules())
def test_the_class_token_stays_alone_where_the_schedule_says(schedule: Schedule) -> None:
    per_block = schedule.cls_per_block(_depth(schedule))
    entered = [0, *(step.after + 1 for step in schedule.steps)]
    for groups, block in zip(schedule.groups, entered, strict=True):
        assert groups[per_block[block]] == (schedule.cls,)


@given(schedules())
def test_a_step_acts_on_the_blocks_that_follow_it(schedule: Schedule) -> None:
    depth = _depth(schedule)
    per_block = schedule.tokens_per_block(depth)
    lost = {step.after: len(step.absorb) for step in schedule.steps}
    assert len(per_block) == depth
    assert per_block[0] == schedule.tokens
    assert [a - b for a, b in pairwise(per_block)] == [lost.get(block, 0) for block in range(depth - 1)]
    assert per_block[-1] == len(schedule.sizes[-1])
    schedule.check_depth(depth)


@given(schedules())
def test_savings_are_shares_of_token_layers(schedule: Schedule) -> None:
    depth = _depth(schedule)
    layers = sum(len(step.absorb) * (depth - 1 - step.after) for step in schedule.steps)
    assert schedule.saving(depth) == pytest.approx(layers / (depth * schedule.tokens))
    gone = schedule.tokens - len(schedule.sizes[-1])
    assert schedule.removed_share * (schedule.tokens - 1) == pytest.approx(gone)


def test_a_token_keeps_the_original_positions_it_stands_for() -> None:
    schedule = Schedule(5, 2, (Step(0, ((0, 1), (4, 3))), Step(3, ((2, 0),))))
    assert schedule.groups == (((0,), (1,), (2,), (3,), (4,)), ((0, 1), (2,), (3, 4)), ((0, 1, 3, 4), (2,)))
    assert schedule.tokens_per_block(5) == (5, 3, 3, 3, 2)
    assert schedule.cls_per_block(5) == (2, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        ((Step(0, ()),), "step 0 (after block 0): absorbs nothing"),
        ((Step(0, ((0, 5),)),), "0 into 5 points outside the 5 tokens"),
        ((Step(0, ((-1, 0),)),), "-1 into 0 points outside the 5 tokens"),
        ((Step(0, ((0, 2),)),), "0 into 2 touches the class token at 2"),
        ((Step(0, ((2, 1),)),), "2 into 1 touches the class token at 2"),
        ((Step(0, ((0, 1), (0, 3))),), "a token is absorbed twice"),
        ((Step(0, ((0, 1), (1, 3))),), "0 into 1, which is itself absorbed"),
        ((Step(0, ((0, 0),)),), "0 into 0, which is itself absorbed"),
        ((Step(-1, ((0, 1),)),), "step 0 (after block -1): expected a block after -1"),
        ((Step(1, ((0, 1),)), Step(1, ((0, 1),))), "step 1 (after block 1): expected a block after 1"),
        ((Step(0, ((0, 1),)), Step(1, ((0, 4),))), "0 into 4 points outside the 4 tokens"),
        ((Step(0, ((0, 1),)), Step(1, ((0, 1),))), "0 into 1 touches the class token at 1"),
    ],
)
def test_refusals_name_the_step(steps: tuple[Step, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Schedule(5, 2, steps)


@pytest.mark.parametrize("cls", [-1, 5])
def test_a_class_token_outside_is_refused(cls: int) -> None:
    with pytest.raises(ValueError, match=f"class token at {cls}, expected a position below the 5 tokens"):
        Schedule(5, cls)


def test_a_step_after_the_last_block_is_refused() -> None:
    schedule = Schedule(5, 2, (Step(3, ((0, 1),)),))
    schedule.check_depth(5)
    with pytest.raises(ValueError, match="a step after block 3: expected at most 2 of 4 blocks"):
        schedule.check_depth(4)
