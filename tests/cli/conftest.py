"""The command as a user runs it: in a process of its own, or in this one where only speed differs."""

import contextlib
import io
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from stm.commands import predict
from stm.errors import UsageError
from stm.reports import Report
from stm_cli._output import Output
from stm_cli.main import main
from tests.hang import HANG

ROOT = Path(__file__).resolve().parents[2]


class Run(NamedTuple):
    code: int
    out: str
    err: str


Stm = Callable[..., Run]


@pytest.fixture
def stm(tmp_path: Path) -> Stm:
    """`stm("info", "vim-digits")`: the command in an empty folder, 80 columns wide, offline, without a terminal."""

    def run(*args: str | Path, **environment: str) -> Run:
        fixed = {
            "COLUMNS": "80",
            "NO_COLOR": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "stm_cli", *map(str, args)]
        plain = {"env": os.environ | fixed | environment, "cwd": tmp_path, "stdin": subprocess.DEVNULL, "timeout": HANG}
        done = subprocess.run(command, capture_output=True, text=True, **plain)
        return Run(done.returncode, done.stdout, done.stderr)

    return run


def arrived_by(arrived: dict[str, Any]) -> Callable[..., None]:
    """A command that notes its options by name, those of the groups that travel whole included, and then refuses."""

    def record(model: str, *groups: Any, **options: Any) -> None:
        for group in groups:
            arrived.update(vars(group))
        arrived.update(options)
        raise UsageError("enough")

    return record


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> Stm:
    """The same command in this process, which spares it the import of torch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(*args: str | Path) -> Run:
        monkeypatch.setattr(sys, "argv", ["stm", *map(str, args)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsysbinary.readouterr()
        return Run(int(caught.value.code or 0), out.decode(), err.decode())

    return run


@pytest.fixture
def screen_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Any, Report], list[str]]:
    """`screen_lines(bench, report)`: the screen that a module of stm_cli draws of a report, 80 columns wide."""
    monkeypatch.setenv("COLUMNS", "80")

    def draw(command: Any, report: Report) -> list[str]:
        Output(json=False, quiet=False).report(report, command.screen, lambda shown: "")
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    return draw


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, Report], None]:
    """`narrow(bench, report)`: at 60 columns, a module's screen has every number that it has at 200, and cuts none."""

    def words(command: Any, report: Report, width: int) -> list[str]:
        with monkeypatch.context() as at, contextlib.redirect_stdout(io.StringIO()) as caught:
            at.setenv("COLUMNS", str(width))
            Output(json=False, quiet=False).report(report, command.screen, lambda shown: "")
        out = caught.getvalue()
        assert "…" not in out
        return [word for word in out.split() if any(map(str.isdigit, word)) and "/" not in word]  # a path may fold

    def check(command: Any, report: Report) -> None:
        for width in (60, 40):
            assert set(words(command, report, 200)) <= set(words(command, report, width))

    return check


MINI = ROOT / "tests" / "golden" / "dense-mini" / "vim_mini_stride8.pth"


@pytest.fixture(scope="session")
def mini() -> Path:
    """A trainer's pickle of a mini ViM with random weights: 64 x 64 pixels, 50 tokens, 6 blocks, 10 classes."""
    return MINI


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve noisy images in labels.csv, with the labels that the mini model itself gives to ten of them."""
    folder = tmp_path_factory.mktemp("noise")
    draw = random.Random(0)
    names = [f"image {number}.png" for number in range(12)]
    for name in names:
        Image.frombytes("RGB", (64, 64), draw.randbytes(64 * 64 * 3)).resize((80, 80)).save(folder / name)
    found = predict.predict(str(MINI), [folder / name for name in names])
    labels = [prediction.top5[number >= 10].index for number, prediction in enumerate(found.predictions)]
    rows = [f"{name},{label}\n" for name, label in zip(names, labels, strict=True)]
    (folder / "labels.csv").write_text("filename,label\n" + "".join(rows))
    return folder
