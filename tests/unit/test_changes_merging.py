"""What tools/mutate.py changed in bnnm.py, costs.py and regroup.py and no other test of these files saw."""

import dataclasses

import pytest
import torch
from torch import Tensor

from stm.config import ModelConfig, Protection
from stm.errors import UsageError
from stm.merging import costs
from stm.merging.bnnm import capacity_of, parts_of, plan_schedule
from stm.merging.fit import CostTable, Group
from stm.merging.plan import MergeStep, State, Taps
from stm.merging.regroup import Regrouping
from stm.merging.schedule import Schedule, Step
from tests.unit.test_config import CONFIG

BACKBONE = ModelConfig(image_size=4, patch=1, stride=1, d_model=8, depth=6, dt_rank=1, class_tokens=0)
NEVER = 1e3  # an effect that no price pays for


def test_a_border_between_two_class_tokens_is_in_the_middle() -> None:
    assert parts_of(10, (2, 7), "both") == [range(2), range(4, 2, -1), range(5, 7), range(9, 7, -1)]
    assert parts_of(10, (2, 6), "right") == [range(4, 2, -1), range(9, 6, -1)]  # of two as near, the first
    assert parts_of(5, (), "both") == [range(5)] and parts_of(5, (), "left") == []


def test_what_needs_a_class_token_is_refused_without_one() -> None:
    with pytest.raises(UsageError, match="sides is 'left', but the model has no class token"):
        capacity_of(BACKBONE, "left")
    for order in ("border", "sweep", "even", "outward"):
        with pytest.raises(UsageError, match=f"the schedule {order} merges toward a class token"):
            plan_schedule(BACKBONE, order=order, rate=0.4)
    assert plan_schedule(BACKBONE, order="staged", saving=0.2).stages


@pytest.mark.parametrize(
    ("order", "why"), [("staged", "merges every pair of a side"), ("fitted", "finds the tokens of each step")]
)
def test_why_tokens_per_side_are_refused(order: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"the schedule {order}, which {why}"):
        plan_schedule(CONFIG.model, order=order, rate=0.4, tokens_per_side=1)


def test_what_a_probe_is_of() -> None:
    model = CONFIG.model
    assert costs.probe_shape(CONFIG) == (CONFIG.num_classes,)
    assert costs.probe_shape(dataclasses.replace(CONFIG, num_classes=0, label_names=None)) == (
        model.d_model,
        *model.grid,
    )


def test_an_effect_of_groups_keeps_its_digits_beside_what_all_tokens_share() -> None:
    """The values are sixteenths, so that the sum with the common part is exact."""
    g = torch.Generator().manual_seed(0)
    x = torch.randint(-16, 17, (2, 8, 8), generator=g) / 16
    gradients = torch.randn(2, 8, 8, generator=g)
    apart, beside = costs._of_groups(gradients, x), costs._of_groups(gradients, x + 4096)
    torch.testing.assert_close(beside, apart, rtol=0, atol=1e-4)


def regrouping(effects: Tensor, price_of_all: float = 0.0) -> Regrouping:
    """Effects (depth - 1, L, n) of one probe; a group costs its effect's square, and so much more."""
    return Regrouping(CostTable(effects.double().square() + price_of_all, [range(effects.shape[1])]), effects[None])


def test_unions_join_once_more() -> None:
    """Of eight tokens pairs are free before block 1, fours before block 3, and all eight before block 4."""
    effects = torch.full((4, 8, 17), NEVER)
    effects[..., :2] = 0
    effects[0:, 0::2, 2] = effects[2:, 0::4, 4] = effects[3:, 0, 8] = 0
    pairs, fours = [Group(start, 2, 1) for start in (0, 2, 4, 6)], [Group(0, 4, 3), Group(4, 4, 3)]
    assert regrouping(effects).cut(1e-3) == [*pairs, *fours, Group(0, 8, 4)]


def test_a_union_may_be_as_large_as_a_group() -> None:
    effects = torch.full((4, 16, 17), NEVER)
    effects[..., :2] = 0
    effects[0:, 0::8, 8] = effects[3:, 0, 16] = 0
    assert Group(0, 16, 4) in regrouping(effects).cut(1e-3)


def test_tokens_that_never_merged_may_join_before_the_first_block() -> None:
    """The table's costs keep them apart, and the probes' effects do not."""
    assert regrouping(torch.zeros(3, 4, 17), 1.0).cut(1e-3) == [Group(0, 4, 1)]


@pytest.mark.parametrize("normalized", [True, False])
def test_a_normalized_merge_leaves_equal_tokens_as_they_are(normalized: bool) -> None:
    """Of equal delta, B and A every weight is above 0, so a sum that is not divided grows."""
    model = CONFIG.model
    protection = Protection(step_scale=0, weights="hsp", mode="dynamic", normalized=normalized)
    step = MergeStep(Schedule(model.tokens, 2, (Step(0, ((0, 1), (4, 3))),)), 0, protection, model)
    scans = 2
    taps = Taps(
        delta=torch.ones(scans, 1, model.tokens, model.d_inner),
        B=torch.ones(scans, 1, model.tokens, model.d_state),
        A=-torch.ones(scans, model.d_inner, model.d_state),
    )
    merged = step(State(torch.ones(1, model.tokens, model.d_model)), taps).stream
    assert merged.shape == (1, model.tokens - 2, model.d_model)
    grown = (merged[0, :, 0] > 1.01).tolist()
    assert grown == ([False] * 3 if normalized else [True, False, True])
    assert not normalized or torch.allclose(merged, torch.ones(()))
