"""Progress: it moves within a batch, names who is at work, and is drawn in Python if somebody asks."""

import io
import sys
from typing import Any

import pytest

import stm
from stm.bar import Bar, drawn
from stm.data.open import as_samples
from stm.measure.compare import Contender, run_all
from stm.progress import Meter, OnProgress, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Notebook:
    """IPython, as far as a bar meets it."""

    def __init__(self) -> None:
        self.display, self.kernel, self.shown = self, None, list[str]()

    def get_ipython(self) -> "Notebook":
        return self

    def show(self, data: dict[str, str], raw: bool, display_id: bool = True) -> "Notebook":
        self.shown.append(data["text/plain"])
        return self

    def __getattr__(self, name: str) -> Any:
        return {"update": self.show}[name]


@pytest.fixture(scope="module")
def dense() -> stm.ViM:
    return stm.load("vim-digits", device="cpu")


def test_a_batch_moves_while_it_runs_and_says_who_is_at_work(dense: stm.ViM) -> None:
    """20 images in one batch pass two models, 8 at once."""
    seen: list[Progress] = []
    stm.evaluate(dense, None, reference=dense, limit=20, batch_size=20, on_progress=seen.append)
    assert [(at.done, at.detail) for at in seen] == [
        (0, ""),
        (4, "the dense model"),
        (8, "the dense model"),
        (10, "the dense model"),
        (14, "the model"),
        (18, "the model"),
        (19, "the model"),
        (20, "the model"),
    ]


def test_the_methods_are_named(dense: stm.ViM) -> None:
    seen: list[Progress] = []
    samples = as_samples(None, dense.config).take(9, 0)
    run_all([Contender(dense, {"method": name}) for name in ("dense", "stm")], samples, on_progress=seen.append)
    assert [(at.done, at.total, at.detail) for at in seen] == [
        (0, 18, ""),
        *((done, 18, "dense") for done in (0, 8, 9)),
        *((done, 18, "stm") for done in (9, 17, 18)),
    ]


def test_a_line_has_its_end_in_sight() -> None:
    lines, times = list[str](), iter((0.0, 30.0, 30.01, 31.0))
    bar = Bar(lines.append, "compress", lambda: next(times))
    for done in (0, 10, 11, 12):
        bar(Progress("fit", done, 40, "images", "stm"))
    assert lines == [
        "compress ...",
        "fit ░░░░░░░░░░░░░░░░░░░░ 0/40 images, stm",
        "fit █████░░░░░░░░░░░░░░░ 10/40 images, stm, 1:30 left",
        "fit ██████░░░░░░░░░░░░░░ 12/40 images, stm, 1:12 left",
    ]


def test_it_is_drawn_on_a_terminal_and_removed(dense: stm.ViM, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, seen = Terminal(), list[Progress]()
    monkeypatch.setattr(sys, "stderr", terminal)
    stm.evaluate(dense, None, limit=4, progress=True, on_progress=seen.append)
    assert terminal.getvalue().startswith("\r\x1b[Kevaluate ...") and terminal.getvalue().endswith("\r\x1b[K")
    assert "4/4 images" in terminal.getvalue() and seen[-1].done == 4
    stm.compress(dense, rate=0.4, method="paper", progress=True)
    assert "compress ..." in terminal.getvalue()


def test_it_is_drawn_in_a_notebook_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(progress: bool = True) -> OnProgress | None:
        with drawn(progress, None, stage="fit") as tell:
            if tell is not None:
                tell(Progress("fit", 1, 2, "images"))
            return tell

    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setitem(sys.modules, "IPython", None)
    assert draw() is None and sys.stderr.getvalue() == ""  # type: ignore[attr-defined]
    notebook = Notebook()
    notebook.__dict__["display"] = type("Display", (), {"display": staticmethod(notebook.show)})
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    assert draw(False) is None and notebook.shown == []
    draw()
    assert notebook.shown == ["fit ...", "fit ██████████░░░░░░░░░░ 1/2 images", ""]


def test_a_meter_counts_whole_images_of_all_passes() -> None:
    seen: list[Progress] = []
    meter = Meter(seen.append, "x", 10, passes=3, done=2)
    meter.passed(4)
    meter.passed(1)
    meter.finished(6)
    assert [at.done for at in seen] == [2, 3, 6]
