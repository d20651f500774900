"""OpenMP's threads: have those that wait sleep while others use the machine, and spin while nobody does.

A forward has some 200 parallel regions of 50 to 500 microseconds, and after each one the threads wait for the last. By
default GNU's OpenMP lets them spin for milliseconds, which is the fastest way on a quiet machine. On a machine that
others use too, they then take the processor from the very thread that they wait for. The variable that shortens this,
GOMP_SPINCOUNT, is read when torch is imported, too early for a library. But libgomp's manual promises more: as soon as
a process has more OpenMP threads than processors, they spin 100 times at most. So a team that does nothing makes up the
number, and sleeps; when it ends, threads spin again.

Whether others use the machine is seen in the processor time of a forward: threads that spin take all of theirs, unless
the system gives it to somebody else. Results never depend on how threads wait, so a clock may decide it.
"""

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter, process_time

import torch

MOST = 64  # sleeping threads: each takes a place in a container's limit of processes
# A quiet machine gives 0.92 to 1.03 of the threads' time, one busy process on two processors leaves 0.56 to 0.76.
SHARE = 0.85
IN_A_ROW = 2  # forwards with less: the first one lays calls out, and its threads wait for Python
SHORTEST, LONGEST = 1.0, 60.0  # seconds of sleeping, after which a forward spins to see: doubled while it sees others


class Watch:
    """Decides after each forward how the next one's threads wait. One of them serves a process."""

    def __init__(self) -> None:
        self._team: Team | None = None
        self._low, self._pause, self._until = 0, SHORTEST, 0.0
        self._lock = threading.Lock()

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Watch a forward, unless there is nothing to decide (`team_size`)."""
        threads = torch.get_num_threads()
        if threads == 1:
            yield
            return
        begin, busy = perf_counter(), process_time()
        yield
        now = perf_counter()
        with self._lock:
            self._saw((process_time() - busy) / (threads * (now - begin)), now, threads)

    def _saw(self, share: float, now: float, threads: int) -> None:
        """Take in a forward that got a share of its threads' time."""
        if self._team is not None:
            if now >= self._until:
                self._team.end()
                self._team = None
            return
        if share >= SHARE:
            self._low, self._pause = 0, SHORTEST
            return
        self._low += 1
        if self._low < IN_A_ROW:
            return
        size = team_size(threads)
        if size is not None:
            self._team, self._until = Team(size), now + self._pause
            self._low, self._pause = IN_A_ROW - 1, min(2 * self._pause, LONGEST)


class Team:
    """OpenMP threads that do nothing until the team ends."""

    def __init__(self, size: int) -> None:
        self._over, started = threading.Event(), threading.Event()
        parallel, nothing = _openmp().GOMP_parallel, ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)

        def hold() -> None:
            parallel(nothing, None, ctypes.c_uint(size), ctypes.c_uint(0))  # free(NULL) does nothing
            started.set()
            self._over.wait()  # the team ends with the thread that started it

        self._thread = threading.Thread(target=hold, name="stm-openmp", daemon=True)
        self._thread.start()
        started.wait(timeout=10)

    def end(self) -> None:
        """Let the threads go."""
        self._over.set()
        self._thread.join(timeout=10)


def team_size(threads: int) -> int | None:
    """Return how many threads have to sleep for `threads` that wait to do so; None if they are to wait as they do.

    That is with another OpenMP than GNU's, if more than `MOST` would have to sleep, and if the environment says how to
    wait: then a person has chosen.
    """
    if any(name in os.environ for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")):
        return None
    try:
        # libgomp counts the first thread of the process, and of every team all but its first.
        size = max(2, int(_openmp().omp_get_num_procs()) - threads + 2)
    except (AttributeError, OSError):
        return None
    return size if size <= MOST else None


def _openmp() -> ctypes.CDLL:
    """Return GNU's OpenMP as the loader knows it: torch's copy, and never a second one."""
    return ctypes.CDLL("libgomp.so.1", os.RTLD_NOLOAD | os.RTLD_LAZY)


WATCH = Watch()
