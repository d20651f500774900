"""Threads that wait sleep, counted in the processor time of a process of its own: OpenMP's settings are a process's."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from stm.model import waiting

WAITS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")

# Two threads share an operation; then the first sleeps, and by default the second spins for milliseconds.
PROGRAM = """
import time, torch
from stm.model.waiting import sleep_soon
x = torch.ones(500_000)
def spent():
    start = time.process_time()
    for _ in range(20):
        x.add_(1)
        time.sleep(0.01)
    return time.process_time() - start
spent()
by_default = spent()
print(sleep_soon(), sleep_soon(), spent() / by_default)
"""


@pytest.mark.skipif(sys.platform != "linux" or (os.cpu_count() or 1) < 2, reason="needs GNU's OpenMP and 2 processors")
def test_threads_that_wait_sleep() -> None:
    environment = {k: v for k, v in os.environ.items() if k not in WAITS}
    environment |= {"OMP_NUM_THREADS": "2", "PYTHONPATH": os.getcwd()}
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    ).stdout
    once, again, share = out.split()
    assert (once, again) == ("True", "True")
    assert float(share) < 0.5


@pytest.mark.parametrize("name", WAITS)
def test_what_the_environment_says_stands(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setenv(name, "2000")
    assert not waiting.sleep_soon()


def test_nothing_is_started_for_one_thread_for_too_many_or_without_gnu_s_openmp(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "_sleeps", lambda team: pytest.fail("a team was started"))
    for name in WAITS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert not waiting.sleep_soon()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(waiting, "_openmp", lambda: SimpleNamespace(omp_get_num_procs=lambda: 2 + waiting.MOST))
    assert not waiting.sleep_soon()

    def absent() -> None:
        raise OSError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(waiting, "_openmp", absent)
    assert not waiting.sleep_soon()
