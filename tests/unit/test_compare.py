"""The comparison's rows: who is in them, what they are measured against, and that one pass equals one run a model."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import stm
from stm.bake import bake
from stm.commands import compare
from stm.data import fit_images
from stm.data.fit_images import pictures
from stm.data.images import Sample
from stm.data.open import as_samples
from stm.data.sets import SampleSet
from stm.distributed import World
from stm.errors import DataError, UsageError
from stm.fitting import Fitting, fit
from stm.measure.compare import Contender, baked_alike, contenders, rows, run_all
from stm.measure.evaluate import run
from stm.measure.stats import compared, mcnemar
from stm.merging.budget import NEAR
from stm.options import EvalOptions, FitOptions, MergeOptions, ModelOptions
from stm.peers import DEFAULT
from tests.pictures import labelled

Fit = Callable[[], Fitting]
FEW = FitOptions(fit_images=3)
MINI = Path(__file__).parents[1] / "golden" / "dense-mini" / "vim_mini_stride8.pth"


@pytest.fixture(scope="module")
def dense() -> stm.ViM:
    return stm.load_checkpoint(MINI, image_size=64, device="cpu")


@pytest.fixture(scope="module")
def samples(dense: stm.ViM) -> SampleSet:

    images = torch.randn(7, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return as_samples([(image, i % 10) for i, image in enumerate(images)], dense.config)


@pytest.fixture(scope="module")
def fitting(dense: stm.ViM) -> Fit:
    """A fit on three pictures."""
    made = fit(dense, pictures(dense.config, n=3), keep=False)
    return lambda: made


def never() -> Fitting:
    raise AssertionError("a fit takes long: what can be refused is refused before")


def test_who_is_in_the_table(dense: stm.ViM, fitting: Fit) -> None:
    found = contenders(dense, fitting=fitting)
    assert [(e.method, e.known["title"]) for e in found[:4]] == [
        ("dense", "dense"),
        ("stm", "STM, fitted (ours)"),
        ("staged", "STM, staged"),
        ("paper", "STM, the paper's form"),
    ]
    assert [e.known["schedule"] for e in found[1:4]] == ["fitted", "staged", "border"]
    assert [e.method for e in found[4:]] == list(DEFAULT)
    few = contenders(dense, methods=["mtr", "paper"], fitting=fitting)
    assert [e.method for e in few] == ["dense", "stm", "paper", "random", "mtr"]
    both = contenders(dense, methods=["hsa"], at="both", fitting=fitting)
    assert [(e.method, e.known.get("schedule")) for e in both] == [
        ("dense", None),
        ("stm", "fitted"),
        ("random", "published"),
        ("random", "stm"),
        ("hsa", "published"),
        ("hsa", "stm"),
    ]
    ours = next(e for e in found if e.method == "stm")
    moved = next(e for e in contenders(dense, methods=["hsa"], at="stm", fitting=fitting) if e.method == "hsa")
    assert moved.known["acts_after"] == ours.known["acts_after"]
    by_rate = contenders(dense, methods=["paper", "staged"], rate=0.4, fitting=fitting)
    assert [e.model.config.recipe.rate for e in by_rate if e.method in ("stm", "staged", "paper")] == [0.4] * 3


@pytest.mark.parametrize("budget", [{"saving": 0.3}, {"rate": 0.4}])
def test_all_save_what_ours_does_or_say_so(dense: stm.ViM, fitting: Fit, budget: dict[str, float]) -> None:
    ours, *others = contenders(dense, at="both", fitting=fitting, **budget)[1:]
    target = ours.known["flops"].honest_saving
    assert ours.known["notes"] == () and len(ours.known["acts_after"]) > 1
    for other in others:
        far = abs(other.known["flops"].honest_saving - target) > NEAR
        assert far == any(note.startswith("saves ") for note in other.known["notes"]), other.method


def test_a_peer_that_needs_fewer_places_than_ours_says_so(dense: stm.ViM, fitting: Fit) -> None:
    ours, *others = contenders(dense, methods=["storm"], at="stm", saving=0.3, fitting=fitting)[1:]
    storm = next(e for e in others if e.method == "storm")
    acts, places = len(storm.known["acts_after"]), len(ours.known["acts_after"])
    assert acts < places  # the grid of 7 x 7 patches cannot shrink as often
    assert f"removes tokens in {acts} of these {places} places: more would save too much" in storm.known["notes"]


def test_other_processes_take_the_schedule_of_the_first(dense: stm.ViM, fitting: Fit, samples: SampleSet) -> None:
    ours = bake(dense, MergeOptions(saving=0.3), fitting=fitting())

    class Second(World):
        def broadcast(self, value: Any) -> Any:
            assert value == []
            return [ours.config]

    (told,) = baked_alike(dense, never, Second(rank=1, size=2))  # type: ignore[arg-type]
    images = torch.stack([sample.source for sample in samples.samples])
    assert told.config == ours.config and torch.equal(told(images), ours(images))


def test_what_cannot_be_compared_is_refused(dense: stm.ViM, fitting: Fit) -> None:
    with pytest.raises(UsageError, match="unknown method 'rmeto', expected some of stm, staged, paper, random"):
        contenders(dense, methods=["rmeto"], fitting=never)
    with pytest.raises(UsageError, match="rate and saving"):
        contenders(dense, rate=0.2, saving=0.2, fitting=never)
    with pytest.raises(UsageError, match="at is 'here'"):
        contenders(dense, at="here", fitting=never)
    with pytest.raises(UsageError, match="already compressed"):
        contenders(stm.compress(dense, method="staged", saving=0.2), fitting=never)
    with pytest.raises(UsageError, match="leaves nothing to compare"):
        contenders(dense, saving=0.0, fitting=never)
    for budget in ({"saving": 0.99}, {"rate": 40}):
        with pytest.raises(UsageError, match=r"the largest possible|expected a number"):
            contenders(dense, fitting=never, **budget)
    other = stm.load_checkpoint(MINI.with_name("vim_mini.pth"), image_size=64, device="cpu")
    assert contenders(dense, methods=[], also={"mini": other}, fitting=fitting)[-1].known["sibling"]
    with pytest.raises(UsageError, match="small is compressed"):
        contenders(dense, methods=[], also={"small": stm.compress(dense, method="staged", saving=0.2)}, fitting=never)


def test_one_pass_equals_a_run_for_each_model(dense: stm.ViM, samples: SampleSet, fitting: Fit) -> None:
    entered = contenders(dense, methods=["rmeeto", "storm"], fitting=fitting)
    steps: list[int] = []
    runs = run_all(entered, samples, batch_size=3, on_progress=lambda progress: steps.append(progress.done)).runs
    assert steps[-1] == len(samples) * len(entered) and steps == sorted(steps)
    for entrant, found in zip(entered, runs, strict=True):
        alone = run(entrant.model, samples, reference=dense, batch_size=3, workers=0)
        assert found.records == alone.records
        assert found.images == alone.images == 4  # without the first batch
    table = rows(entered, runs, data=samples.name)
    assert [row.method for row in table] == ["dense", "stm", "random", "rmeeto", "storm"]
    assert table[0].kl == 0 and table[0].agreement == 1 and table[0].drop == 0


def test_significance_is_against_ours(dense: stm.ViM, samples: SampleSet, fitting: Fit) -> None:
    entered = contenders(dense, methods=["rmeeto"], fitting=fitting)
    runs = run_all(entered, samples).runs
    table = {row.method: row for row in rows(entered, runs, data="x")}
    by_name = {entrant.method: found.records for entrant, found in zip(entered, runs, strict=True)}
    assert table["stm"].stm_p is None and "ours" in table["stm"].reasons["stm_p"]
    right = {name: [r.pred == r.label for r in records] for name, records in by_name.items()}
    won = sum(a and not b for a, b in zip(right["stm"], right["rmeeto"], strict=True))
    lost = sum(b and not a for a, b in zip(right["stm"], right["rmeeto"], strict=True))
    assert table["rmeeto"].stm_ahead == (won - lost) / 7
    assert table["rmeeto"].stm_p == mcnemar(won, lost)
    assert compared([], []) is None


def test_without_labels_there_is_agreement_and_a_reason(dense: stm.ViM, samples: SampleSet, fitting: Fit) -> None:
    bare = SampleSet("bare", tuple(Sample(s.file, None, s.source) for s in samples.samples))
    entered = contenders(dense, methods=["rmeeto"], fitting=fitting)
    for row in rows(entered, run_all(entered, bare).runs, data="bare"):
        assert row.top1 is None and row.stm_p is None and "label" in row.reasons["stm_p"] and row.agreement is not None


def test_broken_images_are_counted_and_left_out(dense: stm.ViM, tmp_path: Path, fitting: Fit) -> None:
    folder = labelled(tmp_path / "images", ["a.png,1", "b.png,2", "c.png,3"])
    (folder / "b.png").write_bytes(b"not an image")
    entered = contenders(dense, methods=[], fitting=fitting)
    samples = as_samples(folder, dense.config)
    for row in rows(entered, run_all(entered, samples, workers=0).runs, data="x"):
        assert (row.n, row.failed) == (2, 1)
    for name in "ac":
        (folder / f"{name}.png").write_bytes(b"")
    with pytest.raises(DataError, match="none of the 3 images"):
        rows(entered, run_all(entered, samples, workers=0).runs, data="x")


def test_the_command_writes_table_and_figure_whole(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    images = labelled(tmp_path / "images", ["a.png,1", "b.png,2", "c.png,3"])
    out = tmp_path / "table"
    options = {
        "source": ModelOptions(image_size=64, device="cpu"),
        "images": EvalOptions(data=images, workers=0),
        "fit": FEW,
        "methods": ["paper", "rmeeto"],
        "out": out,
    }
    report = compare.compare(str(MINI), also=[str(MINI.with_name("vim_mini.pth"))], at="both", **options)
    assert {path.name for path in out.iterdir()} == set(report.files) == set(compare.COMPARED)
    assert json.loads((out / "compare.json").read_text()) == json.loads(report.to_json())
    lines = list(csv.DictReader(io.StringIO((out / "compare.csv").read_text())))
    assert [line["method"] for line in lines] == [row.method for row in report.rows]
    assert float(lines[1]["flops_honest_saving"]) == report.target
    assert report.fit is not None and (report.fit.data, report.fit.n, report.fitted_on) == ("drawn pictures", 3, 0)
    assert lines[1]["top1_low"] and lines[1]["acts_after"]
    with pytest.raises(UsageError, match="already exists"):
        compare.compare(str(MINI), **options)
    assert compare.compare(str(MINI), **options, force=True).n == 3


def test_entrants_say_what_they_are(dense: stm.ViM, fitting: Fit) -> None:
    found: list[Contender] = contenders(dense, methods=["paper", "rmeeto"], fitting=fitting)
    assert {e.method: e.known["static"] for e in found} == {
        "dense": True,
        "stm": True,
        "paper": False,
        "random": True,
        "rmeeto": False,
    }
    for entrant in found:
        assert entrant.known["tokens_per_block"][-1] == entrant.known["tokens_left"]


def test_an_image_that_decided_is_in_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = labelled(tmp_path / "images", [f"{letter}.png,{number}" for number, letter in enumerate("abcdefghi")])
    options: dict[str, Any] = {
        "source": ModelOptions(image_size=64, device="cpu"),
        "images": EvalOptions(data=images, workers=0),
        "fit": FitOptions(fit_on=images, fit_images=4, no_cache=True),
        "methods": [],
    }
    with pytest.raises(DataError, match="fitted on all 9 images of images, which therefore measure nothing"):
        compare.compare(str(MINI), **options)
    monkeypatch.setattr(fit_images, "JUDGES", 2)
    report = compare.compare(str(MINI), **options)
    assert report.fit is not None and (report.fit.data, report.fit.n, report.fit.judges) == ("images", 4, 2)
    # `staged` saves too little on six blocks to be a candidate
    assert len(report.fit.tried) == 7 and report.fit.tried[0].cut == report.fit.cut
    assert (report.n, report.fitted_on) == (3, 6) and {row.n for row in report.rows} == {3}
    assert report.skipped_notes == ("6 more images decided the schedule, and are in no number",)
    other = labelled(tmp_path / "other", ["a.png,1", "b.png,2", "c.png,3"])
    elsewhere = compare.compare(str(MINI), **options | {"images": EvalOptions(data=other, workers=0)})
    assert (elsewhere.n, elsewhere.fitted_on) == (3, 0) and elsewhere.fit == report.fit
