"""What `stm compress` says of a schedule that was fitted on drawn pictures."""

import dataclasses

import pytest

import stm
from stm.bake import bake
from stm.commands.fit_set import fit_notes
from stm.data.fit_images import pictures
from stm.fitting import Fitting, fit
from stm.options import MergeOptions
from stm.progress import Progress
from tests.unit.test_fitting import model_of


@pytest.fixture(scope="module")
def dense() -> stm.ViM:
    return model_of(depth=8)


@pytest.fixture(scope="module")
def fitting(dense: stm.ViM) -> Fitting:
    return fit(dense, pictures(dense.config, n=12), keep=False)


def inverted(fitting: Fitting) -> Fitting:
    """Return a fitting that takes the dearest merges for the cheapest."""
    cost = fitting.effects.cost
    return dataclasses.replace(fitting, effects=fitting.effects._replace(cost=1 / cost.clamp_min(1e-12)))


def notes(fitting: Fitting, checked: bool = True) -> tuple[list[str], list[Progress]]:
    small, progress = bake(fitting.dense, MergeOptions(saving=0.17), fitting=fitting), list[Progress]()
    said = fit_notes(fitting, small, checked=checked, on_progress=progress.append)
    return [note for note in said if "not clearly nearer" in note], progress


def test_a_schedule_that_is_no_better_than_a_preset_is_named_as_that(fitting: Fitting) -> None:
    doubts, progress = notes(inverted(fitting))
    assert [doubt.partition(" than ")[2].partition(":")[0] for doubt in doubts] == ["staged", "paper"]
    assert all("on crops of the photographs" in doubt and "--fit-on" in doubt for doubt in doubts)
    assert progress, "the comparison takes long on a large model, so it shows how far it is"


def test_nothing_runs_where_no_comparison_was_wanted(fitting: Fitting) -> None:
    """`--no-eval` and `--dry-run`: on a large model the presets take longer than everything else."""
    assert notes(inverted(fitting), checked=False) == ([], [])
