"""What examples/ holds: each file runs as it is, in an empty folder and offline, and the notebook is stored without
outputs."""

import json
import os
import re
import runpy
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import stm
from stm.data.images import Openable
from stm.data.open import open_samples
from tests.hang import HANG

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def run(monkeypatch: pytest.MonkeyPatch, name: str, *args: str) -> None:
    """An example as `python examples/NAME ARGS` runs it, in this process, which spares it the import of torch."""
    monkeypatch.setattr(sys, "argv", [name, *args])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == {
        "evaluate.py",
        "README.md",
        "onnx_predict.py",
        "push.py",
        "quickstart.ipynb",
        "serve.py",
    }


@pytest.mark.slow
def test_evaluate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, "evaluate.py")
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.startswith("rate  token-layers saved  top-1")
    assert [row.split()[0] for row in rows] == ["0.2", "0.4"]
    saved, top1 = (float(word.rstrip("%")) for word in rows[1].split()[1:3])
    assert 20 < saved < 25
    assert 70 < top1 < 100


def test_evaluate_says_in_one_sentence_that_labels_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report: Any = type("Unlabelled", (), {"top1": None, "drop": None, "drop_ci": None})
    monkeypatch.setattr(stm, "evaluate", lambda *_, **__: report)
    with pytest.raises(
        SystemExit, match="photos has no labels, so there is no accuracy: give a folder of labelled images"
    ):
        run(monkeypatch, "evaluate.py", "vim-digits", "photos")


def test_push_sends_nothing_unless_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: list[tuple[str, dict[str, Any]]] = []

    def record(model: stm.ViM, repo_id: str, **options: Any) -> str:
        assert model.plan is not None, "the compressed model, not the dense one"
        sent.append((repo_id, options))
        return "the address"

    monkeypatch.setattr(stm.ViM, "push_to_hub", record)
    run(monkeypatch, "push.py", "you/small")
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in shown] == ["README.md", "config.json", "model.safetensors"]
    assert all(line.endswith("to you/small") for line in shown)
    assert sent == [] and list(tmp_path.iterdir()) == []
    run(monkeypatch, "push.py", "you/small", "--yes")
    assert capsys.readouterr().out == "the address\n"
    assert [(repo, options["private"]) for repo, options in sent] == [("you/small", True)]
    with pytest.raises(SystemExit, match=r"^usage: python examples/push\.py"):
        run(monkeypatch, "push.py")


@pytest.fixture
def address() -> Iterator[str]:
    """Where the example serves, on a free port."""
    command = [sys.executable, str(EXAMPLES / "serve.py"), "0"]
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        yield server.stdout.readline().removeprefix("listening on ").strip()
        server.kill()


@pytest.mark.slow
def test_serve_answers_with_the_class_of_an_image_and_refuses_what_is_none(address: str) -> None:
    config = stm.load("vim-digits").config
    samples = open_samples(None, config=config, limit=8, seed=0).samples
    right = 0
    for sample in samples:
        assert isinstance(sample.source, Openable)
        with sample.source.open() as image:
            image.save("digit.png")
        with urllib.request.urlopen(address, Path("digit.png").read_bytes(), timeout=HANG) as answer:
            found = json.load(answer)
        assert 0 < found["probability"] <= 1
        right += found["class"] == sample.label
    assert right >= 6, "of eight digits that it was not trained on"
    for wrong in (b"no image", Path("digit.png").read_bytes()[:60]):
        with pytest.raises(urllib.error.HTTPError, match="not an image that can be read"):
            urllib.request.urlopen(address, wrong, timeout=HANG)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its cells are plain Python, so one namespace does what a kernel would, without the 30 packages of one."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells(path)):
        exec(compile(source(cell), f"{path.name}, code cell {number}", "exec"), names)
    assert "top-1" in capsys.readouterr().out


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_what_it_printed(path: Path) -> None:
    assert cells(path), "a notebook that shows nothing"
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells(path))
    assert not any(line.startswith(("%", "!")) for cell in cells(path) for line in source(cell).splitlines()), (
        "plain Python alone"
    )


@pytest.mark.slow
def test_the_python_of_the_sites_start_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (EXAMPLES.parent / "docs" / "index.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    exec(block, {})
    assert "EvalReport(data='digits-heldout', n=32" in capsys.readouterr().out


def cells(path: Path) -> list[dict[str, Any]]:
    """The code cells of a notebook."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])
