"""The same saving for every method: within half a point of the honest count, STORM's grid exempt; what cannot be had is
said."""

import pytest
import torch

from stm.bake import bake
from stm.config import Config, ModelConfig, Preprocess, dense_schedule
from stm.errors import UsageError
from stm.measure import flops
from stm.measure.equal_cost import solve_peer, solve_preset
from stm.merging.budget import NEAR
from stm.model.initialize import initialize
from stm.model.vim import ViM
from stm.options import MergeOptions
from stm.peers import DEFAULT, PEERS
from stm.peers.storm import STORM

SHAPES = {
    "ti": ModelConfig(d_model=192, depth=24, dt_rank=12),
    "digits": ModelConfig(image_size=28, patch=2, stride=2, in_chans=1, d_model=32, depth=24, dt_rank=2),
}


def config_of(name: str) -> Config:
    shape = SHAPES[name]
    prep = Preprocess(crop=shape.image_size, mean=(0.5,) * shape.in_chans, std=(0.5,) * shape.in_chans)
    return Config(model=shape, num_classes=10, schedule=dense_schedule(shape), preprocessing=prep)


@pytest.mark.parametrize("saving", [0.1, 0.2, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", [name for name in DEFAULT if name != "storm"])
def test_a_peer_is_within_half_a_point(method: str, shape: str, saving: float) -> None:
    solved = solve_peer(config_of(shape), method, saving)
    assert solved.near and abs(solved.flops.honest_saving - saving) <= NEAR
    assert solved.flops == flops.count(config_of(shape), solved.plan)
    counts, left = list(solved.plan.removals.values()), SHAPES[shape].tokens
    for count in counts:
        assert 0 <= counts[0] - count <= 1 or count == solved.plan.most(left), (
            "the first m take one more, or there are no more"
        )
        left -= count


def test_storm_has_the_nearest_grid() -> None:
    solved = solve_peer(config_of("ti"), "storm", 0.25)
    assert abs(solved.flops.honest_saving - 0.25) < 0.03


def test_at_other_places() -> None:
    solved = solve_peer(config_of("digits"), "hsa", 0.2, places=[11, 17])
    assert solved.near and list(solved.plan.removals) == [11, 17]


@pytest.mark.parametrize("method", [name for name in PEERS if name != "storm"])
def test_at_as_many_places_as_there_are(method: str) -> None:
    """A fitted schedule may merge before every block."""
    solved = solve_peer(config_of("digits"), method, 0.3, places=range(23))
    assert solved.near and set(solved.plan.removals) <= set(range(23))


def test_storm_at_many_places_is_soon_solved() -> None:
    """At each place one side more or less: all choices among 23 places would be 2 to the 23."""
    budgets = list(STORM.budgets(SHAPES["digits"], range(23)))
    assert len(budgets) < 300
    assert abs(solve_peer(config_of("digits"), "storm", 0.3, places=range(23)).flops.honest_saving - 0.3) < 0.01
    assert len(list(STORM.budgets(SHAPES["digits"], (4, 10, 16, 22)))) == 44, "at its own four places: all choices"


def test_what_cannot_be_had_is_the_nearest_and_says_so() -> None:
    solved = solve_peer(config_of("digits"), "utr", 0.6)
    assert not solved.near and 0.3 < solved.flops.honest_saving < 0.595
    one = ModelConfig(image_size=4, patch=2, stride=2, d_model=4, depth=1, dt_rank=1)
    config = Config(model=one, num_classes=2, schedule=dense_schedule(one), preprocessing=Preprocess.official(4))
    with pytest.raises(UsageError, match="rmeeto finds nothing to remove from 5 tokens in 1 blocks"):
        solve_peer(config, "rmeeto", 0.2)


@pytest.fixture(scope="module")
def digits() -> ViM:
    return initialize(ViM(config_of("digits"))).requires_grad_(False).eval()


@pytest.mark.parametrize("saving", [0.05, 0.1, 0.17, 0.2, 0.33, 0.45])
def test_the_papers_form_is_within_half_a_point(saving: float, digits: ViM) -> None:
    small, near = solve_preset(digits, "paper", saving)
    assert near and abs(flops.count(small.config).honest_saving - saving) <= NEAR
    counts = [len(step.absorb) for step in small.schedule.steps]
    assert counts == sorted(counts, reverse=True) and counts[0] - counts[-1] in (0, 2), (
        "one more a side in the first steps"
    )
    with torch.inference_mode():
        assert small(torch.zeros(1, 1, 28, 28)).isfinite().all()


@pytest.mark.parametrize("saving", [0.05, 0.1, 0.2, 0.33, 0.45])
def test_staged_is_the_nearest_that_a_budget_gives(saving: float, digits: ViM) -> None:
    small, near = solve_preset(digits, "staged", saving)
    distance = abs(flops.count(small.config).honest_saving - saving)
    assert near == (distance <= NEAR)
    for percent in range(1, 60):
        other = bake(digits, MergeOptions(method="staged", saving=percent / 100))
        assert abs(flops.count(other.config).honest_saving - saving) >= distance - 1e-12
    again, near = solve_preset(digits, "staged", flops.count(small.config).honest_saving)
    assert near and again.schedule == small.schedule and again.config.protection == MergeOptions().protection


def test_the_papers_form_where_there_is_room_for_less(digits: ViM) -> None:
    small, near = solve_preset(digits, "paper", 0.95)
    assert not near and flops.count(small.config).honest_saving > 0.6


def test_the_papers_form_is_that_of_the_preset(digits: ViM) -> None:
    unset = bake(digits, MergeOptions(method="paper", rate=0.2))
    again, near = solve_preset(digits, "paper", flops.count(unset.config).honest_saving)
    assert near and again.schedule == unset.schedule and again.config.protection == unset.config.protection
