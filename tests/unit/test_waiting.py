"""When threads that wait sleep, and that they do: the latter in the processor time of a process of its own, because
OpenMP's settings are a process's."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from stm.model import waiting
from stm.model.waiting import LONGEST, SHARE, SHORTEST, Watch, team_size

WAITS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
QUIET, BUSY = SHARE + 0.1, SHARE - 0.1

# Two threads share an operation; then the first sleeps, and by default the second spins for milliseconds.
PROGRAM = """
import time, torch
from stm.model.waiting import Team, team_size
x = torch.ones(500_000)
def spent():
    start = time.process_time()
    for _ in range(20):
        x.add_(1)
        time.sleep(0.01)
    return time.process_time() - start
spent()
spinning = spent()
team = Team(team_size(2))
sleeping = spent()
team.end()
print(sleeping / spinning, spent() / spinning)
"""


class Teams(list[int]):
    """The sizes of the teams that were started; `ended` counts."""

    ended = 0


@pytest.fixture
def teams(monkeypatch: pytest.MonkeyPatch) -> Teams:
    made = Teams()

    class Started:
        def __init__(self, size: int) -> None:
            made.append(size)

        def end(self) -> None:
            made.ended += 1

    monkeypatch.setattr(waiting, "Team", Started)
    monkeypatch.setattr(waiting, "team_size", lambda threads: 2)
    return made


@pytest.mark.skipif(sys.platform != "linux" or (os.cpu_count() or 1) < 2, reason="needs GNU's OpenMP and 2 processors")
def test_threads_sleep_as_long_as_a_team_does_nothing() -> None:
    environment = {k: v for k, v in os.environ.items() if k not in WAITS}
    environment |= {"OMP_NUM_THREADS": "2", "PYTHONPATH": os.getcwd()}
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    ).stdout
    sleeping, afterwards = map(float, out.split())
    assert sleeping < 0.5 < afterwards


def test_forwards_that_lose_their_time_to_others_make_threads_sleep(teams: Teams) -> None:
    watch = Watch()
    watch._saw(BUSY, 0.0, 2)  # one alone may have been laid out, or waited for Python
    watch._saw(QUIET, 0.1, 2)
    watch._saw(BUSY, 0.2, 2)
    assert teams == []
    watch._saw(BUSY, 0.3, 2)
    assert teams == [2]


def test_a_pause_is_doubled_while_others_stay_and_shortest_again_once_they_are_gone(teams: Teams) -> None:
    watch, now, pauses = Watch(), 0.0, []
    watch._saw(BUSY, now, 2)
    for _ in range(9):
        watch._saw(BUSY, now, 2)  # a team starts
        pauses.append(watch._until - now)
        watch._saw(QUIET, now + pauses[-1] / 2, 2)  # threads that sleep take little, whoever is there: nothing follows
        assert teams.ended == len(pauses) - 1
        now = watch._until
        watch._saw(BUSY, now, 2)  # the pause is over: the next forward spins
        assert teams.ended == len(pauses)
    assert pauses == pytest.approx([min(SHORTEST * 2**n, LONGEST) for n in range(9)])
    watch._saw(QUIET, now, 2)
    watch._saw(BUSY, now, 2)
    watch._saw(BUSY, now, 2)
    assert watch._until - now == pytest.approx(SHORTEST)


def test_a_forward_is_watched_on_several_threads_only(teams: Teams, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, float, int]] = []
    watch = Watch()
    monkeypatch.setattr(watch, "_saw", lambda *values: seen.append(values))
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        with watch.forward():
            pass
    assert [threads for _, _, threads in seen] == [3]


@pytest.mark.parametrize("name", WAITS)
def test_what_the_environment_says_stands(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "2000")
    assert team_size(2) is None


def test_nothing_is_started_for_too_many_or_without_gnu_s_openmp(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WAITS:
        monkeypatch.delenv(name, raising=False)
    procs = 8
    monkeypatch.setattr(waiting, "_openmp", lambda: SimpleNamespace(omp_get_num_procs=lambda: procs))
    assert team_size(2) == 8
    assert team_size(8) == 2
    procs = waiting.MOST
    assert team_size(2) == waiting.MOST
    procs += 1
    assert team_size(2) is None

    def absent() -> None:
        raise OSError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(waiting, "_openmp", absent)
    assert team_size(2) is None
