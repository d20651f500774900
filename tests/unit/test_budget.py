"""What a rate, a saving or stages buy, and what is refused. Figures not derived here come from the reading of the
paper."""

from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stm.config import ModelConfig
from stm.errors import UsageError
from stm.merging.bnnm import DEFAULT_RATE, PlannedSchedule, plan_schedule

GRADUAL = ("border", "sweep", "even", "outward")
GRIDS = {17: 4, 50: 7, 65: 8, 197: 14, 730: 27}  # patches along a side, by tokens


def _model(tokens: int = 197, depth: int = 24, class_token: str = "middle") -> ModelConfig:
    return ModelConfig(
        image_size=GRIDS[tokens], patch=1, stride=1, d_model=8, depth=depth, dt_rank=1, class_token=class_token
    )


def _r_and_steps(chosen: PlannedSchedule) -> tuple[int | None, int]:
    return chosen.tokens_per_side, len(chosen.schedule.steps)


def _layers_saved(chosen: PlannedSchedule, model: ModelConfig) -> int:
    return model.depth * model.tokens - sum(chosen.schedule.tokens_per_block(model.depth))


def _models(largest_grid: int) -> st.SearchStrategy[ModelConfig]:
    return st.builds(
        lambda grid, depth, place: ModelConfig(
            image_size=grid, patch=1, stride=1, d_model=8, depth=depth, dt_rank=1, class_token=place
        ),
        st.integers(2, largest_grid),
        st.integers(1, 30),
        st.sampled_from(["middle", "head"]),
    )


models = _models(27)
hundredths = st.integers(1, 99).map(lambda n: n / 100)


# The paper's rate.


@pytest.mark.parametrize(("rate", "expected"), [(0.15, (1, 15)), (0.2, (2, 10)), (0.3, (2, 15)), (0.4, (2, 20))])
def test_the_papers_rates(rate: float, expected: tuple[int, int]) -> None:
    assert _r_and_steps(plan_schedule(_model(), order="border", rate=rate)) == expected


def test_more_tokens_take_more_a_step() -> None:
    assert _r_and_steps(plan_schedule(_model(730), order="border", rate=0.4)) == (7, 21)


def test_r_changes_at_the_rate_0_175() -> None:
    assert plan_schedule(_model(), order="border", rate=0.1749).tokens_per_side == 1
    assert plan_schedule(_model(), order="border", rate=0.175).tokens_per_side == 2


def test_the_rate_is_the_decimal_that_was_written() -> None:
    # 0.07 * 100 is 7.000000000000001 in floating point, which would round one token a step up to two.
    model = ModelConfig(image_size=10, patch=1, stride=1, d_model=8, depth=2, dt_rank=1)
    assert 0.14 * 100 > 14
    assert plan_schedule(model, order="border", rate=0.14).tokens_per_side == 7


@pytest.mark.parametrize(("rate", "expected"), [(0.15, (1, 23)), (0.2, (2, 20)), (0.3, (2, 23)), (0.4, (2, 23))])
@pytest.mark.parametrize("sides", ["left", "right"])
def test_one_side_takes_as_many_steps_as_the_rate_needs_and_blocks_allow(
    rate: float, expected: tuple[int, int], sides: str
) -> None:
    chosen = plan_schedule(_model(), order="border", rate=rate, sides=sides)
    assert _r_and_steps(chosen) == expected
    assert chosen.schedule.removed_share == pytest.approx(expected[0] * expected[1] / 196)


def test_tokens_per_side_can_be_given() -> None:
    assert _r_and_steps(plan_schedule(_model(), order="sweep", rate=0.4, tokens_per_side=4)) == (4, 10)
    assert _r_and_steps(plan_schedule(_model(), order="sweep", rate=0.4, tokens_per_side=1)) == (
        1,
        23,
    )  # never more than depth - 1
    assert _r_and_steps(plan_schedule(_model(), order="sweep", saving=0.1, tokens_per_side=3))[0] == 3


@pytest.mark.parametrize("order", ["staged", *GRADUAL])
def test_no_budget_is_the_rate_0_4(order: str) -> None:
    assert plan_schedule(_model(), order=order) == plan_schedule(_model(), order=order, rate=0.4)
    assert DEFAULT_RATE == 0.4


@pytest.mark.parametrize("budget", [{"rate": 0.0}, {"saving": 0.0}, {"rate": 0}])
@pytest.mark.parametrize("order", ["staged", "sweep"])
def test_exactly_zero_is_dense(budget: dict[str, float], order: str) -> None:
    chosen = plan_schedule(_model(), order=order, **budget)
    assert chosen.schedule.steps == ()
    assert chosen.stages is None


@pytest.mark.parametrize("order", ["staged", *GRADUAL])
@pytest.mark.parametrize("rate", [0.99, 1, 1.0, -1, -0.1, 40, float("nan"), float("inf"), "abc"])
def test_a_rate_out_of_reach_is_refused_with_those_that_can_be_had(order: str, rate: float) -> None:
    with pytest.raises(UsageError) as error:
        plan_schedule(_model(), order=order, rate=rate)
    assert error.value.message.startswith(f"rate {'' if rate == 0.99 else 'is '}{rate}")
    assert error.value.message.endswith("the smallest possible rate is 0.01, the largest 0.94")


def test_a_rate_below_one_step_is_refused() -> None:
    for order in ("staged", "border"):
        with pytest.raises(
            UsageError, match=r"rate 0\.001 takes less than one merge step; the smallest possible rate is 0\.01"
        ):
            plan_schedule(_model(), order=order, rate=0.001)


def test_no_rate_can_be_had_without_room() -> None:
    with pytest.raises(UsageError, match="no rate is possible with 197 tokens and 1 blocks"):
        plan_schedule(_model(depth=1), order="border", rate=0.4)
    with pytest.raises(
        UsageError, match="more than half of the tokens of a side in one step; no rate is possible"
    ) as error:
        plan_schedule(_model(), order="border", rate=0.4, tokens_per_side=50)
    assert error.value.hint == "choose fewer tokens per side"


@settings(max_examples=40)
@given(_models(14), st.sampled_from(["staged", "sweep"]), hundredths)
def test_the_rates_that_a_refusal_names_can_be_had(model: ModelConfig, order: str, rate: float) -> None:
    def refusal(asked: float) -> str | None:
        try:
            schedule = plan_schedule(model, order=order, rate=asked).schedule
        except UsageError as error:
            return error.message
        assert schedule.steps
        schedule.check_depth(model.depth)
        return None

    message = refusal(rate)
    if message is None or "no rate is possible" in message:
        assert message is None or all(refusal(n / 100) for n in range(1, 100, 7))
        return
    smallest, largest = (float(word) for word in message.split("smallest possible rate is ")[1].split(", the largest "))
    assert refusal(smallest) is None
    assert refusal(largest) is None
    assert smallest == 0.01 or refusal(smallest - 0.01)
    assert largest == 0.99 or refusal(largest + 0.01)


@given(models, st.sampled_from(GRADUAL), hundredths)
def test_two_sides_lose_the_same_and_never_more_than_half_in_a_step(
    model: ModelConfig, order: str, rate: float
) -> None:
    assume(model.class_token == "middle")
    try:
        chosen = plan_schedule(model, order=order, rate=rate)
    except UsageError:
        return
    r, steps = _r_and_steps(chosen)
    assert r is not None
    patches, share = model.tokens - 1, Fraction(str(rate))
    assert r == max(1 if share < Fraction(7, 40) else 2, -(-share * patches // (2 * (model.depth - 1))))
    assert steps == round(share * patches / (2 * r)) <= model.depth - 1
    for step, tokens, cls in zip(
        chosen.schedule.steps,
        chosen.schedule.tokens_per_block(model.depth),
        chosen.schedule.cls_per_block(model.depth),
        strict=False,
    ):
        assert sum(source < cls for source in step.sources) == sum(source > cls for source in step.sources) == r
        assert 2 * r <= min(cls, tokens - 1 - cls)


@given(models, st.sampled_from(["left", "right"]), st.integers(18, 99))
def test_one_side_is_never_refused_for_missing_the_rate(model: ModelConfig, side: str, rate: int) -> None:
    assume(model.depth > 1 and rate * (model.tokens - 1) >= 200)  # there is a block to follow, and two tokens are to go
    sides = "both" if model.class_token == "head" else side
    assert plan_schedule(model, order="sweep", rate=rate / 100, sides=sides).schedule.steps


# A saving in token-layers.


@pytest.mark.parametrize(
    ("saving", "stages"),
    [
        (0.102, (19,)),
        (0.157, (16,)),
        (0.203, (14,)),
        (0.228, (13,)),
        (0.29, (10,)),
        (0.35, (11, 17)),
        (0.40, (11, 14, 17)),
        (0.45, (10, 13, 16)),
        (0.50, (9, 12, 15, 18)),
    ],
)
def test_the_stages_of_a_saving(saving: float, stages: tuple[int, ...]) -> None:
    chosen = plan_schedule(_model(), order="staged", saving=saving)
    assert (chosen.stages, chosen.saving, chosen.rate, chosen.tokens_per_side) == (stages, saving, None, None)


@pytest.mark.parametrize(
    ("rate", "stands_for", "stages"), [(0.15, 0.102, 19), (0.2, 0.157, 16), (0.3, 0.203, 14), (0.4, 0.228, 13)]
)
def test_a_rate_of_staged_stands_for_what_the_paper_saves_at_it(rate: float, stands_for: float, stages: int) -> None:
    chosen = plan_schedule(_model(), order="staged", rate=rate)
    assert chosen.saving == pytest.approx(stands_for, abs=5e-4)
    assert (chosen.rate, chosen.stages) == (rate, (stages,))
    assert chosen.saving == pytest.approx(plan_schedule(_model(), order="border", rate=rate).schedule.saving(24))


def test_asked_and_reached_at_the_rate_0_4() -> None:
    chosen = plan_schedule(_model(), order="staged", rate=0.4)
    assert round(chosen.saving or 0, 4) == 0.2284
    assert round(chosen.schedule.saving(24), 4) == 0.2280
    assert chosen.schedule.removed_share == 0.5


def test_a_first_stage_at_exactly_0_4_of_the_depth_is_late_enough() -> None:
    # Before block 8 of 20, 98 of 197 tokens are gone in the 12 blocks that are left; before block 7, in 13.
    assert plan_schedule(_model(depth=20), order="staged", saving=98 * 12 / (20 * 197)).stages == (8,)
    stages = plan_schedule(_model(depth=20), order="staged", saving=98 * 13 / (20 * 197)).stages
    assert stages is not None
    assert len(stages) > 1


def test_one_side_has_the_two_sided_budget() -> None:
    two, left, head = (
        plan_schedule(_model(class_token=place), order="staged", rate=0.4, sides=sides)
        for place, sides in (("middle", "both"), ("middle", "left"), ("head", "both"))
    )
    assert two.saving == left.saving == head.saving
    assert left.schedule.saving(24) == pytest.approx(two.schedule.saving(24), abs=0.01)
    assert left.stages != two.stages


def test_one_side_saves_what_it_can_of_a_large_rate() -> None:
    chosen = plan_schedule(_model(), order="staged", rate=0.94, sides="left")
    assert chosen.stages == (1, 4, 7, 10)  # as early and as often as stages act
    assert chosen.saving is not None
    assert chosen.schedule.saving(24) < chosen.saving


@settings(max_examples=40)
@given(_models(9), hundredths)
def test_stages_follow_the_rule(model: ModelConfig, saving: float) -> None:
    """The rule, spelled out over schedules that are built and counted: S, g, the nearest b, the later one on a tie."""
    depth, layers = model.depth, model.depth * model.tokens
    nearest: list[tuple[int, ...]] = []
    earliest = 0
    for count, gap in ((1, 1), (2, max(1, depth // 4)), (3, max(1, depth // 8)), (4, max(1, depth // 8))):
        found = []
        for first in range(1, depth):
            stages = tuple(first + i * gap for i in range(count))
            if stages[-1] > depth - 1:
                continue
            if 2 ** (count - 1) < max(model.cls, model.tokens - 1 - model.cls):  # the last stage finds a pair
                found.append((_layers_saved(plan_schedule(model, order="staged", stages=stages), model), stages))
        if found:
            nearest.append(min(found, key=lambda f: (abs(f[0] - round(Fraction(str(saving)) * layers)), -f[1][0]))[1])
            earliest = found[0][0]
    if round(Fraction(str(saving)) * layers) > earliest or not nearest:
        with pytest.raises(UsageError, match="saving"):
            plan_schedule(model, order="staged", saving=saving)
        return
    expected = next((stages for stages in nearest if stages[0] >= Fraction(4, 10) * depth), nearest[-1])
    assert plan_schedule(model, order="staged", saving=saving).stages == expected


@given(models, hundredths, st.sampled_from(["both", "left", "right"]))
def test_a_gradual_order_takes_the_smallest_r_that_reaches_a_saving_and_the_nearest_steps(
    model: ModelConfig, saving: float, sides: str
) -> None:
    left, right = model.cls, model.tokens - 1 - model.cls
    sizes = [n for n, side in ((left, "left"), (right, "right")) if n and sides in (side, "both")]
    if not sizes:
        with pytest.raises(UsageError, match="no token on that side"):
            plan_schedule(model, order="even", saving=saving, sides=sides)
        return
    wanted = round(Fraction(str(saving)) * model.depth * model.tokens)
    saved: dict[int, list[int]] = {}  # by r, after 1, 2, ... steps
    for r in range(1, min(sizes) // 2 + 1):
        fits = [k for k in range(1, model.depth) if min(sizes) - r * (k - 1) >= 2 * r]
        saved[r] = [sum(len(sizes) * r * (model.depth - 1 - after) for after in range(k)) for k in fits]
    reaching = [r for r, layers in saved.items() if layers and layers[-1] >= wanted]
    if not reaching:
        with pytest.raises(UsageError, match="largest possible saving"):
            plan_schedule(model, order="even", saving=saving, sides=sides)
        return
    r, steps = _r_and_steps(plan_schedule(model, order="even", saving=saving, sides=sides))
    assert r == reaching[0]
    distances = [abs(layers - wanted) for layers in saved[reaching[0]]]
    assert steps == distances.index(min(distances)) + 1


def test_a_saving_below_the_smallest_gives_the_smallest() -> None:
    assert plan_schedule(_model(), order="staged", saving=0.0001).stages == (23,)
    assert _r_and_steps(plan_schedule(_model(), order="border", saving=0.0001)) == (1, 1)


@pytest.mark.parametrize("saving", [0.81, 0.99, 1, -0.1, float("nan"), float("inf"), "abc"])
def test_a_saving_out_of_reach_is_refused_with_the_largest(saving: float) -> None:
    # Before blocks 1, 4, 7 and 10: 197, 3 x 99, 3 x 51, 3 x 27 and 14 x 15 of 24 x 197 token-layers are left, 80.2%
    # gone.
    with pytest.raises(UsageError) as error:
        plan_schedule(_model(), order="staged", saving=saving)
    assert error.value.message.startswith(f"saving {saving}" if saving in (0.81, 0.99) else f"saving is {saving}")
    assert error.value.message.endswith("the largest possible saving is 0.80")
    assert plan_schedule(_model(), order="staged", saving=0.80).stages == (1, 4, 7, 10)


def test_a_saving_beyond_the_given_tokens_per_side_is_refused() -> None:
    with pytest.raises(UsageError, match=r"saving 0\.4 is more than possible; the largest possible saving is 0\.11"):
        plan_schedule(_model(), order="border", saving=0.4, tokens_per_side=1)  # 2 x (1 + ... + 23) = 552 of 4728


@given(models, st.sampled_from(["staged", "outward"]), st.sampled_from(["both", "right"]))
def test_the_largest_saving_that_a_refusal_names_can_be_had(model: ModelConfig, order: str, sides: str) -> None:
    with pytest.raises(UsageError) as error:
        plan_schedule(model, order=order, saving=0.99, sides=sides)
    largest = float(error.value.message.rsplit(" ", 1)[1])
    if model.depth == 1:
        assert largest == 0
    else:
        assert (
            plan_schedule(model, order=order, saving=largest, sides=sides).schedule.saving(model.depth)
            >= largest - 0.05
        )
        with pytest.raises(UsageError):
            plan_schedule(model, order=order, saving=largest + 0.01 + 1 / (model.depth * model.tokens), sides=sides)


# Stages that are given, and options that exclude each other.


@pytest.mark.parametrize("stages", list(combinations((1, 5, 10, 16, 23), 2)))
def test_stages_can_be_given(stages: tuple[int, ...]) -> None:
    chosen = plan_schedule(_model(), order="staged", stages=list(stages))
    assert chosen.stages == stages
    assert [step.after + 1 for step in chosen.schedule.steps] == list(stages)
    assert (chosen.rate, chosen.saving, chosen.tokens_per_side) == (None, None, None)


@pytest.mark.parametrize("stages", [(0,), (24,), (-1, 3), (10, 10), (16, 10), (3, 2, 5), (10.0,), "10,16", (True,)])
def test_stages_are_strictly_increasing_block_numbers(stages: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="expected strictly increasing block numbers from 1 to 23"):
        plan_schedule(_model(), order="staged", stages=stages)


def test_no_stages_are_refused() -> None:
    with pytest.raises(UsageError, match="stages are empty, expected"):
        plan_schedule(_model(), order="staged", stages=())


def test_a_stage_that_finds_no_pair_is_refused() -> None:
    assert plan_schedule(_model(17), order="staged", stages=(1, 2, 3)).schedule.tokens_per_block(24)[-1] == 3
    with pytest.raises(
        UsageError, match="stages are 1,2,3,9: the one before block 9 finds no pair, 3 leave one token a side"
    ):
        plan_schedule(_model(17), order="staged", stages=(1, 2, 3, 9))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"order": "border", "rate": 0.4, "saving": 0.3}, "rate and saving were given"),
        ({"order": "staged", "rate": 0.4, "stages": (10,)}, "rate and stages were given"),
        ({"order": "staged", "rate": 0.0, "saving": 0.0, "stages": (10,)}, "rate and saving and stages were given"),
        ({"order": "border", "stages": (10,)}, "stages need the schedule staged, not border"),
        ({"order": "staged", "tokens_per_side": 2}, "tokens per side were given with the schedule staged"),
        ({"order": "staged", "tokens_per_side": 2, "rate": 0.0}, "tokens per side were given with the schedule staged"),
        ({"order": "border", "tokens_per_side": 0}, "tokens per side is 0, expected at least 1"),
        ({"order": "spiral"}, "schedule is 'spiral', expected one of fitted, staged, border, sweep, even, outward"),
        ({"order": "border", "sides": "up"}, "sides is 'up', expected one of both, left, right"),
    ],
)
def test_options_that_exclude_each_other(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        plan_schedule(_model(), **options)  # type: ignore[arg-type]  # a table of keyword arguments


def test_a_class_token_at_the_head_leaves_the_right_side() -> None:
    model = _model(class_token="head")
    for order in ("staged", *GRADUAL):
        assert plan_schedule(model, order=order, rate=0.3) == plan_schedule(model, order=order, rate=0.3, sides="right")
        with pytest.raises(
            UsageError, match="sides is 'left', but there is no token on that side of the class token at 0 of 197"
        ):
            plan_schedule(model, order=order, rate=0.3, sides="left")
