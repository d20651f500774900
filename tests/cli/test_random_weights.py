"""`stm bench` and `stm plan` of random weights: which models have them, and what they are not asked for."""

import json
from pathlib import Path

import pytest

import stm
from stm import bake
from stm.commands import bench as bench_command
from stm.commands import plan as plan_command
from stm.commands.draw_model import draw_model
from stm.data.fit_images import pictures
from stm.errors import UsageError
from stm.options import FitOptions, MergeOptions, ModelOptions


@pytest.mark.parametrize("command", ["bench", "plan"])
def test_random_weights_are_for_aliases(here, mini: Path, command: str) -> None:
    for model in (str(mini), "vim-digits"):
        run = here(command, model, "--random-weights")
        assert run.code == 2 and f"{model} is not one of vim-ti" in run.err
    run = here(command, "vim-ti", "--random-weights", "--file", "x")
    assert run.code == 2 and "--file was given" in run.err


def test_random_weights_of_any_image_size() -> None:
    drawn = draw_model("vim-ti", ModelOptions(device="cpu", image_size=112, dtype="bfloat16"))
    assert (drawn.config.model.tokens, drawn.config.model.depth, drawn.config.num_classes) == (50, 24, 1000)
    assert (drawn.config.dtype, drawn.head.weight.dtype.itemsize) == ("bfloat16", 2)
    with pytest.raises(UsageError, match="patch is 16"):
        draw_model("vim-ti", ModelOptions(device="cpu", image_size=8))


def test_random_weights_of_videomamba_are_read_as_its_checkpoints_are() -> None:
    shape = draw_model("videomamba-m-448", ModelOptions(device="cpu", image_size=32)).config.model
    assert (shape.class_token, shape.cls, shape.divide_out, shape.depth, shape.d_model) == ("head", 0, False, 32, 576)


def test_random_weights_and_images_exclude_each_other(labelled: Path) -> None:
    with pytest.raises(UsageError, match="random weights agree with nothing"):
        plan_command.plan("vim-ti", ModelOptions(device="cpu"), random_weights=True, data=labelled)
    for options in (FitOptions(fit_on=labelled), FitOptions(fit_images=9), FitOptions(no_cache=True)):
        with pytest.raises(UsageError, match="random weights agree with nothing"):
            plan_command.plan("vim-ti", ModelOptions(device="cpu"), fit=options, random_weights=True)


def test_bench_of_random_weights_fits_nothing_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[int] = []

    def few(config, *, seed: int = 0):
        fits.append(seed)
        return pictures(config, n=3, seed=seed)

    monkeypatch.setattr(bake, "pictures", few)
    source = ModelOptions(device="cpu", image_size=64)

    def benched(**merge):
        return bench_command.bench("vim-ti", source, MergeOptions(**merge), rounds=1, random_weights=True)

    dense = draw_model("vim-ti", source)
    report = benched()
    expected = stm.compress(dense, method="staged").schedule.tokens_per_block(24)
    assert report.tokens_per_block == expected and not fits
    assert "the preset staged is timed" in report.notes[-1]
    for merge in ({"method": "paper"}, {"schedule": "border"}):
        assert len(benched(**merge).notes) == 1 and not fits  # that the weights are random
    named = benched(method="stm")
    assert len(fits) == 1 and len(named.notes) == 1 and named.tokens_per_block != expected


def test_plan_of_random_weights_times_staged(here) -> None:
    run = here("plan", "vim-ti", "--image-size", "64", "--random-weights", "--rounds", "1", "--json")
    assert run.code == 0, run.err
    report = json.loads(run.out)
    assert (report["fit"], report["recommended"], report["n"]) == (None, None, 0)
    assert report["reasons"]["recommended"] == "the weights are random"
    assert "random weights have nothing to fit: the rows are those of --method staged" in run.err
    row = report["rows"][5]
    assert row["gain"] > 0 and row["kl"] is None and row["compress"].startswith("stm compress vim-ti --saving 0.3")
    assert len(set(row["tokens_per_block"])) <= 3, "stages, not the many steps of a fit"
