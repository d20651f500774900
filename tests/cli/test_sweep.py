"""`stm sweep` as a user runs it: no option is ignored, a real kill loses nothing that was finished, the screen fits."""

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import stm_cli.sweep
from stm.codec import decode
from stm.commands import sweep
from stm.findings import SweepReport
from tests.cli.conftest import ROOT, arrived_by
from tests.hang import HANG

pytest.importorskip("matplotlib")
ARRIVE: dict[str, tuple[tuple[str, ...], Any]] = {
    "method": (("--method", "paper"), "paper"),
    "rates": (("--rates", "0.2,0.3"), (0.2, 0.3)),
    "sides": (("--sides", "both,left"), ("both", "left")),
    "schedules": (("--schedules", "staged,sweep"), ("staged", "sweep")),
    "weights": (("--weights", "size,mean"), ("size", "mean")),
    "step_scales": (("--step-scales", "0,0.5"), (0.0, 0.5)),
    "convs": (("--convs", "plain,span"), ("plain", "span")),
    "tokens_per_side": (("--tokens-per-side", "1,2"), (1, 2)),
    "peers": (("--peers", "hsa,mtr"), ("hsa", "mtr")),
    "also": (("--also", "vim-ti"), ("vim-ti",)),
    "fit_on": (("--fit-on", "f"), "f"),
    "fit_images": (("--fit-images", "9"), 9),
    "no_cache": (("--no-cache",), True),
    "data": (("--data", "d"), "d"),
    "split": (("--split", "val"), "val"),
    "image_column": (("--image-column", "scan"), "scan"),
    "label_column": (("--label-column", "finding"), "finding"),
    "limit": (("--limit", "7"), 7),
    "batch_size": (("--batch-size", "8"), 8),
    "seed": (("--seed", "3"), 3),
    "out": (("--out", "o"), Path("o")),
    "file": (("--file", "f"), "f"),
    "revision": (("--revision", "r"), "r"),
    "token": (("--token", "t"), "t"),
    "image_size": (("--image-size", "64"), 64),
    "class_token": (("--class-token", "head"), "head"),
    "divide_out": (("--no-divide-out",), False),
    "mean": (("--mean", "0.5"), (0.5,)),
    "std": (("--std", "0.1,0.2,0.3"), (0.1, 0.2, 0.3)),
    "crop_ratio": (("--crop-ratio", "0.9"), 0.9),
    "interpolation": (("--interpolation", "nearest"), "nearest"),
    "backbone": (("--backbone",), True),
    "ema": (("--ema",), True),
    "weights_key": (("--weights-key", "model"), "model"),
    "labels": (("--labels", "names.txt"), Path("names.txt")),
    "device": (("--device", "cpu"), "cpu"),
    "dtype": (("--dtype", "bfloat16"), "bfloat16"),
    "backend": (("--backend", "reference"), "reference"),
    "workers": (("--workers", "2"), 2),
}
QUICK = (
    "--image-size",
    "64",
    "--rates",
    "0.2,0.4",
    "--sides",
    "both,left",
    "--peers",
    "rmeeto",
    "--device",
    "cpu",
    "--fit-images",
    "3",
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the processes that are started have: how sums round depends on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_option_is_here() -> None:
    assert set(inspect.signature(stm_cli.sweep.run).parameters) == ARRIVE.keys() | {
        "model",
        "no_peers",
        "json",
        "quiet",
        "format",
    }


def test_every_option_arrives(here, monkeypatch: pytest.MonkeyPatch) -> None:
    """What each axis then does to the grid is tested in tests/unit/test_sweep.py."""
    arrived: dict[str, Any] = {}

    monkeypatch.setattr(sweep, "sweep", arrived_by(arrived))
    words = [word for args, _ in ARRIVE.values() for word in args]
    assert here("sweep", "someone/vim", *words).err == "Error: enough\n"
    assert {name: arrived[name] for name in ARRIVE} == {name: value for name, (_, value) in ARRIVE.items()}
    here("sweep", "someone/vim", "--no-peers")
    assert arrived["peers"] == ()


def table(path: Path) -> list[dict[str, Any]]:
    return [{**row, "images_per_second": None} for row in json.loads((path / "sweep.json").read_text())["rows"]]


def test_a_killed_sweep_gives_the_same_table(here, narrow, mini: Path, labelled: Path, tmp_path: Path) -> None:
    """SIGKILL as soon as the second cell is on the disk; then the same command again."""
    command = ["sweep", str(mini), "--data", str(labelled), *QUICK]
    assert here(*command, "--out", "whole").code == 0
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    plain: dict[str, Any] = {
        "cwd": tmp_path,
        "env": environment,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.PIPE,
    }
    running = subprocess.Popen([sys.executable, "-m", "stm_cli", *command, "--out", "killed"], **plain)
    cells, deadline = tmp_path / "killed" / "cells.jsonl", time.monotonic() + HANG
    while not (cells.exists() and cells.read_bytes().count(b"\n") >= 2):
        assert running.poll() is None and time.monotonic() < deadline, "it ended, or never stored a cell"
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    stored = cells.read_bytes().count(b"\n")
    assert stored < len(table(tmp_path / "whole")) or not (tmp_path / "killed" / "sweep.json").exists()
    again = here(*command, "--out", "killed", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["resumed"] >= 2
    narrow(stm_cli.sweep, decode(SweepReport, json.loads(again.out), ""))
    assert table(tmp_path / "killed") == table(tmp_path / "whole")


def test_screen_and_errors(here, mini: Path, labelled: Path) -> None:
    run = here("sweep", mini, "--data", labelled, *QUICK, "--out", "out", "--weights", "size,mean")
    assert run.code == 0, run.err
    assert max(map(len, run.out.splitlines())) <= 80
    for word in ("fitted order, size weights", "fitted order, mean weights", "both", "left", "rmeeto", "dense:"):
        assert word in run.out
    again = here("sweep", mini, "--data", labelled, *QUICK, "--out", "out", "--weights", "size,mean")
    assert "cells were in out already" in again.err and again.out == run.out
    again = here(
        "sweep", mini, "--data", labelled, *QUICK, "--out", "out", "--weights", "size,mean", "--format=markdown"
    )
    assert again.out.startswith("| method | rate | sides | order | weights | p | conv | FLOPs |")
    assert len(again.out.splitlines()) == 13 and "| stm | 0.2 | both | fitted |" in again.out
    assert "fitted on 3 drawn pictures, seed 0" in run.out
    other = here("sweep", mini, "--data", labelled, *QUICK, "--out", "out", "--fit-images", "9")
    assert other.code == 1 and "out holds the cells of another run: fit differ" in other.err
    bad = here("sweep", mini, "--data", labelled, *QUICK, "--out", "out", "--convs", "wide")
    assert bad.code == 2 and "unknown conv 'wide'" in bad.err and bad.out == ""
    assert here("sweep", mini, "--rates", "a,b").code == 2
    none = here("sweep", mini, "--data", labelled, "--rates", "40", "--out", "none")
    assert none.code == 2 and "Error: no cell of the grid can be measured" in none.err and "0.4 is 40%" in none.err
    assert none.out == "" and not Path("none").exists()
