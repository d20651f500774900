"""A fault of one call, and the process in whose children it happens."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Fault:
    """What call number `at` of the calls that change a file meets. 0 is no call.

    Args:
        error: the errno with which the call fails; 0: the signal comes before the call.
        signal: negative for the whole group of processes, as Ctrl-C in a terminal.
        tear: a write has written half of its bytes before.
        every: calls that read, and those outside of the test's folder, are counted too.
    """

    at: int = 0
    error: int = 0
    signal: int = signal.SIGKILL
    tear: bool = False
    every: bool = False


@dataclass(frozen=True)
class Ran:
    """A run: its exit code (negative: the signal that ended it), what it said, the calls that were counted, and the
    number of processes of its group that it left."""

    code: int
    out: str
    err: str
    calls: list[str]
    orphans: int


def shim(folder: Path) -> Path:
    """Compile the shim into a folder; the test is skipped if that is not possible here."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the shim is for Linux")
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler for the shim")
    library = folder / "shim.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", library, Path(__file__).with_name("shim.c"), "-ldl"]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"the shim cannot be compiled here: {made.stderr.splitlines()[0]}")
    return library


class Engine:
    """The process of engine.py. All its runs are in `here`, where `tmp` is the folder for temporary files."""

    def __init__(self, library: Path, here: Path, environment: dict[str, str], log: IO[str] | None = None) -> None:
        self.here = here
        (here / "tmp").mkdir(parents=True)
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        fixed = {
            "LD_PRELOAD": str(library),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "300",
            "NO_COLOR": "1",
            "TMPDIR": str(here / "tmp"),
            "XDG_CACHE_HOME": str(here / "cache"),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.engine"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            env=inherited | fixed | environment,
        )

    def _ask(self, argv: tuple[str, ...], **job: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        whole = {"cwd": str(self.here), "below": str(self.here), "environment": {}, "argv": argv, **job}
        self._process.stdin.write(json.dumps(whole) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def warm(self, *argv: str) -> int:
        return int(self._ask(argv, warm=True)["code"])

    def __call__(self, *argv: str, fault: Fault = Fault(), whole: bool = False) -> Ran:
        return Ran(**self._ask(argv, fault=asdict(fault), whole=whole))

    def close(self) -> None:
        self._process.communicate()
