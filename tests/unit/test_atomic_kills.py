"""A process killed before every line of stm/artifact/atomic.py and locks.py: a load finds the old folder or the new
one, and the next run clears up."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hang import HANG

ROOT = Path(__file__).resolve().parents[2]

KILLER = """
import os, signal, sys
from pathlib import Path
from stm.artifact import atomic, locks

NAMES, top = ("model.safetensors", "config.json", "README.md"), Path(sys.argv[1])
out, force = top / "out", sys.argv[2] == "force"
if sys.argv[3] == "two renames":
    atomic._exchange_at_once = lambda new, path: False

def fill(folder, what):
    for name in NAMES:
        (folder / name).write_text(what)

def state(folder):
    if not folder.exists() or len(list(folder.iterdir())) != 3:
        return None
    return {path.read_text() for path in folder.iterdir()}

def replace(line):
    seen = 0
    def trace(frame, event, argument):
        nonlocal seen
        if frame.f_code.co_filename not in (atomic.__file__, locks.__file__):
            return None
        if event == "line":
            seen += 1
            if seen == line:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace
    sys.settrace(trace)
    with atomic.replacing(out, NAMES, force=force) as new:
        fill(new, "new")
    sys.settrace(None)

outcomes, line, killed = [], 0, True
while killed:
    line += 1
    if sys.argv[3] == "after a kill between two renames":
        for name, what in ((".out.stm-old-0123abcd", "old"), (".out.stm-tmp-0123abcd", "new")):
            (top / name).mkdir()
            fill(top / name, what)
    elif force:
        out.mkdir()
        fill(out, "old")
    child = os.fork()
    if child == 0:
        replace(line)
        os._exit(0)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    found = state(atomic.find(out))
    assert found in ([{"old"}, {"new"}] if force else [None, {"new"}]), (line, found)
    assert force or found or not out.exists(), line
    atomic._recover(out, NAMES)  # as the next run does
    assert state(out) == found, (line, state(out), found)
    assert {path.name for path in top.iterdir()} == ({"out"} if found else set()), (line, list(top.iterdir()))
    outcomes.append(found)
    if out.exists():
        atomic._discard(out, NAMES)
print(line, outcomes.index({"new"}) + 1)
"""


@pytest.mark.parametrize(
    ("force", "how"),
    [("new", "at once"), ("force", "at once"), ("force", "two renames"), ("force", "after a kill between two renames")],
)
def test_a_kill_before_any_line_leaves_the_old_folder_or_the_new_one(tmp_path: Path, force: str, how: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path), force, how],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=HANG,
    )
    assert run.returncode == 0, run.stderr
    lines, first_new = map(int, run.stdout.split())
    assert lines > 60, "the code was not traced"
    assert 1 < first_new < lines, "kills fell before the exchange and after it"
