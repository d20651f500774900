"""Evaluate many images, watch for leaks, and fill the disk on the way.

    python benchmarks/long_run.py CHECKPOINT [--images 100000] [--batch-size 50]

The set is hard links to a hundred small pictures, so it needs no room. While `stm eval` runs, /proc (so Linux only)
tells its memory and its open files. Then the same evaluation meets a full disk in the middle, for which a limit on the
size of files stands, and runs again. The exit code is 1 if memory or open files grow from the second quarter of the run
to the last one, if the full disk is not one sentence, or if the records differ from those of the undisturbed run.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

PICTURES = 100
GROWTH = 1.02  # of the memory: allocators keep a few pages more at times


class Seen(NamedTuple):
    """A look at a process: records written so far, bytes in memory, open files, processor seconds."""

    records: int
    memory: int
    files: int
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--batch-size", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stm-long-") as folder:
        work = Path(folder)
        link(work / "set", options.images)
        command = [sys.executable, "-m", "stm_cli", "eval", options.checkpoint, "--data", str(work / "set")]
        command += ["--batch-size", str(options.batch_size), "--device", "cpu", "--json", "--records"]
        whole = work / "whole.csv"
        good = undisturbed([*command, str(whole)], whole, options)
        return 0 if full_disk([*command, str(work / "full.csv")], work / "full.csv", whole) and good else 1


def link(folder: Path, images: int) -> None:
    """Ten classes of links to pictures of 8 x 8 pixels; some file systems allow no more than 65,000 to one file."""
    random = np.random.default_rng(0)
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
    for number in range(images):
        path = folder / str(number % 10) / f"{number:06}.png"
        first = folder / str(number % 10) / f"{number % PICTURES:06}.png"
        if number < PICTURES:
            Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
        else:
            os.link(first, path)


def undisturbed(command: list[str], records: Path, options: argparse.Namespace) -> bool:
    begun = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        looks: list[Seen] = []
        while process.poll() is None:
            looks += look(process.pid, records)
            time.sleep(0.5)
        report = json.loads(process.stdout.read()) if process.stdout else {}
    wall = time.monotonic() - begun
    quarters = [[seen for seen in looks if part <= 4 * seen.records / options.images < part + 1] for part in range(4)]
    memory = [statistics.median(seen.memory for seen in part) / 2**20 for part in quarters]
    files = [max(seen.files for seen in part) for part in quarters]
    batches = options.images / options.batch_size
    print(f"{report['n']} images in {batches:.0f} batches: {wall:.0f} s wall, {looks[-1].seconds:.0f} s processor")
    print("memory in each quarter:", *(f"{each:.1f}" for each in memory), "MiB; open files:", *files)
    return memory[3] <= GROWTH * memory[1] and files[3] <= files[1] and report["n"] == options.images


def look(pid: int, records: Path) -> list[Seen]:
    try:
        size = records.stat().st_size
        text, row = Path(f"/proc/{pid}/status").read_text(), records.open().readlines(4096)[1:]
        memory = int(text.split("VmRSS:")[1].split()[0]) * 1024
        times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        seconds = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
        mean = statistics.mean(map(len, row))
        return [Seen(int(size / mean), memory, len(os.listdir(f"/proc/{pid}/fd")), seconds)]
    except (OSError, IndexError, statistics.StatisticsError):
        return []  # before the first record, or after the end


def full_disk(command: list[str], records: Path, whole: Path) -> bool:
    size = whole.stat().st_size // 2

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    full = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    said = [line for line in full.stderr.splitlines() if line.startswith("Error: ")]
    kept = len(records.read_text().splitlines()) - 1
    again = subprocess.run(command, capture_output=True, text=True)
    same = records.read_bytes() == whole.read_bytes()
    print(f"a full disk: exit code {full.returncode}, {' '.join(said)!r}, {kept} records kept")
    print(f"the same command again: exit code {again.returncode}; records as of an undisturbed run: {same}")
    return full.returncode == 1 and len(said) == 1 and kept > 0 and again.returncode == 0 and same


if __name__ == "__main__":
    sys.exit(main())
