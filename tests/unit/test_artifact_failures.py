"""A failure at each step of saving, a real limit on file size, and a kill at any moment: nothing is lost and nothing
left."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stm.artifact import folder as artifact
from stm.config import Config, ModelConfig, Preprocess, dense_schedule
from stm.errors import ArtifactError
from tests.hang import HANG

ROOT = Path(__file__).resolve().parents[2]
MODEL = ModelConfig(image_size=8, patch=4, stride=4, d_model=4, depth=2, d_state=2, dt_rank=1)
CONFIG = Config(model=MODEL, num_classes=3, schedule=dense_schedule(MODEL), preprocessing=Preprocess(resize=8, crop=8))
CARD = "# a model\n"


def tensors() -> dict[str, Tensor]:
    return {"cls_token": torch.zeros(1, 1, 4), "head.weight": torch.ones(3, 4).bfloat16()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    artifact.write(tmp_path / "out", CONFIG, tensors(), CARD)
    return tmp_path / "out"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
QUOTA = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
BROKEN = OSError(errno.EIO, os.strerror(errno.EIO))


def fail_weights(patch: pytest.MonkeyPatch, error: BaseException) -> None:
    def half(path: Path, tensors: object) -> None:
        path.write_bytes(b"half of it")
        raise error

    patch.setattr(artifact, "_write_weights", half)


def fail_text(name: str) -> Callable[[pytest.MonkeyPatch, BaseException], None]:
    def fail(patch: pytest.MonkeyPatch, error: BaseException) -> None:
        write = artifact._write_text

        def half(path: Path, text: str) -> None:
            write(path, text[:5])
            if path.name == name:
                raise error

        patch.setattr(artifact, "_write_text", half)

    return fail


def fail_call(name: str, nth: int) -> Callable[[pytest.MonkeyPatch, BaseException], None]:
    def fail(patch: pytest.MonkeyPatch, error: BaseException) -> None:
        real, calls = getattr(os, name), []

        def failing(*arguments: object) -> object:
            calls.append(arguments)
            if len(calls) == nth:
                raise error
            return real(*arguments)

        patch.setattr(os, name, failing)
        patch.setattr(artifact.atomic, "_exchange_at_once", lambda new, path: False)

    return fail


STEPS = {
    "weights": fail_weights,
    "config": fail_text("config.json"),
    "card": fail_text("README.md"),
    "results": fail_text("stm.yaml"),
    "sync weights": fail_call("fsync", 1),
    "sync config": fail_call("fsync", 2),
    "sync card": fail_call("fsync", 3),
    "sync results": fail_call("fsync", 4),
    "sync folders": fail_call("fsync", 5),
    "rename": fail_call("rename", 1),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("force", [False, True], ids=["new", "force"])
@pytest.mark.parametrize(
    ("error", "says"),
    [
        (FULL, "out cannot be written: the disk is full"),
        (QUOTA, "out cannot be written: the disk quota is used up"),
        (BROKEN, "out cannot be written: Input/output error"),
        (KeyboardInterrupt(), None),
    ],
    ids=["full", "quota", "broken", "interrupt"],
)
def test_a_failure_at_each_step_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, force: bool, error: BaseException, says: str | None
) -> None:
    if force:
        artifact.write(tmp_path / "out", CONFIG, tensors(), "old card", results="[1]")
    before = snapshot(tmp_path)
    STEPS[step](monkeypatch, error)
    with pytest.raises(ArtifactError if says else KeyboardInterrupt, match=says) as caught:
        artifact.write(tmp_path / "out", CONFIG, tensors() | {"more": torch.ones(3)}, CARD, results="[]", force=force)
    monkeypatch.undo()
    assert snapshot(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if force else [])
    if isinstance(caught.value, ArtifactError):
        assert caught.value.exit_code == 1
        assert caught.value.hint
    artifact.write(tmp_path / "out", CONFIG, tensors(), CARD, force=force)


def test_the_second_rename_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(folder.parent)
    fail_call("rename", 2)(monkeypatch, FULL)
    with pytest.raises(ArtifactError, match="the disk is full"):
        artifact.write(folder, CONFIG, {"x": torch.ones(3)}, CARD, force=True)
    assert snapshot(folder.parent) == before


LIMITED = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from stm.artifact import folder as artifact
from stm.errors import ArtifactError
from tests.limits import no_file_larger_than

out, limit = Path(sys.argv[1]), int(sys.argv[3])
config = artifact.read_config(out)
for folder, force in ((out, True), (out.with_name("new"), False)):
    try:
        with no_file_larger_than(limit):
            artifact.write(folder, config, {"x": torch.ones(100_000)}, "a card", force=force)
        print("written")
    except ArtifactError as error:
        print(error.message)
"""


def test_a_real_limit_on_file_size(folder: Path) -> None:
    """It stops the weights in the middle."""
    before = snapshot(folder.parent)
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder), str(ROOT), "50000"],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=HANG,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        f"{folder} cannot be written: the limit on the size of a file is reached",
        f"{folder.with_name('new')} cannot be written: the limit on the size of a file is reached",
    ]
    assert snapshot(folder.parent) == before
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


KILLER = """
import os, signal, sys, warnings, torch
from pathlib import Path
torch.set_num_threads(1)
warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons advise against forking beside threads
from stm.artifact import atomic, locks
from stm.artifact import folder as artifact

out = Path(sys.argv[1])
config, old = artifact.read(out)
new = {name: tensor + 1 for name, tensor in old.items()}
files = (artifact.__file__, atomic.__file__, locks.__file__)

def kill_before(line):
    seen = 0
    def trace(frame, event, argument):
        nonlocal seen
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            seen += 1
            if seen == line:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace
    sys.settrace(trace)

line, step, changed, last = 0, int(sys.argv[2]), 0, False
while not last:
    line += step
    artifact.write(out, config, old, "old", force=True)
    child = os.fork()
    if child == 0:
        kill_before(line)
        artifact.write(out, config, new, "new", force=True)
        os._exit(0)
    last = not os.WIFSIGNALED(os.waitpid(child, 0)[1])
    found = artifact.read(out)[1]["cls_token"]
    card = (atomic.find(out) / "README.md").read_text()
    assert found.equal(old["cls_token"]) and card == "old" or found.equal(new["cls_token"]) and card == "new", line
    changed += card == "new"
artifact.check_output(out, force=True)
assert [path.name for path in out.parent.iterdir()] == ["out"]
print(line, changed)
"""


def test_a_kill_at_any_moment_leaves_a_folder_that_loads(folder: Path) -> None:
    """Before every seventh line of the writer; test_atomic_kills.py kills before every line of the exchange."""
    run = subprocess.run(
        [sys.executable, "-c", KILLER, str(folder), "7"],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=HANG,
    )
    assert run.returncode == 0, run.stderr
    lines, changed = map(int, run.stdout.split())
    assert lines > 150
    assert changed >= 1
