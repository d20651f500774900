"""SIGINT and SIGTERM in `stm export`: one line, no output, no process and nothing in the folder of temporary files.

SIGKILL: no process either, and the next run removes what is left.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from stm.export import formats
from tests.export.small import small
from tests.hang import HANG

MARK = "STM_TEST_SIGNALS"  # a variable that all processes of a command inherit


def processes(mark: Path) -> list[str]:
    """The command lines of all processes of a command that have not ended."""
    lines = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{MARK}={mark}\0".encode() in (process / "environ").read_bytes():
                lines.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return lines


def until(true: Callable[[], bool]) -> bool:
    """Wait for something, and say whether it came."""
    end = time.monotonic() + HANG
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.01)
    return False


MOMENTS: dict[str, Callable[[Path, Path], bool]] = {
    "the draft is there": lambda here, _: any(here.iterdir()),
    "the check's process": lambda _, mark: any("runners.py" in line for line in processes(mark)),
    "the compiler": lambda _, mark: any("cc1plus" in line for line in processes(mark)),
}
CASES = [
    ("onnx", "the draft is there", signal.SIGINT, False),
    ("onnx", "the check's process", signal.SIGTERM, True),
    ("openvino", "the draft is there", signal.SIGTERM, True),
    ("openvino", "the check's process", signal.SIGINT, False),
    ("pt2", "the draft is there", signal.SIGTERM, False),
    ("pt2", "the check's process", signal.SIGINT, True),
    ("aoti", "the compiler", signal.SIGTERM, False),
]


def command(folder: Path, name: str) -> dict[str, Any]:
    """The arguments of a process that exports a small model in a format to `here/out`, in a folder of its own."""
    kind = formats.FORMATS[name]
    if kind.packages or any(shutil.which(tool) is None for tool in kind.tools):
        pytest.skip("not installed")
    small().save_pretrained(folder / "model")
    here, temporary = folder / "here", folder / "temporary"
    here.mkdir()
    temporary.mkdir()
    environment = os.environ | {"TMPDIR": str(temporary), MARK: str(folder), "XDG_CACHE_HOME": str(folder / "cache")}
    words = ["-m", "stm_cli", "export", str(folder / "model"), "--format", name, "--out", "out"]
    return {
        "args": [sys.executable, *words],
        "cwd": here,
        "env": environment,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "start_new_session": True,
    }


def send(process: subprocess.Popen[str], folder: Path, moment: str, signal_of: Callable[[int], None]) -> None:
    """Give a process a signal when its moment has come."""
    assert until(lambda: MOMENTS[moment](folder / "here", folder) or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    signal_of(process.pid)


@pytest.mark.slow(seconds=240)
@pytest.mark.parametrize(("name", "moment", "number", "group"), CASES)
def test_stopped(tmp_path: Path, name: str, moment: str, number: signal.Signals, group: bool) -> None:
    """The signal comes to the process alone, or to its group, as from a terminal."""
    with subprocess.Popen(**command(tmp_path, name)) as process:
        try:
            send(process, tmp_path, moment, lambda pid: (os.killpg if group else os.kill)(pid, number))
            out, err = process.communicate(timeout=HANG)
        finally:
            process.kill()
    said = "Stopped: nothing was written; the same command starts from the beginning\n"
    assert (process.returncode, out, err) == (128 + number, "", said)
    assert list((tmp_path / "here").iterdir()) == list((tmp_path / "temporary").iterdir()) == []
    assert not (tmp_path / "cache").exists(), "ONNX Runtime's telemetry is off"
    assert until(lambda: not processes(tmp_path)), processes(tmp_path)


KILLED = [
    ("onnx", "the check's process"),
    ("openvino", "the check's process"),
    ("pt2", "the check's process"),
    ("aoti", "the compiler"),
]


@pytest.mark.slow(seconds=240)
@pytest.mark.parametrize(("name", "moment"), KILLED)
def test_killed(tmp_path: Path, name: str, moment: str) -> None:
    """The processes of a killed command end with it. Its draft and its temporary files go with the next run."""
    arguments = command(tmp_path, name)
    here, temporary = arguments["cwd"], tmp_path / "temporary"
    with subprocess.Popen(**arguments) as process:
        send(process, tmp_path, moment, lambda pid: os.kill(pid, signal.SIGKILL))
        process.communicate(timeout=HANG)
    assert until(lambda: not processes(tmp_path)), processes(tmp_path)
    [draft] = here.iterdir()
    assert draft.name.startswith(".out.") and list(temporary.iterdir())
    if name == "aoti":  # a compiled package takes a minute, and the drafts of all files are the same
        arguments["args"][arguments["args"].index("aoti")] = "pt2"
    with subprocess.Popen(**arguments) as process:
        said = process.communicate(timeout=HANG)
    assert process.returncode == 0, said
    assert [path.name for path in here.iterdir()] == ["out"] and list(temporary.iterdir()) == []
