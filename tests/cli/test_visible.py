"""What files, the Hub and the command line say reaches a terminal only as text: no character of theirs acts on it.

Every name and text that a user meets holds all that could: escape sequences, a line that passes for ours, marks of
direction, markup.
"""

import json
import logging
import os
import re
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from stm.errors import escaped
from stm_cli._output import Output
from stm_cli._visible import tame_libraries, visible, visible_json
from tests.cli.conftest import Run

EVIL = (
    "é日\x1b]0;title\x07\x1b[2J\x7f\x9b31m\u202e\u2066\u200f\u061c\u2028\x85\r\n\tError: fake\nNext: rm [red]x :smile:"
)
SHOWN = (
    "é日\\x1b]0;title\\x07\\x1b[2J\\x7f\\x9b31m\\u202e\\u2066\\u200f\\u061c\\u2028\\x85\\r\\n\\tError: fake\\nNext: rm"
    " [red]x :smile:"
)
ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def harmless(run: Run, code: int) -> Run:
    """The run ended with this code, and nothing that it showed acts on a terminal or passes for a line of ours."""
    assert run.code == code, run.err
    for text in run:
        assert not isinstance(text, str) or not ACTS.search(text), text
    for line in (run.out + run.err).splitlines():
        assert not line.startswith(("Error: fake", "Next: rm")), line
    return run


def joined(text: str) -> str:
    """A screen without the line breaks and indents that its width makes."""
    return re.sub(r"\s+", "", text)


@pytest.fixture
def images(labelled: Path, tmp_path: Path) -> Path:
    """Three labelled images and a broken one."""
    folder = tmp_path / f"{EVIL} images"
    folder.mkdir()
    rows = (labelled / "labels.csv").read_text().splitlines()[1:4]
    for number, row in enumerate(rows):
        name, _, label = row.rpartition(",")
        target = folder / f"{number}{EVIL}.png"
        shutil.copy(labelled / name, target)
        (folder / str(label)).mkdir(exist_ok=True)
        target.rename(folder / str(label) / target.name)
    (folder / str(label) / f"broken {EVIL}.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def evil(here, mini: Path, tmp_path: Path) -> str:
    """A folder all of whose words are evil."""
    shutil.copy(mini, tmp_path / f"{EVIL}.pth")
    made = harmless(here("compress", f"{EVIL}.pth", "--no-eval", "--out", f"{EVIL} out"), 0)
    assert joined(SHOWN) in joined(made.out) and SHOWN in made.err
    file = tmp_path / f"{EVIL} out" / "config.json"
    document = json.loads(file.read_text())
    document["label_names"] = [f"{number} {EVIL}" for number in range(10)]
    document["id2label"] = {str(number): name for number, name in enumerate(document["label_names"])}
    document["source"] |= {"license": EVIL, "repo": EVIL}
    document["extra"]["notes"] = [EVIL]
    file.write_text(json.dumps(document))
    return file.parent.name


@pytest.mark.parametrize("form", [(), ("--quiet",), ("--json",)], ids=["screen", "quiet", "json"])
def test_a_folder_and_images_of_evil_words(
    here, evil: str, images: Path, tmp_path: Path, form: tuple[str, ...]
) -> None:
    photo = str(next(images.glob("*/0*")).relative_to(tmp_path))
    info = harmless(here("info", evil, *form), 0)
    predicted = harmless(here("predict", evil, photo, *form), 0)
    measured = harmless(here("eval", evil, "--data", images.name, *form), 0)
    if "--json" in form:
        assert json.loads(info.out)["source"]["license"] == EVIL and json.loads(info.out)["notes"] == [EVIL]
        assert EVIL in json.loads(predicted.out)["predictions"][0]["top5"][0]["label"]
        assert escaped(EVIL) in json.loads(measured.out)["broken"][0]
    elif "--quiet" in form:
        assert predicted.out.count("\n") == 1 and visible(photo) in predicted.out
    else:
        assert SHOWN in info.err and joined(f"license {SHOWN}") in joined(info.out)
        assert joined(SHOWN) in joined(predicted.out)
        assert f"broken {SHOWN}.png" in measured.err and f"Next: stm info '{SHOWN} out'" in measured.err


def test_the_folder_here(here, evil: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = tmp_path / evil
    monkeypatch.setattr(
        monkeypatch, "chdir", lambda _: os.chdir(other)
    )  # `here` goes to its own folder when it is made
    os.chdir(other)
    assert joined(f"{SHOWN} out") in joined(harmless(here("info", "."), 0).out)


def wanting(path: Path, module: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02c" + f"{module}\nevil\n)R.".encode())
        archive.writestr("x/version", "3")
    return path


@pytest.mark.parametrize("debug", ["", "1"], ids=["sentence", "traceback"])
def test_errors_and_hints(
    here, evil: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, debug: str
) -> None:
    monkeypatch.setenv("STM_DEBUG", debug)
    mark = EVIL.replace("\n", " ").replace("\r", " ")
    (tmp_path / f"{EVIL}.txt").write_text("text")
    save_file({EVIL: torch.ones(1)}, tmp_path / "names.safetensors")
    torch.save({EVIL: 1}, tmp_path / "keys.pth")
    torch.save({"model_ema": {}, EVIL: 1}, tmp_path / "average.pth")
    wanting(tmp_path / "global.pth", f"a{mark}")
    for command, code in (
        (("info", f"missing {EVIL}\udcff.pth"), 1),
        (("info", f"{EVIL}.txt"), 1),
        (("info", "names.safetensors"), 1),
        (("info", "keys.pth"), 1),
        (("info", "average.pth"), 1),
        (("info", "global.pth"), 1),
        (("predict", evil, str(next(images.glob("*/broken*")).relative_to(tmp_path))), 1),
        (("eval", evil, "--data", f"no {EVIL}"), 1),
        (("compress", evil, "--rate", EVIL), 2),
        (("compress", evil, "--method", EVIL), 2),
        (("compress", f"{EVIL}.pth", "--no-eval", "--out", f"{EVIL} out"), 2),
        (("info", evil, f"--{EVIL}"), 2),
        (("info", evil, EVIL), 2),
        (("info", evil, "--device", EVIL), 2),
        (("predict", evil, evil, "--device", EVIL), 2),
        ((EVIL,), 2),
        ((f"--{EVIL}",), 2),
    ):
        run = harmless(here(*command), code)
        words = "\n".join(line for line in run.err.splitlines() if line and not line.startswith("  "))
        assert re.fullmatch(r"Error: .*(\nHint: .*)?", words), run.err
        assert ("Traceback" in run.err) is bool(debug)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dtype", EVIL),
        (EVIL, 1),
        ("num_classes", EVIL),
        ("format", EVIL),
        ("extra", {"asked": {"class_token": [EVIL]}}),
    ],
    ids=["value", "key", "number", "format", "free part"],
)
def test_a_config_that_is_refused(here, evil: str, tmp_path: Path, key: str, value: Any) -> None:
    file = tmp_path / evil / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    run = harmless(here("compress", f"{EVIL}.pth", "--recipe", evil, "--no-eval", "--out", "again"), 1)
    assert SHOWN in run.err and not os.path.exists("again")


def test_labels_that_are_refused(here, mini: Path, images: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(images / "x.png")
    (images / "labels.csv").write_text(f'filename,label\nx.png,"{EVIL}"\n', newline="")
    harmless(here("eval", mini, "--data", images.name), 1)


def test_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    from stm.progress import Progress
    from tests.cli.test_modes import Terminal

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "400")
    with Output(json=False, quiet=False).progress() as on_progress:
        on_progress(Progress(f"unpack {EVIL}", 1, 2, "files"))
    assert f"unpack {SHOWN}" in terminal.getvalue()


def test_what_libraries_warn_of_and_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # both are put back
    before = logging.getLogRecordFactory()
    try:
        tame_libraries()
        assert SHOWN in warnings.formatwarning(UserWarning(EVIL), UserWarning, "x.py", 1)
        handler = logging.StreamHandler()
        handler.handle(logging.getLogRecordFactory()("hub", logging.WARNING, "x.py", 1, "server: %s", (EVIL,), None))
        assert capsys.readouterr().err == f"server: {SHOWN}\n"
    finally:
        logging.setLogRecordFactory(before)


def test_letters_stay_and_json_keeps_its_values() -> None:
    assert visible("naïve 日本語 👩‍👧 שלום\\x1b") == "naïve 日本語 👩‍👧 שלום\\x1b"
    assert visible(EVIL) == SHOWN and visible(visible(EVIL)) == SHOWN
    document = json.dumps({EVIL: ["\udce9", EVIL]}, ensure_ascii=False)
    assert json.loads(visible_json(document)) == {EVIL: ["\udce9", EVIL]}
    assert not ACTS.search(visible_json(document)) and "é日" in visible_json(document)
