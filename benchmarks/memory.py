"""The peak memory of `stm compress`, against what it should stay below.

    python benchmarks/memory.py CHECKPOINT DATA [LIMIT [BATCH]] [--rounds 5]

Each figure is the high-water mark of a process of its own (VmHWM of /proc, so Linux only), one thread. The bound is the
bare import's peak, 2.5 times the weights, and what one dense forward of the same batch adds; allocators make the last
vary from run to run, so it is measured several times. It exits 1 where the bound is passed.
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
    print(f"forward adds  {spread([each[1] for each in forwards])}")
    print(f"compress      {spread(wholes)}")
    print(f"bound         {bound / 1e6:.0f}: compress is at {whole / bound:.2f} of it")
    raise SystemExit(whole > bound)


def run(stage: str, options: argparse.Namespace) -> list[int]:
    words = [options.checkpoint, options.data, str(options.limit), str(options.batch), "--stage", stage]
    done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def measure(options: argparse.Namespace) -> list[int]:
    """In a process of its own: the bare peak and what a forward adds, or the peak of the whole job."""
    import jinja2  # noqa: F401 - part of the bare import

    import stm.commands.compress
    import stm.hub.card
    from stm.options import EvalOptions, ModelOptions

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
            out=Path(folder) / "out",
        )
    return [status("VmHWM")]


def status(key: str) -> int:
    found = re.search(key + r":\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def spread(values: list[int]) -> str:
    return f"{statistics.median(values) / 1e6:.0f} ({min(values) / 1e6:.0f} to {max(values) / 1e6:.0f})"


if __name__ == "__main__":
    main()
