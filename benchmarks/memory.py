"""Measure the peak memory of `stm compress` against its bound.

    python benchmarks/memory.py CHECKPOINT DATA [LIMIT [BATCH]] [--rounds 5]

Each figure is the high-water mark of a process of its own (VmHWM of /proc, so Linux only), with one thread. The bound
is the peak of the bare import, plus 2.5 times the weights, plus the memory that one dense forward of the same batch
adds. Allocators make the last term vary from run to run, so it is measured several times. The exit code is 1 if
compress exceeds the bound.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import stm
from stm.measure.environment import processor_name


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the peak memory of stm compress.")
    parser.add_argument("checkpoint")
    parser.add_argument("data")
    parser.add_argument("limit", nargs="?", type=int, default=64)
    parser.add_argument("batch", nargs="?", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stage", choices=["forward", "compress"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage is not None:
        print(*measure(options))
        return
    forwards = [run("forward", options) for _ in range(options.rounds)]
    wholes = [run("compress", options)[0] for _ in range(options.rounds)]
    bare, forward, whole = (statistics.median(values) for values in (*zip(*forwards, strict=True), wholes))
    weights = sum(parameter.nbytes for parameter in stm.load_checkpoint(options.checkpoint, device="cpu").parameters())
    bound = bare + 2.5 * weights + forward
    print(f"{processor_name()}, torch {torch.__version__}, one thread, batch {options.batch}")
    print(f"MB, median (lowest to highest) of {options.rounds}")
    print(f"bare import   {bare / 1e6:.0f}")
    print(f"weights       {weights / 1e6:.1f}")
    print(f"forward adds  {spread([added for _, added in forwards])}")
    print(f"compress      {spread(wholes)}")
    print(f"bound         {bound / 1e6:.0f}: compress is at {whole / bound:.2f} of it")
    raise SystemExit(whole > bound)


def run(stage: str, options: argparse.Namespace) -> list[int]:
    words = [options.checkpoint, options.data, str(options.limit), str(options.batch), "--stage", stage]
    done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def measure(options: argparse.Namespace) -> list[int]:
    """Return the bare peak and the bytes that a forward adds, or the peak of the whole job.

    It must run in a process of its own: a high-water mark never falls.
    """
    import jinja2  # noqa: F401 - part of the bare import

    import stm.commands.compress
    import stm.hub.card
    from stm.options import EvalOptions, FitOptions, ModelOptions

    torch.set_num_threads(1)
    bare = status("VmHWM")
    if options.stage == "forward":
        model = stm.load_checkpoint(options.checkpoint, device="cpu")
        before = status("VmRSS")
        with torch.inference_mode():
            model(torch.randn(options.batch, 3, 224, 224))
        return [bare, status("VmHWM") - before]
    with tempfile.TemporaryDirectory() as folder:
        stm.commands.compress.compress(
            options.checkpoint,
            ModelOptions(device="cpu"),
            images=EvalOptions(data=options.data, limit=options.limit, batch_size=options.batch, workers=0),
            # As many pictures of each kind as the backward pass takes at once: more need more time and no more memory,
            # but for the pictures themselves, 29 MB of bytes.
            fit=FitOptions(fit_images=6, no_cache=True),
            out=Path(folder) / "out",
        )
    return [status("VmHWM")]


def status(key: str) -> int:
    line = re.search(key + r":\s+(\d+)", Path("/proc/self/status").read_text())
    assert line is not None
    return int(line[1]) * 1024  # the kernel counts in KiB


def spread(values: list[int]) -> str:
    return f"{statistics.median(values) / 1e6:.0f} ({min(values) / 1e6:.0f} to {max(values) / 1e6:.0f})"


if __name__ == "__main__":
    main()
