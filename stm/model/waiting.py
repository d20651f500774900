"""OpenMP's threads: have those that wait go to sleep soon, so that a busy machine does not bring a forward to a halt.

A forward has some 200 parallel regions of 50 to 500 microseconds, and after each one the threads wait for the last. By
default GNU's OpenMP lets them spin for milliseconds. On a machine that others use too, they then take the processor
from the very thread that they wait for. The variable that shortens this, GOMP_SPINCOUNT, is read when torch is
imported, too early for a library. But libgomp's manual promises more: as soon as a process has more OpenMP threads
than processors, they spin 100 times at most. So a team that does nothing makes up the number, and sleeps.
"""

import ctypes
import os
import threading
from functools import cache

import torch

MOST = 64  # sleeping threads: each takes a place in a container's limit of processes


def sleep_soon() -> bool:
    """Have OpenMP's threads of this process sleep as soon as they wait; return whether they do so from now on.

    Nothing changes for one thread, with another OpenMP than GNU's, if more than `MOST` threads would have to sleep, or
    if the environment says how to wait: then a person has chosen. Results never depend on it.
    """
    threads = torch.get_num_threads()
    if threads == 1 or any(name in os.environ for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")):
        return False
    try:
        openmp = _openmp()
        # libgomp counts the first thread of the process, and of every team all but its first.
        team = max(2, openmp.omp_get_num_procs() - threads + 2)
        return team <= MOST and _sleeps(team)
    except (AttributeError, OSError):
        return False


def _openmp() -> ctypes.CDLL:
    """Return GNU's OpenMP as the loader knows it: torch's copy, and never a second one."""
    return ctypes.CDLL("libgomp.so.1", os.RTLD_NOLOAD | os.RTLD_LAZY)


@cache
def _sleeps(team: int) -> bool:
    """Start a team that does nothing, and lives as long as the process; return whether it started."""
    parallel = _openmp().GOMP_parallel
    nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)  # free(NULL) does nothing
    started = threading.Event()

    def hold() -> None:
        parallel(nothing, None, ctypes.c_uint(team), ctypes.c_uint(0))
        started.set()
        threading.Event().wait()  # the team ends with the thread that started it

    threading.Thread(target=hold, name="stm-openmp", daemon=True).start()
    return started.wait(timeout=10)
