"""`stm explain` and `stm report`: each option changes the result, what is on disk, and what is refused."""

import csv
import inspect
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import stm_cli.explain
import stm_cli.report
from stm.codec import encode
from stm.commands import compress, env
from stm.commands import explain as explain_command
from stm.errors import UsageError
from stm.explain import cost_figures, figures
from stm.explain import folder as explanation
from stm.peers import PEERS
from stm.plots import style as plots

pytest.importorskip("matplotlib", reason="figures need matplotlib, the extra plots")

EXPLAIN = {
    "images": ("OTHER",),
    "rate": ("--rate", "0.2"),
    "saving": ("--saving", "0.3"),
    "stages": ("--stages", "2,4"),
    "method": ("--method", "paper"),
    "schedule": ("--schedule", "sweep"),
    "fit_on": ("--fit-on", "LABELLED", "--fit-images", "2"),
    "fit_images": ("--fit-images", "9"),
    "peer": ("--peer", "rmeeto"),
    "block": ("--block", "1"),
    "places": ("--places", "3"),
    "image_size": ("--image-size", "112"),
    "class_token": ("--class-token", "head"),
    "divide_out": ("--no-divide-out",),
    "mean": ("--mean", "0.5"),
    "std": ("--std", "0.5,0.5,0.4"),
    "crop_ratio": ("--crop-ratio", "0.7"),
    "interpolation": ("--interpolation", "nearest"),
    "device": ("--device", "wish"),
    "dtype": ("--dtype", "bfloat16"),
    "backend": ("--backend", "reference"),
}
REPORT = {
    "data": ("--data", "OTHER"),
    "split": ("--split", "wish"),
    "image_column": ("--image-column", "wish"),
    "label_column": ("--label-column", "wish"),
    "records": ("--records", "records.csv"),
    "limit": ("--limit", "5"),
    "sweep": ("--sweep", "rows.json"),
    "bench": ("--bench", "rows.json"),
    "device": ("--device", "wish"),
    "dtype": ("--dtype", "bfloat16"),
    "backend": ("--backend", "reference"),
}
# Tested below, or for every command elsewhere (the Hub: tests/hub; ema: test_options).
ELSEWHERE = {
    "model",
    "folder",
    "out",
    "force",
    "file",
    "revision",
    "token",
    "backbone",
    "ema",
    "weights_key",
    "labels",
    "seed",
    "batch_size",
    "no_cache",
    "workers",
    "json",
    "quiet",
}


def test_every_option_is_here() -> None:
    assert set(inspect.signature(stm_cli.explain.run).parameters) <= EXPLAIN.keys() | ELSEWHERE
    assert set(inspect.signature(stm_cli.report.run).parameters) <= REPORT.keys() | ELSEWHERE


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "noise.png"
    Image.frombytes("RGB", (70, 64), bytes(number * number % 251 for number in range(70 * 64 * 3))).save(path)
    return path


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are neither drawn nor written: their data is what an option changes, and drawing takes seconds."""
    monkeypatch.setattr(plots, "save", lambda figure, folder, name: ())
    for module in (figures, cost_figures):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__annotations__.get("return") == "Figure":
                monkeypatch.setattr(module, name, lambda *values: None)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def base() -> dict[str, Any]:
    return {}


@pytest.mark.parametrize("option", EXPLAIN)
def test_each_option_of_explain_changes_the_result(
    here, mini: Path, image: Path, labelled: Path, tmp_path: Path, undrawn: None, base: dict[str, Any], option: str
) -> None:
    def explain(*args: str | Path) -> Any:
        there = {"OTHER": labelled / "image 3.png", "LABELLED": labelled}
        words = [there.get(str(word), word) for word in args]
        run = here(
            "explain",
            mini,
            *([] if "OTHER" in args else [image]),
            "--places",
            "2",
            "--fit-images",
            "6",
            "--out",
            "out",
            "--force",
            "--json",
            *words,
        )
        return contents(tmp_path / "out") if run.code == 0 else run.err

    if not base:
        base.update(explain())
    assert explain(*EXPLAIN[option]) != base


@pytest.fixture(scope="module")
def small(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "my small model"
    compress.compress(str(mini), eval=False, out=folder)
    return folder


@pytest.fixture(scope="module")
def first() -> list[Any]:
    """What `stm report` says without the option of a test: all options change the same report."""
    return []


@pytest.mark.parametrize("option", REPORT)
def test_each_option_of_report_changes_the_result(
    here, small: Path, labelled: Path, tmp_path: Path, first: list[Any], option: str
) -> None:
    rows = [
        {
            "variant": "dense",
            "batch_size": 1,
            "ms_per_image": 8.0,
            "images_per_second": 125.0,
            "flops": {"paper": 10**9},
            "top1": 0.5,
        }
    ]
    about = {"command": "sweep", "model": "m", "environment": encode(env.environment().environment)}
    (tmp_path / "rows.json").write_text(json.dumps(about | {"rows": rows}))
    other = tmp_path / "other"
    other.mkdir()
    for name in ("image 1.png", "image 2.png"):
        os.link(labelled / name, other / name)
    (other / "labels.csv").write_text("filename,label\nimage 1.png,1\nimage 2.png,2\n")

    def report(*args: str) -> Any:
        words = [other if word == "OTHER" else word for word in args]
        data = () if "--data" in args else ("--data", labelled)
        run = here("report", small, "--out", "page.html", "--force", "--json", *data, *words)
        if run.code != 0:
            return run.err
        document = json.loads(run.out)
        document["eval"].pop("images_per_second")
        document.pop("bytes")
        return document, sorted(path.name for path in tmp_path.iterdir())

    if not first:
        first.append(report())
        assert report() == first[0], "the same command says the same"
    assert isinstance(first[0], tuple), first[0]
    assert report(*REPORT[option]) != first[0]


@pytest.mark.slow
def test_explain_writes_a_folder_once(here, mini: Path, image: Path, tmp_path: Path) -> None:
    words = ("explain", mini, image, "--places", "2", "--quiet")
    assert here(*words) == (0, "vim_mini_stride8-explained\n", "")
    folder = tmp_path / "vim_mini_stride8-explained"
    report, first = json.loads((folder / "explain.json").read_text()), contents(folder)
    assert sorted(report["files"]) == sorted(os.listdir(folder)) and report["images"] == [str(image)]
    assert any(name.endswith(".png") for name in first) and any(name.endswith(".svg") for name in first)
    refused = here(*words)
    assert refused.code == 2 and "already exists" in refused.err
    assert here(*words, "--force").code == 0
    assert contents(folder) == first, "the same explanation is the same bytes, figures included"
    (folder / "mine.txt").write_text("x")
    assert "holds mine.txt" in here(*words, "--force").err


@pytest.mark.parametrize("peer", PEERS)
def test_every_peer_says_which_patches_went_where(
    here, mini: Path, image: Path, tmp_path: Path, undrawn: None, peer: str
) -> None:
    """Patches are held once or pruned, and the counts are those of the plan."""
    assert here("explain", mini, image, "--peer", peer, "--places", "1", "--fit-images", "6", "--out", "x").code == 0
    report = json.loads((tmp_path / "x" / "explain.json").read_text())
    for stage in json.loads((tmp_path / "x" / "image-1-groups.json").read_text())["stages"]:
        held = [patch for group in stage["patches"] for patch in group]
        assert sorted([*held, *stage["pruned"]]) == list(range(49))
        assert {report["tokens_per_block"][block] for block in range(stage["blocks"][0], stage["blocks"][1] + 1)} == {
            stage["tokens"]
        }
        assert stage["tokens"] == len(stage["patches"]) + 1


def test_explain_of_a_folder(here, small: Path, image: Path, tmp_path: Path, undrawn: None) -> None:
    refused = here("explain", small, image, "--rate", "0.2")
    assert refused.code == 2 and "is already compressed" in refused.err and os.listdir(tmp_path) == []
    assert here("explain", small, image, "--places", "2", "--out", "x").code == 0
    with open(tmp_path / "x" / "plan.csv", newline="") as file:
        changes = [float(row["forward"]) for row in csv.DictReader(file)]
    assert changes[0] == 0 and changes[-1] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--block", "6"), "block is 6, expected 1 to 5"),
        (("--peer", "ours"), "'ours' is not a peer"),
        (("nothing.png",), "nothing.png"),
        (("--out", "/proc/x"), "/proc/x cannot be written"),
    ],
)
def test_what_explain_refuses(here, mini: Path, image: Path, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    run = here("explain", mini, image, *words)
    assert run.code in (1, 2) and said in run.err.splitlines()[0] and os.listdir(tmp_path) == []


def test_too_many_images() -> None:
    with pytest.raises(UsageError, match="17 images, expected at most 16"):
        explain_command.explain("vim-digits", ["x.png"] * (explanation.MOST_IMAGES + 1))


def test_a_report_of_records_measures_nothing_again(here, small: Path, labelled: Path, tmp_path: Path) -> None:
    assert here("eval", small, "--data", labelled, "--records", "records.csv", "--quiet").code == 0
    run = here("report", small, "--data", labelled, "--records", "records.csv", "--json")
    document = json.loads(run.out)
    assert (
        document["output"] == "my small model-report.html"
        and (tmp_path / document["output"]).stat().st_size == document["bytes"]
    )
    assert document["eval"]["images_per_second"] is None and document["eval"]["n"] == 12
    assert len(document["changed"]) == 10 and set(document["missing"]) == {"bench", "sweep"}
    again = here("report", small, "--data", labelled)
    assert again.code == 2 and "already exists" in again.err
    other = here("report", small, "--records", "records.csv", "--force")
    assert other.code == 1 and "another run" in other.err, "records of other images"


def test_what_report_refuses(here, mini: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}")
    for words, code, said in (
        (("nothing",), 1, "nothing is neither a file or folder here nor an alias"),
        (("x", "--out", "no/where.html"), 2, "the folder no does not exist"),
        (("x", "--out", "."), 2, "is a folder"),
        (("x", "--sweep", "bad.json"), 1, "bad.json is not a report of stm sweep"),
        (("x", "--bench", "none.json"), 1, "none.json cannot be read"),
        (("x", "--records", "no/where.csv"), 2, "the folder no does not exist"),
    ):
        run = here("report", *words)
        assert (run.code, run.out) == (code, "") and said in run.err.splitlines()[0], words
    assert os.listdir(tmp_path) == ["bad.json"]


def test_a_dense_folder_has_nothing_to_report(here, mini: Path, tmp_path: Path) -> None:
    import stm

    stm.load_checkpoint(mini).save_pretrained(tmp_path / "dense")
    run = here("report", "dense")
    assert run.code == 2 and "holds a dense model" in run.err and "stm compress" in run.err
