"""A Hub on this machine, and the commands as a user of it runs them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest

from tests.hub.client import CARD, ROOT, SECRET, WEIGHTS, Client
from tests.hub.server import Hub, Repo

MINI = ROOT / "tests" / "golden" / "dense-mini" / "vim_mini_stride8.pth"


class Run(NamedTuple):
    code: int
    out: str
    err: str


Stm = Callable[..., Run]


def clean_environment(**more: str) -> dict[str, str]:
    """This process's without what it says of the Hub."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    return inherited | {"COLUMNS": "80", "NO_COLOR": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | more


class Worker:
    """A process with an environment, which runs one job after another (worker.py)."""

    def __init__(self, environment: dict[str, str], log: IO[str] | None = None) -> None:
        command = [sys.executable, "-m", "tests.hub.worker"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
        self._process = subprocess.Popen(command, **pipes, text=True, cwd=ROOT, env=clean_environment(**environment))

    def __call__(self, cwd: Path, **job: Any) -> Run:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"cwd": str(cwd), **job}) + "\n")
        self._process.stdin.flush()
        return Run(**json.loads(self._process.stdout.readline()))

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="session")
def server() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hf")


@pytest.fixture(scope="session")
def workers(server: Hub, home: Path) -> Iterator[Callable[[bool], Worker]]:
    """The process that is online and the one that is not, each started when it is first asked for."""
    running: dict[bool, Worker] = {}

    def worker(offline: bool) -> Worker:
        if offline not in running:
            running[offline] = Worker(server.environment(home) | ({"HF_HUB_OFFLINE": "1"} if offline else {}))
        return running[offline]

    yield worker
    for each in running.values():
        each.close()


@pytest.fixture
def hub(server: Hub, home: Path) -> Hub:
    """A new Hub with one login, and an empty cache."""
    server.clear()
    shutil.rmtree(home)
    home.mkdir()
    server.logins[SECRET] = "me"
    return server


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Client:
    """Downloads from a Hub that has `owner/vim`, into a cache of its own."""
    hub.repos["owner/vim"] = Repo({"vim.pth": WEIGHTS, "README.md": CARD, "log.txt": b"."})
    return Client(hub, tmp_path / "hf")


@pytest.fixture
def stm(hub: Hub, workers: Callable[[bool], Worker], tmp_path: Path) -> Stm:
    """`stm("info", "owner/vim")`: a command in an empty folder. No token is ever shown."""

    def run(*args: str | Path, offline: bool = False) -> Run:
        done = workers(offline)(tmp_path, argv=[str(arg) for arg in args])
        assert SECRET not in done.out + done.err
        return done

    return run


@pytest.fixture
def python(hub: Hub, workers: Callable[[bool], Worker], tmp_path: Path) -> Callable[[str], Run]:
    """`python("import stm; ...")`: a piece of Python in that folder."""
    return lambda code: workers(False)(tmp_path, code=code)


@pytest.fixture
def mini() -> bytes:
    """A trainer's pickle of a mini ViM with random weights: 64 x 64 pixels, 50 tokens, 6 blocks, 10 classes."""
    return MINI.read_bytes()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That model, compressed."""
    import stm as library

    path = tmp_path_factory.mktemp("made") / "mini-stm40"
    library.compress(library.load_checkpoint(MINI, device="cpu"), rate=0.4, method="staged").save_pretrained(path)
    return path
