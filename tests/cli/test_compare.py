"""`stm compare` as a user runs it: no option is ignored, stdout is data, the screen fits, errors are one sentence."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import stm_cli.compare
from stm.codec import decode
from stm.commands import compare as compare_command
from stm.findings import CompareReport
from tests.cli.conftest import arrived_by

QUICK = ("--methods", "paper", "--fit-images", "3", "--image-size", "64")
CHANGES: dict[str, tuple[str, ...]] = {
    "saving": ("--saving", "0.3"),
    "rate": ("--rate", "0.4"),
    "methods": ("--methods", "hsa"),
    "at": ("--at", "stm"),
    "also": ("--also", "SIBLING"),
    "fit_on": ("--fit-on", "OTHER"),
    "fit_images": ("--fit-images", "9"),
    "data": ("--data", "OTHER"),
    "split": ("--split", "wish"),
    "image_column": ("--image-column", "wish"),
    "label_column": ("--label-column", "wish"),
    "labels": ("--labels", "wish"),
    "limit": ("--limit", "5"),
    "seed": ("--seed", "3"),
    "image_size": ("--image-size", "112"),
    "class_token": ("--class-token", "head"),
    "divide_out": ("--no-divide-out",),
    "mean": ("--mean", "0.5"),
    "std": ("--std", "0.5,0.5,0.4"),
    "crop_ratio": ("--crop-ratio", "0.7"),
    "interpolation": ("--interpolation", "nearest"),
    "backbone": ("--backbone",),
    "ema": ("--ema",),
    "weights_key": ("--weights-key", "model"),
    "device": ("--device", "wish"),
    "dtype": ("--dtype", "bfloat16"),
    "backend": ("--backend", "reference"),
}
ARRIVE = {"no_cache", "batch_size", "workers", "token", "file", "revision"}
ELSEWHERE = {"model", "out", "force", "json", "quiet", "format"}


@pytest.fixture(scope="module")
def other(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    rows = (labelled / "labels.csv").read_text().splitlines()[:7]
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    for row in rows[1:]:
        (folder / row.split(",")[0]).write_bytes((labelled / row.split(",")[0]).read_bytes())
    return folder


@pytest.fixture(scope="module")
def bare(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mini checkpoint without the trainer's arguments, which say its size."""
    path = tmp_path_factory.mktemp("bare") / "midclstok.pth"
    torch.save(torch.load(mini, weights_only=False)["model"], path)
    return path


@pytest.fixture(scope="module")
def bases() -> list[Any]:
    """What the command found without the option of a test: all options change the same base, which runs once."""
    return []


def found(run: Any) -> Any:
    """What a run found, speed left out; or the error that it met."""
    if run.code != 0:
        return run.err
    report = json.loads(run.out)
    for row in report["rows"]:
        row.pop("images_per_second")
    return report


def test_every_option_is_here() -> None:
    assert set(inspect.signature(stm_cli.compare.run).parameters) == CHANGES.keys() | ARRIVE | ELSEWHERE


@pytest.mark.parametrize("option", CHANGES)
def test_each_option_changes_the_result(
    here, option: str, mini: Path, labelled: Path, other: Path, bare: Path, bases: list[Any]
) -> None:
    def compare(*args: str) -> Any:
        names = {"OTHER": str(other), "SIBLING": str(mini.with_name("vim_mini.pth"))}
        words = [names.get(word, word) for word in args]
        data = () if "--data" in words else ("--data", labelled)
        quick = QUICK[:-2] if "--image-size" in words else QUICK
        return found(here("compare", bare, "--json", *data, *quick, *words))

    if not bases:
        bases.append(compare())
    assert isinstance(bases[0], dict), bases[0]
    assert compare(*CHANGES[option]) != bases[0]


def test_what_only_changes_the_effort_arrives(here, monkeypatch: pytest.MonkeyPatch) -> None:
    arrived: dict[str, Any] = {}

    monkeypatch.setattr(compare_command, "compare", arrived_by(arrived))
    options = (
        "--batch-size",
        "7",
        "--workers",
        "2",
        "--token",
        "t",
        "--file",
        "f",
        "--revision",
        "r",
        "--out",
        "o",
        "--force",
        "--no-cache",
    )
    assert here("compare", "someone/vim", *options).err == "Error: enough\n"
    expected = {
        "batch_size": 7,
        "workers": 2,
        "token": "t",
        "file": "f",
        "revision": "r",
        "out": Path("o"),
        "force": True,
        "no_cache": True,
    }
    assert {name: arrived[name] for name in expected} == expected


def test_screen_json_and_errors(here, narrow, mini: Path, labelled: Path) -> None:
    few = ("--fit-images", "3")
    run = here("compare", mini, "--data", labelled, *few, "--methods", "paper,rmeeto,storm", "--at", "both")
    assert run.code == 0, run.err
    assert max(map(len, run.out.splitlines())) <= 80
    assert "stm: fitted on 3 drawn pictures, seed 0" in run.out
    for word in ("dense", "stm", "paper", "random at stm's places", "rmeeto", "looks at data", "static"):
        assert word in run.out
    report = json.loads(here("compare", mini, "--data", labelled, *few, "--methods", "staged", "--json").out)
    narrow(stm_cli.compare, decode(CompareReport, report, ""))
    assert {"command", "data", "environment", "rows", "target"} <= report.keys() and report["command"] == "compare"
    assert (report["fit"]["data"], report["fit"]["n"], report["fit"]["judges"]) == ("drawn pictures", 3, 0)
    assert len(report["fit"]["sha256"]) == 64
    assert [(row["method"], row["schedule"]) for row in report["rows"]] == [
        ("dense", None),
        ("stm", "fitted"),
        ("staged", "staged"),
        ("random", "published"),
    ]
    row = report["rows"][1]
    assert {
        "method",
        "schedule",
        "weights",
        "flops",
        "top1",
        "drop_ci",
        "kl",
        "images_per_second",
        "static",
        "stm_p",
    } <= row.keys()
    assert set(row["flops"]) == {"paper", "honest", "paper_saving", "honest_saving"}
    pasted = here("compare", mini, "--data", labelled, *few, "--methods", "staged", "--format", "latex")
    assert pasted.out.startswith("\\begin{tabular}{lrrrrr") and pasted.out.count(r"\\") == 5 and pasted.code == 0
    both = here("compare", mini, "--format", "latex", "--json")
    assert both.code == 2 and "--format and --json were both given" in both.err
    bad = here("compare", mini, "--methods", "rmeto")
    assert bad.code == 2 and "unknown method 'rmeto'" in bad.err and bad.out == ""
    assert here("compare", mini, "--methods", "a,,b").code == 2
    lost = here("compare", mini, "--fit-on", "nowhere")
    assert lost.code == 1 and "nowhere does not exist" in lost.err and lost.out == ""
    much = here("compare", mini, "--saving", "0.99", "--fit-on", "nowhere")  # refused before the fit
    assert much.code == 2 and "the largest possible saving is" in much.err
