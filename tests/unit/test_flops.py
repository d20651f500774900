"""Operation counts. The table is the method sheet's (the paper's convention); the honest count is compared with loops
over every token, which count what sections 5 and 6 list."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stm.config import Config, ModelConfig, Preprocess, Protection, dense_schedule
from stm.measure.flops import count, honest, paper, parameters
from stm.merging.bnnm import gradual, plan_schedule, staged
from stm.merging.plan import Plan, StaticPlan
from stm.merging.schedule import Schedule

TI, S, B = (ModelConfig(d_model=D, depth=24, dt_rank=D // 16) for D in (192, 384, 768))
RATES = (0.0, 0.15, 0.2, 0.3, 0.4)
PAPER = {
    "Ti": (TI, (1449113088, 1304974848, 1226899968, 1160836608, 1124802048)),
    "S": (S, (5076888576, 4567428096, 4291470336, 4057967616, 3930602496)),
    "B": (B, (18868426752, 16964769792, 15933622272, 15061112832, 14585198592)),
}
MINI = ModelConfig(image_size=7, patch=1, stride=1, d_model=4, depth=6, d_state=3, dt_rank=1)  # 50 tokens


def _paper(model: ModelConfig, rate: float, sides: str = "both") -> int:
    schedule = plan_schedule(model, order="border", rate=rate, sides=sides).schedule
    return paper(model, 1000, StaticPlan(schedule, Protection(), model))


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_table_to_the_unit(name: str) -> None:
    model, expected = PAPER[name]
    assert tuple(_paper(model, rate) for rate in RATES) == expected


@pytest.mark.parametrize(("rate", "expected"), [(0.15, 4.784), (0.2, 4.504), (0.3, 4.491), (0.4, 4.491)])
def test_one_side_in_the_papers_convention(rate: float, expected: float) -> None:
    assert round(_paper(S, rate, "left") / 1e9, 3) == round(_paper(S, rate, "right") / 1e9, 3) == expected


@pytest.mark.parametrize(("model", "expected"), [(TI, 7_148_008), (S, 25_796_584), (B, 97_598_440)])
def test_parameters(model: ModelConfig, expected: int) -> None:
    assert parameters(model, 1000) == expected


def _counted(model: ModelConfig, classes: int, schedule: Schedule, protection: Protection) -> int:
    """The honest count, one token and one operation at a time."""
    D, E, N, R = model.d_model, model.d_inner, model.d_state, model.dt_rank
    total = sum(3 * model.patch**2 * D for _ in range(model.tokens - 1)) + D * classes
    groups, cls, at = schedule.groups[0], schedule.cls, {step.after: i for i, step in enumerate(schedule.steps)}
    for block in range(model.depth):
        read = block == model.depth - 1
        for token, group in enumerate(groups):
            wanted = not read or token == cls
            total += D * E  # in_proj, its x half
            total += D * E + E * D if wanted else 0  # in_proj, its z half; out_proj
            for reaches in (token <= cls, token >= cls):  # forward, backward
                if reaches or not read:
                    total += 4 * E * (min(len(group), 4) if protection.span_conv else 1)
                    total += E * (R + 2 * N) + R * E
                    total += 8 * E * N + (E * N + 2 * E if wanted else 0)  # the state; y, skip and gate
        if block in at:
            total += D * len(groups)
            step = schedule.steps[at[block]]
            if protection.weights == "hsp" and protection.mode == "dynamic":
                for source, destination in step.absorb:
                    total += E * len(range(min(source, destination), max(source, destination)))  # elapsed Delta
                    total += E * N + E * N + E + N  # decay; its overlap with both Delta B products
                    total += E + E + N  # the contraction over E; the two norms
            groups, cls = schedule.groups[at[block] + 1], cls - sum(source < cls for source in step.sources)
    return total


PROTECTIONS = [
    Protection(),
    Protection(weights="mean", step_scale=0.0, span_conv=False),
    Protection(weights="hsp", mode="dynamic", step_scale=0.0, span_conv=False),
    Protection(weights="hsp", mode="static", step_scale=0.0, span_conv=True),
]


@pytest.mark.parametrize("protection", PROTECTIONS, ids=lambda p: f"{p.weights}-{p.mode}-{p.span_conv}")
@pytest.mark.parametrize(
    "schedule",
    [
        dense_schedule(MINI),
        staged(50, 24, (2, 4)),
        staged(50, 24, (5,), "left"),
        gradual(50, 24, "border", 3, 5),
        gradual(50, 0, "sweep", 9, 2),
        gradual(50, 49, "outward", 2, 3),
    ],
    ids=["dense", "staged", "left", "border", "head", "tail"],
)
def test_the_honest_count_is_what_every_token_takes(schedule: Schedule, protection: Protection) -> None:
    assert honest(MINI, 10, StaticPlan(schedule, protection, MINI)) == _counted(MINI, 10, schedule, protection)


def test_the_honest_count_of_a_dense_model_by_the_formula() -> None:
    # Ti: 23 blocks of 2DE L + 2 (4E + E(R+2N) + RE + 9EN + 2E) L + ED L, the last by section 6, patches, head.
    D, E, N, R, L, c = 192, 384, 16, 12, 197, 98
    token = 4 * E + E * (R + 2 * N) + R * E + 8 * E * N
    block = 2 * D * E * L + 2 * (token + E * N + 2 * E) * L + E * D * L
    last = D * E * L + D * E + token * (c + 1) + token * (L - c) + 2 * (E * N + 2 * E) + E * D
    assert honest(TI, 1000, Plan()) == 23 * block + last + 3 * 16**2 * D * (L - 1) + D * 1000


def test_count_of_a_dense_model_saves_nothing() -> None:
    flops = count(Config(model=TI, num_classes=1000, schedule=dense_schedule(TI)))
    assert (flops.paper, flops.paper_saving, flops.honest_saving) == (1449113088, 0.0, 0.0)
    assert flops.honest == honest(TI, 1000, Plan())


def test_count_reports_shares_of_the_dense_model() -> None:
    chosen = plan_schedule(TI, order="border", rate=0.4)
    flops = count(Config(model=TI, num_classes=1000, schedule=chosen.schedule, protection=PROTECTIONS[2]))
    assert flops.paper == 1124802048
    assert flops.paper_saving == pytest.approx(0.2238, abs=5e-5)  # the method sheet; the paper says 22.3%
    assert flops.honest == honest(TI, 1000, StaticPlan(chosen.schedule, PROTECTIONS[2], TI))
    assert flops.honest_saving == 1 - flops.honest / honest(TI, 1000, Plan())
    assert 0.2 < flops.honest_saving < flops.paper_saving


def test_the_span_conv_and_the_scoring_count_only_honestly() -> None:
    schedule = staged(50, 24, (2, 4))
    plain, span, dynamic = (
        count(
            Config(
                model=MINI,
                num_classes=10,
                schedule=schedule,
                preprocessing=Preprocess.official(7),
                protection=protection,
            )
        )
        for protection in (PROTECTIONS[1], PROTECTIONS[0], PROTECTIONS[2])
    )
    assert plain.paper == span.paper == dynamic.paper
    assert plain.honest < span.honest
    assert plain.honest < dynamic.honest


@given(st.integers(1, 11), st.sampled_from(["border", "sweep", "even", "outward"]))
def test_the_papers_count_falls_with_every_token_gone(r: int, order: str) -> None:
    schedules = [gradual(50, 24, order, r, steps) for steps in range(3) if r * steps < 24]
    counts = [paper(MINI, 10, StaticPlan(schedule, Protection(), MINI)) for schedule in schedules]
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == len(counts)
