"""The fitted schedule against an independent float64 reference (golden/search): costs, their isotonic fit, the cuts,
the schedules pair by pair, and the logits of the merged models."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import stm
from stm import backends
from stm.config import Protection
from stm.merging.constants import static_plan
from stm.merging.costs import LARGEST_GROUP, effects, never_dearer
from stm.merging.fit import CostTable, Group, as_schedule

Error = Callable[[Tensor, Tensor], float]
Tell = Callable[[str, float, str], None]
FOLDER = Path(__file__).parent / "search"
GOLDEN = load_file(FOLDER / "golden_mini.safetensors")
SCHEDULES: dict[str, Any] = json.loads((FOLDER / "schedules.json").read_text())
BOUND = 1e-4
DEPTH, TOKENS, CLS = 6, 50, 24
PARTS = [range(CLS), range(CLS + 1, TOKENS)]


def meaningful() -> Tensor:
    """(L, n): which groups of neighbours the reference speaks of."""
    mask = torch.zeros(TOKENS, LARGEST_GROUP + 1, dtype=torch.bool)
    for start in range(TOKENS):
        for size in range(2, LARGEST_GROUP + 1):
            mask[start, size] = start + size <= TOKENS and not start <= CLS < start + size
    return mask


@pytest.fixture(scope="module", params=["reference", "blocked", "native"])
def dense(request: pytest.FixtureRequest, mini: Path) -> stm.ViM:
    available, reason = backends.status(request.param)
    if not available:
        pytest.skip(f"backend {request.param}: {reason}")
    return stm.load_checkpoint(mini / "vim_mini_stride8.pth", device="cpu", backend=request.param)


@pytest.fixture(scope="module")
def cost(dense: stm.ViM) -> Tensor:
    """Our mean square of the effects, from the reference's images and probes."""
    probes = GOLDEN["probes"].float()

    def squares() -> Iterator[Tensor]:
        for number in range(probes.shape[1]):
            yield torch.cat(list(effects(dense, GOLDEN["inputs"], probes[:, number]))).square()

    return torch.stack(list(squares())).mean((0, 1))


def test_the_file_holds_what_is_compared() -> None:
    assert set(SCHEDULES) == {"0.1", "0.2", "0.3", "0.4"}
    assert GOLDEN["cost"].shape == GOLDEN["cost_isotonic"].shape == (DEPTH - 1, TOKENS, LARGEST_GROUP + 1)
    assert {f"logits_{saving}_size_p0.5_span" for saving in SCHEDULES} <= set(GOLDEN)


@pytest.mark.parametrize("name", ["cost", "cost_isotonic"])
def test_costs(name: str, dense: stm.ViM, cost: Tensor, error: Error, tell: Tell) -> None:
    mask, found = meaningful(), cost if name == "cost" else never_dearer(cost)
    worst = error(found[:, mask], GOLDEN[name][:, mask])
    tell(f"{name} of vim_mini_stride8, {dense.backend.name}", worst, "all groups and blocks")
    assert worst <= BOUND


def test_the_isotonic_fit_alone_is_exact(error: Error) -> None:
    mask = meaningful()
    assert error(never_dearer(GOLDEN["cost"])[:, mask], GOLDEN["cost_isotonic"][:, mask]) <= 1e-13


@pytest.mark.parametrize("saving", SCHEDULES)
def test_schedules(saving: str, cost: Tensor) -> None:
    """Whoever computed the costs, the groups, the pairs of every step and the token-layers are the reference's."""
    expected = SCHEDULES[saving]
    for costs in (never_dearer(cost), GOLDEN["cost_isotonic"]):
        table = CostTable(costs, PARTS)
        groups = table.nearest(round(DEPTH * TOKENS * float(saving)))
        assert groups == sorted(Group(*group) for group in expected["groups"])
        assert table.saved(groups) == DEPTH * TOKENS - expected["token_layers"]
        schedule = as_schedule(groups, TOKENS, CLS)
        steps = [{"after": step.after, "absorb": [list(pair) for pair in step.absorb]} for step in schedule.steps]
        assert steps == expected["steps"]
        assert sum(schedule.tokens_per_block(DEPTH)) == expected["token_layers"]


@pytest.mark.parametrize("saving", SCHEDULES)
def test_logits(saving: str, dense: stm.ViM, error: Error, tell: Tell) -> None:
    groups = [Group(*group) for group in SCHEDULES[saving]["groups"]]
    protection = Protection(weights="size", mode="static", step_scale=0.5, span_conv=True)
    small = dense.with_plan(static_plan(dense, as_schedule(groups, TOKENS, CLS), protection))
    name = f"logits_{saving}_size_p0.5_span"
    with torch.inference_mode():
        found = error(small(GOLDEN["inputs"]), GOLDEN[name])
    tell(f"fitted vim_mini_stride8, {dense.backend.name}", found, name)
    assert found <= BOUND
