"""Measure the time that `stm --help` takes, which should stay below 0.3 seconds.

    python benchmarks/help_time.py

Each run is a process of its own, timed from its start to its end. The first run reads the files from the disk and does
not count. On a busy machine a run waits for its turn; the processor time beside it is the time of the command itself.
"""

import importlib.metadata
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

from stm.measure.environment import processor_name

ROUNDS, MOST = 15, 0.3  # seconds


def main() -> None:
    runs = [measure() for _ in range(ROUNDS + 1)][1:]
    wall, processor = (sorted(values) for values in zip(*runs, strict=True))
    median = statistics.median(wall)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("typer", "rich"))
    machine = f"{processor_name()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}"
    print(f"{machine}; Python {platform.python_version()}, {versions}")
    print(f"stm --help      {median:.3f} s ({wall[0]:.3f} to {wall[-1]:.3f}), median of {ROUNDS}")
    print(f"processor time  {statistics.median(processor):.3f} s ({processor[0]:.3f} to {processor[-1]:.3f})")
    print(f"{'below' if median <= MOST else 'ABOVE'} the {MOST} s that it may take")


def measure() -> tuple[float, float]:
    """Return the seconds of one run, by the clock and of a processor."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "stm_cli", "--help"], stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
