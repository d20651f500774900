"""Evaluate many images, watch for leaks, and fill the disk on the way.

    python benchmarks/long_run.py [CHECKPOINT] [--images 100000] [--batch-size 50]

The set is hard links to a hundred small pictures, so it needs no room. The model is a ViM of two narrow blocks, unless
one is given: what it computes is not the question. While `stm eval` runs, /proc (so Linux only) tells its memory and
open files. Then the same evaluation meets a full disk in the middle, and runs again when there is room. The disk is a
small tmpfs if this user may mount one, else a limit on the size of files.

The exit code is 1 if memory grows from the second quarter of the run to the last one by more than the records that a
run holds, or the open files do, if the full disk is not one sentence, or if the records differ from those of the
undisturbed run.
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
import torch
from PIL import Image

from stm.checkpoint.infer import official_shapes
from stm.config import ModelConfig

PICTURES = 100
KEPT = 400  # bytes of memory for each image: its record, its place in lists, and what allocators keep beside them


class Seen(NamedTuple):
    """A look at a process: records written so far, bytes in memory, open files, processor seconds."""

    records: int
    memory: int
    files: int
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--batch-size", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stm-long-") as folder:
        work = Path(folder)
        link(work / "set", options.images)
        model = options.checkpoint or str(narrow(work))
        command = [sys.executable, "-m", "stm_cli", "eval", model, "--data", str(work / "set")]
        command += ["--batch-size", str(options.batch_size), "--device", "cpu", "--json", "--records"]
        whole = work / "whole.csv"
        good = undisturbed([*command, str(whole)], whole, options)
        return 0 if full_disk(command, work / "full", whole) and good else 1


def narrow(folder: Path) -> Path:
    """Write an official checkpoint of random weights: 5 tokens, 8 channels, ten classes."""
    torch.manual_seed(0)
    model = ModelConfig(image_size=8, patch=4, stride=4, d_model=8, depth=2, d_state=2, dt_rank=1)
    path = folder / "vim_patch4_8_bimambav2_midclstok_div2.pth"
    torch.save({name: torch.rand(shape) / 8 for name, shape in official_shapes(model, 10).items()}, path)
    return path


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
    kept = (memory[3] - memory[1]) * 2**20 / (options.images / 2)
    print("memory in each quarter:", *(f"{each:.1f}" for each in memory), "MiB; open files:", *files)
    print(f"{kept:.0f} bytes more for each image, of at most {KEPT}")
    return kept <= KEPT and files[3] <= files[1] and report["n"] == options.images


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


def full_disk(command: list[str], folder: Path, whole: Path) -> bool:
    """Run where half the records have room, and again where all have. Return whether both did what they should."""
    folder.mkdir()
    records, size = folder / "records.csv", whole.stat().st_size
    mounted = mount(folder, size // 2)
    try:
        full = subprocess.run(
            [*command, str(records)],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},  # the limit would cut it short
            preexec_fn=None if mounted else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2)),
        )
        said = [line for line in full.stderr.splitlines() if line.startswith("Error: ")]
        kept = len(records.read_text().splitlines()) - 1
        if mounted:
            mount(folder, 3 * size, "remount,")
        again = subprocess.run([*command, str(records)], capture_output=True, text=True)
        same = records.read_bytes() == whole.read_bytes()
        beside = sorted(path.name for path in folder.iterdir() if ".stm-tmp-" in path.name)
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)
    how = "a full tmpfs" if mounted else "a limit on the size of files"
    print(f"{how}: exit code {full.returncode}, {' '.join(said)!r}, {kept} records kept, drafts left: {beside}")
    print(f"the same command again: exit code {again.returncode}; records as of an undisturbed run: {same}")
    right = full.returncode == 1 and len(said) == 1 and kept > 0 and not beside
    return right and again.returncode == 0 and same


def mount(folder: Path, size: int, how: str = "") -> bool:
    """Whether a tmpfs of so many bytes stands at a folder now: only the superuser of some machines may mount one."""
    command = ["mount", "-t", "tmpfs", "-o", f"{how}size={size}", "tmpfs", str(folder)]
    return sys.platform == "linux" and subprocess.run(command, capture_output=True).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
