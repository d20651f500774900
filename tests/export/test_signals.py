"""SIGINT and SIGTERM in `stm export`: one line, no output, no process and nothing in the folder of temporary files."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

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


@pytest.mark.slow(seconds=240)
@pytest.mark.parametrize(("name", "moment", "number", "group"), CASES)
def test_stopped(tmp_path: Path, name: str, moment: str, number: signal.Signals, group: bool) -> None:
    """The signal comes to the process alone, or to its group, as from a terminal."""
    kind = formats.FORMATS[name]
    if kind.packages or any(shutil.which(tool) is None for tool in kind.tools):
        pytest.skip("not installed")
    small().save_pretrained(tmp_path / "model")
    here, temporary = tmp_path / "here", tmp_path / "temporary"
    here.mkdir()
    temporary.mkdir()
    environment = os.environ | {
        "TMPDIR": str(temporary),
        MARK: str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    command = [sys.executable, "-m", "stm_cli", "export", str(tmp_path / "model"), "--format", name, "--out", "out"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, cwd=here, env=environment, **pipes) as process:
        try:
            assert until(lambda: MOMENTS[moment](here, tmp_path) or process.poll() is not None)
            assert process.poll() is None, process.communicate()
            (os.killpg if group else os.kill)(process.pid, number)
            out, err = process.communicate(timeout=HANG)
        finally:
            process.kill()
    said = "Stopped: nothing was written; the same command starts from the beginning\n"
    assert (process.returncode, out, err) == (128 + number, "", said)
    assert list(here.iterdir()) == list(temporary.iterdir()) == []
    assert not (tmp_path / "cache").exists(), "ONNX Runtime's telemetry is off"
    assert until(lambda: not processes(tmp_path)), processes(tmp_path)
