"""Measure what several processes cost and gain on this machine.

    python benchmarks/scale.py --processes 2

`stm eval` runs in one process and in several, in turns; the gathering of records is then timed alone. Each run is a
process of its own, or a torchrun. On a busy machine only the ratios of a row mean anything. There two processes also
get twice the share of the processors that one gets; processor seconds do not depend on that share.
"""

import argparse
import json
import os
import pickle
import resource
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

import torch

from stm.distributed import current_world, joined
from stm.measure.environment import processor_name
from stm.measure.records import Record

GATHERS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--model", default="vim-digits")
    parser.add_argument("--limits", type=int, nargs=2, default=(64, 576))
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    if current_world().size > 1:
        gather(options.batch_size)
        return
    machine = f"{processor_name()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}"
    print(f"{machine}; one thread a process, torch {torch.__version__}")
    few, many = options.limits
    print(
        f"stm eval {options.model}, {few} and {many} images in batches of {options.batch_size}; wall and processor"
        " seconds with the start"
    )
    runs: dict[int, list[list[Cost]]] = {1: [], options.processes: []}
    for _ in range(options.rounds):
        for processes, costs in runs.items():
            prefix = [] if processes == 1 else launch(processes)
            words = [
                "-m",
                "stm_cli",
                "eval",
                options.model,
                "--batch-size",
                str(options.batch_size),
                "--json",
                "--limit",
            ]
            costs.append([measure([sys.executable, *prefix, *words, str(limit)]) for limit in options.limits])
            for limit, cost in zip(options.limits, costs[-1], strict=True):
                seconds = f"{cost.wall:5.1f} s wall, {cost.processor:5.1f} s processor"
                print(f"  {processes} x {limit:4} images: {cost.speed:6.1f} images/s, {seconds}", flush=True)
    one, more = runs.values()
    assert {str(pair[1].figures) for pair in one} == {str(pair[1].figures) for pair in more}, (
        "several processes must find what one does"
    )
    show("images/s", [b[1].speed / a[1].speed for a, b in zip(one, more, strict=True)], options.processes)
    show("wall seconds", [b[1].wall / a[1].wall for a, b in zip(one, more, strict=True)], options.processes)
    # The difference of two limits has no start-up time in it.
    slopes = [[pair[1].processor - pair[0].processor for pair in pairs] for pairs in (one, more)]
    show(
        f"processor seconds of {many - few} images more",
        [b / a for a, b in zip(*slopes, strict=True)],
        options.processes,
    )
    show(
        "processor seconds to start",
        [b[0].processor / a[0].processor for a, b in zip(one, more, strict=True)],
        options.processes,
    )
    subprocess.run(
        [sys.executable, *launch(options.processes), __file__, "--batch-size", str(options.batch_size)], check=True
    )


def show(what: str, ratios: list[float], processes: int) -> None:
    print(
        f"{processes} processes over 1, {what}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to"
        f" {max(ratios):.2f})"
    )


class Cost(NamedTuple):
    """The cost of one run: images/s from its report, seconds by the clock, seconds of processors, and its figures."""

    speed: float
    wall: float
    processor: float
    figures: dict[str, object]


def launch(processes: int) -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]


def measure(command: list[str]) -> Cost:
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    report = json.loads(done.stdout)
    figures = {name: report[name] for name in ("n", "failed", "top1", "top5", "top1_ci")}
    return Cost(
        report["images_per_second"], wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, figures
    )


def gather(batch_size: int) -> None:
    """Time one round's exchange of records alone, in every process that torchrun started."""
    record = Record(
        file="val/ILSVRC2012_val_00000001.JPEG", label=1, pred=1, top5=(1, 2, 3, 4, 5), dense_pred=1, margin=0.5, kl=0.5
    )
    scored = ([record] * batch_size, (batch_size, 0.1))
    with joined() as world:
        world.gather(scored)
        seconds = []
        for _ in range(GATHERS):
            start = time.perf_counter()
            world.gather(scored)
            seconds.append(1e3 * (time.perf_counter() - start))
        if world.first:
            low, middle, high = statistics.quantiles(seconds, n=4)
            print(
                f"gathering {batch_size} records of each of {world.size} processes: {middle:.2f} ms ({low:.2f} to"
                f" {high:.2f}, quartiles)"
            )
            size = len(pickle.dumps([pickle.loads(pickle.dumps(record)) for _ in range(batch_size)])) / batch_size
            print(f"bytes of a record on the way: {size:.0f}")


if __name__ == "__main__":
    main()
