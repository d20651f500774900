"""`make demo`: the whole job on the embedded model, with its cost on one screen. Needs no network.

Writes ./vim-digits-stm40 with the default method, measures the paper's method in a temporary place, and ends with the
commands to type next.
"""

import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.table import Table

import stm
from stm import EvalReport, ViM
from stm.commands import compress, info
from stm.measure.stats import wilson
from stm.options import MergeOptions
from stm.reports import CompressReport, Flops
from stm.units import interval, operations, percent
from stm_cli._errors import guard
from stm_cli._format import environment_text, tokens
from stm_cli._output import Output, console

MODEL, RATE, OUT = "vim-digits", 0.4, Path("vim-digits-stm40")
BATCH, ROUNDS = 16, 7  # of the timing


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, Output(json=False, quiet=False).progress() as on_progress:
        about = info.info(MODEL)
        ours = compress.compress(
            MODEL, merge=MergeOptions(rate=RATE, method="stm"), out=OUT, force=True, on_progress=on_progress
        )
        paper = compress.compress(
            MODEL, merge=MergeOptions(rate=RATE, method="paper"), eval=False, out=Path(scratch) / "paper"
        )
        small, theirs = stm.load(OUT), stm.load(paper.output)
        measured = stm.evaluate(theirs, None, on_progress=on_progress)  # no reference: `ours` measured the dense model
        ms = milliseconds({"dense": small.with_plan(None), "stm": small, "paper": theirs})

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in (f"rate {RATE}", "tokens", "FLOPs (paper)", "ms/image", "top-1 (95%)"):
        table.add_column(heading, no_wrap=True)
    figures = ours.eval
    assert figures is not None and figures.dense_top1 is not None  # the digits have labels
    table.add_row("dense", *_row(about.tokens_per_block, about.flops, ms["dense"], figures.dense_top1, figures.n))
    for report, top1 in ((ours, figures.top1), (paper, measured.top1)):
        row = _row(report.schedule["tokens_per_block"], report.flops, ms[report.recipe.method], top1, figures.n)
        table.add_row(f"--method {report.recipe.method}", *row)

    screen = console()
    screen.print("", table, "", _words(measured, ours), "", sep="\n")
    for command in _next():
        screen.print(f"  {shlex.join(command)}", soft_wrap=True)


def milliseconds(models: Mapping[str, ViM]) -> dict[str, float]:
    """Return the median time per image of each model as it serves, in ms.

    The models take turns, so that other load hits all alike.
    """
    served = {name: model.optimize(batch_size=BATCH) for name, model in models.items()}
    shape = next(iter(models.values())).config.model
    images = torch.zeros(BATCH, *shape.input_shape)
    device = next(iter(models.values())).cls_token.device
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for _ in range(ROUNDS + 1):
            for name, model in served.items():
                start = time.perf_counter()
                model(images.to(device)).cpu()  # the copy waits for the device
                seconds[name].append(time.perf_counter() - start)
    # The first round warms up.
    return {name: 1000 * statistics.median(rounds[1:]) / BATCH for name, rounds in seconds.items()}


def _row(per_block: Sequence[int], flops: Flops, ms: float, top1: float | None, n: int) -> tuple[str, ...]:
    assert top1 is not None  # the digits have labels
    count = str(per_block[0]) if per_block[0] == per_block[-1] else f"{per_block[0]} to {per_block[-1]}"
    saved = f" (-{percent(flops.paper_saving)})" if flops.paper_saving else ""
    return (
        count,
        operations(flops.paper) + saved,
        f"{ms:.2f}",
        f"{percent(top1)} ({interval(wilson(round(top1 * n), n))})",
    )


def _words(measured: EvalReport, ours: CompressReport) -> str:
    return (
        f"{ours.output} was written. Tokens by block: {tokens(ours.schedule['tokens_per_block'])}. Accuracy on"
        f" {measured.n} held-out digits; time per image as served, in batches of {BATCH}, on"
        f" {environment_text(measured.environment)}.\nThe default was fitted on drawn pictures, so it needed no data."
        " What this cannot show: digits are not photographs, and a model this narrow spends much of its time outside of"
        " arithmetic. Measure your own model on your own images before you believe a number. Now type:"
    )


def _next() -> list[tuple[str, ...]]:
    """Return three commands as they can be typed here: `make demo` may run in another environment than the shell."""
    beside = Path(sys.executable).with_name("stm")
    program = (
        "stm"
        if shutil.which("stm")
        else str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside)
    )
    return [
        (program, "info", str(OUT)),
        (program, "eval", str(OUT)),
        (program, "compress", MODEL, "--saving", "0.4", "--dry-run"),
    ]


if __name__ == "__main__":
    sys.exit(guard(main))
