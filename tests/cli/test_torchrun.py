"""One command in several processes, as torchrun starts it. Expected values are what one process writes and prints."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from stm.measure.records import HEADER
from tests.cli.conftest import ROOT, Run, Stm
from tests.hang import HANG

pytestmark = pytest.mark.slow
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the processes that are started have: how sums round depends on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """`start("eval", "vim-digits")`: torchrun in an empty folder, two processes of one thread, or so many and where
    `launch` says."""

    def start(
        *args: str | Path, launch: tuple[str, ...] = ("--standalone", "--nproc-per-node=2")
    ) -> subprocess.Popen[str]:
        fixed = {
            "COLUMNS": "80",
            "NO_COLOR": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "torch.distributed.run", *launch, "-m", "stm_cli"]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([*command, *map(str, args)], text=True, cwd=tmp_path, env=os.environ | fixed, **pipes)

    return start


def end(started: subprocess.Popen[str]) -> Run:
    out, err = started.communicate(timeout=HANG)
    return Run(started.returncode, out, err)


def errors(run: Run) -> list[str]:
    """The sentences that stm says; what torchrun adds is in another form."""
    return re.findall(r"^Error: (.*)$", run.err, re.MULTILINE)


def of_machine(report: str) -> dict[str, object]:
    """A report without what differs between one process and several: the number of them, and speed."""
    document = json.loads(re.sub(r'"images_per_second": [\d.]+', '"images_per_second": 0', report))
    document["environment"].pop("processes")
    return document


def test_two_processes_find_what_one_does(here: Stm, start: Start, tmp_path: Path) -> None:
    """75 images in batches of 10: eight batches, the last one of five; a model beside its dense one."""
    assert here("compress", "vim-digits", "--no-eval", "--out", "small").code == 0
    common = ("eval", "small", "--limit", "75", "--batch-size", "10", "--json", "--records")
    one, two = here(*common, "one.csv"), end(start(*common, "two.csv"))
    assert one.code == two.code == 0, two.err
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    assert (tmp_path / "one.csv.json").read_bytes() == (tmp_path / "two.csv.json").read_bytes()
    assert json.loads(two.out)["n"] == 75 and json.loads(two.out)["environment"]["processes"] == 2
    assert of_machine(one.out) == of_machine(two.out)


def test_two_machines_find_what_one_does(here: Stm, start: Start, tmp_path: Path) -> None:
    """Two torchruns of a process each, as on two machines, which meet at an address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"--rdzv-endpoint=127.0.0.1:{free.getsockname()[1]}"
    launch = ("--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", where, "--rdzv-id=1")
    common = ("eval", "vim-digits", "--limit", "30", "--batch-size", "8", "--json", "--records")
    started = [start(*common, "two.csv", launch=launch) for _ in range(2)]
    ended = [end(each) for each in started]
    assert [run.code for run in ended] == [0, 0], ended[0].err + ended[1].err
    (printed,) = [run.out for run in ended if run.out]
    assert of_machine(printed) == of_machine(here(*common, "one.csv").out)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()


@pytest.mark.parametrize("victim", [0, 1])
def test_the_death_of_a_process_ends_all_and_one_goes_on_where_they_were(
    here: Stm, start: Start, tmp_path: Path, victim: int
) -> None:
    common = ("eval", "vim-digits", "--limit", "120", "--batch-size", "2", "--records")
    started = start(*common, "records.csv")
    path = tmp_path / "records.csv"
    while not (path.exists() and path.read_bytes().count(b"\n") > 4):
        assert started.poll() is None, started.communicate()[1]
        time.sleep(0.01)
    os.kill(child(started.pid, victim), signal.SIGKILL)
    ended = end(started)
    assert ended.code != 0 and ended.out == ""
    assert errors(ended) == ["another process of this run ended too early, and so all of them ended"], ended.err
    kept = path.read_bytes()
    assert kept.startswith(HEADER.encode()) and kept.endswith(b"\n") and kept.count(b"\n") % 2 == 1
    assert here(*common, "records.csv").code == here(*common, "whole.csv").code == 0
    assert path.read_bytes().startswith(kept) and path.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def child(torchrun: int, rank: int) -> int:
    """The process of that rank."""
    for each in Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{each}/environ").read_bytes().split(b"\0"):
            return int(each)
    raise AssertionError(f"torchrun has no child of rank {rank}")


def test_two_processes_sweep_as_one_does_and_resume(here: Stm, start: Start, tmp_path: Path) -> None:
    common = (
        "sweep",
        "vim-digits",
        "--rates",
        "0.4",
        "--sides",
        "both",
        "--peers",
        "random",
        "--limit",
        "24",
        "--batch-size",
        "8",
        "--json",
    )
    one, two = here(*common, "--out", "one"), end(start(*common, "--out", "two"))
    assert one.code == two.code == 0, two.err
    again = end(start(*common, "--out", "two"))
    assert json.loads(again.out) == json.loads(two.out) | {"resumed": 3}
    assert of_machine(one.out) == of_machine(two.out) | {"output": "one"}
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(
        path.name for path in (tmp_path / "two").iterdir()
    )


def test_what_all_refuse_is_said_once(start: Start, tmp_path: Path) -> None:
    run = end(start("compress", "vim-digits"))
    assert run.code != 0 and run.out == ""
    (error,) = errors(run)
    assert "stm compress runs in one process, and this is one of 2" in error
    assert list(tmp_path.iterdir()) == []
