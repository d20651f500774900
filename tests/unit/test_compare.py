"""The comparison's rows: who is in them, what they are measured against, and that one pass equals one run a model."""

import csv
import io
import json
from pathlib import Path

import pytest
import torch

import stm
from stm.commands import compare
from stm.data.images import Sample
from stm.data.open import as_samples
from stm.data.sets import SampleSet
from stm.errors import DataError, UsageError
from stm.measure.compare import Contender, contenders, rows, run_all
from stm.measure.evaluate import run
from stm.measure.stats import compared, mcnemar
from stm.options import EvalOptions, ModelOptions
from stm.peers import DEFAULT
from tests.pictures import labelled

MINI = Path(__file__).parents[1] / "golden" / "dense-mini" / "vim_mini_stride8.pth"


@pytest.fixture(scope="module")
def dense() -> stm.ViM:
    return stm.load_checkpoint(MINI, image_size=64, device="cpu")


@pytest.fixture(scope="module")
def samples(dense: stm.ViM) -> SampleSet:

    images = torch.randn(7, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return as_samples([(image, i % 10) for i, image in enumerate(images)], dense.config)


def test_who_is_in_the_table(dense: stm.ViM) -> None:
    found = contenders(dense)
    assert [e.method for e in found] == ["dense", "stm", "paper", *DEFAULT]
    assert [e.method for e in contenders(dense, methods=["mtr", "paper"])] == ["dense", "stm", "paper", "random", "mtr"]
    assert [(e.method, e.known.get("schedule")) for e in contenders(dense, methods=["hsa"], at="both")] == [
        ("dense", None),
        ("stm", "staged"),
        ("random", "published"),
        ("random", "stm"),
        ("hsa", "published"),
        ("hsa", "stm"),
    ]
    ours = next(e for e in found if e.method == "stm")
    moved = next(e for e in contenders(dense, methods=["hsa"], at="stm") if e.method == "hsa")
    assert moved.known["acts_after"] == ours.known["acts_after"]
    by_rate = contenders(dense, methods=["paper"], rate=0.4)
    assert [e.model.config.recipe.rate for e in by_rate if e.method in ("stm", "paper")] == [0.4, 0.4]


def test_what_cannot_be_compared_is_refused(dense: stm.ViM) -> None:
    with pytest.raises(UsageError, match="unknown method 'rmeto', expected some of stm, paper, random"):
        contenders(dense, methods=["rmeto"])
    with pytest.raises(UsageError, match="rate and saving"):
        contenders(dense, rate=0.2, saving=0.2)
    with pytest.raises(UsageError, match="at is 'here'"):
        contenders(dense, at="here")
    with pytest.raises(UsageError, match="already compressed"):
        contenders(stm.compress(dense, saving=0.2))
    with pytest.raises(UsageError, match="leaves nothing to compare"):
        contenders(dense, saving=0.0)
    other = stm.load_checkpoint(MINI.with_name("vim_mini.pth"), image_size=64, device="cpu")
    assert contenders(dense, methods=[], also={"mini": other})[-1].known["sibling"]
    with pytest.raises(UsageError, match="small is compressed"):
        contenders(dense, methods=[], also={"small": stm.compress(dense, saving=0.2)})


def test_one_pass_equals_a_run_for_each_model(dense: stm.ViM, samples: SampleSet) -> None:
    entered = contenders(dense, methods=["rmeeto", "storm"])
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


def test_significance_is_against_ours(dense: stm.ViM, samples: SampleSet) -> None:
    entered = contenders(dense, methods=["rmeeto"])
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


def test_without_labels_there_is_agreement_and_a_reason(dense: stm.ViM, samples: SampleSet) -> None:
    bare = SampleSet("bare", tuple(Sample(s.file, None, s.source) for s in samples.samples))
    entered = contenders(dense, methods=["rmeeto"])
    for row in rows(entered, run_all(entered, bare).runs, data="bare"):
        assert row.top1 is None and row.stm_p is None and "label" in row.reasons["stm_p"] and row.agreement is not None


def test_broken_images_are_counted_and_left_out(dense: stm.ViM, tmp_path: Path) -> None:
    folder = labelled(tmp_path / "images", ["a.png,1", "b.png,2", "c.png,3"])
    (folder / "b.png").write_bytes(b"not an image")
    entered = contenders(dense, methods=[])
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
        "methods": ["paper", "rmeeto"],
        "out": out,
    }
    report = compare.compare(str(MINI), also=[str(MINI.with_name("vim_mini.pth"))], at="both", **options)
    assert {path.name for path in out.iterdir()} == set(report.files) == set(compare.COMPARED)
    assert json.loads((out / "compare.json").read_text()) == json.loads(report.to_json())
    lines = list(csv.DictReader(io.StringIO((out / "compare.csv").read_text())))
    assert [line["method"] for line in lines] == [row.method for row in report.rows]
    assert float(lines[1]["flops_honest_saving"]) == report.target
    assert lines[1]["top1_low"] and lines[1]["acts_after"]
    with pytest.raises(UsageError, match="already exists"):
        compare.compare(str(MINI), **options)
    assert compare.compare(str(MINI), **options, force=True).n == 3


def test_entrants_say_what_they_are(dense: stm.ViM) -> None:
    found: list[Contender] = contenders(dense, methods=["paper", "rmeeto"])
    assert {e.method: e.known["static"] for e in found} == {
        "dense": True,
        "stm": True,
        "paper": False,
        "random": True,
        "rmeeto": False,
    }
    for entrant in found:
        assert entrant.known["tokens_per_block"][-1] == entrant.known["tokens_left"]
