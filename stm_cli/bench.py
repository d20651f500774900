"""`stm bench`: time a dense model against the compressed one."""

from rich.console import Group, RenderableType

from stm.config import INT8
from stm.findings import BenchReport
from stm.units import operations, size
from stm_cli import _groups as g
from stm_cli import _options as o
from stm_cli._format import Row, environment_text, fields, staircase, tokens
from stm_cli._output import Output
from stm_cli._tables import Columns

EXAMPLES = (
    "stm bench vim-digits-stm40 --batch-sizes 1,8 --threads 1",
    "stm bench vim-s --random-weights --optimize --against onnxruntime,openvino",
    "stm bench vim-ti --random-weights --image-size 448 --saving 0.35",
    "stm bench vim-s --random-weights --dtype bfloat16 --optimize --json",
)


@g.grouped
def run(
    model: o.Model,
    *,
    batch_sizes: o.BatchSizes = (1,),
    threads: o.Threads = None,
    rounds: o.Rounds = None,
    against: o.Against = None,
    optimize: o.Optimize = False,
    random_weights: o.RandomWeights = False,
    budget: g.Budget,
    source: g.Source,
    machine: g.Machine,
    display: g.Display,
) -> None:
    """Time a model dense against compressed, in one process and in turns."""
    from stm.commands.bench import bench

    output = Output(**vars(display))
    with output.progress() as on_progress:
        report = bench(
            model,
            g.model_options(source, machine),
            budget.options(),
            batch_sizes=batch_sizes,
            threads=threads,
            rounds=rounds,
            against=against or (),
            optimize=optimize,
            random_weights=random_weights,
            on_progress=on_progress,
        )
    # By the clock and not by FLOPs: a script that gates on the gain must gate on what users get.
    output.report(report, screen, lambda shown: "" if shown.wall_clock_gain is None else f"{shown.wall_clock_gain:.4f}")
    for note in (*report.environment.fallbacks, *report.notes):
        output.note(note)


def screen(report: BenchReport) -> RenderableType:
    """Draw one line per variant and batch size, and the meaning of the columns below."""
    lines = []
    for row in report.rows:
        # Half the distance between the quartiles, because people read a number after +- as a half width.
        cells = (f"{row.ms_per_image:.2f}", f"{row.ms_iqr / 2:.2f}", f"{row.images_per_second:.1f}", f"{row.gain:.2f}x")
        # Not every device counts the memory of tensors; torch counts it on CUDA.
        peak = "-" if row.peak_bytes is None else size(row.peak_bytes)
        # The honest count: the paper's leaves out work that the clock sees.
        lines.append((row.variant, str(row.batch_size), *cells, peak, operations(row.flops.honest)))
    heads = ("", "batch", "ms/image", "+-", "images/s", "gain", "peak", "FLOPs")
    return Group(report.model, Columns(heads, lines, gap=2), fields(_below(report)))


def _below(report: BenchReport) -> list[Row]:
    """Return the rows below the table: the gains first, if there are any."""
    floats = ", in float32" if report.environment.dtype == INT8 else ""
    rows = [
        ("tokens", f"{staircase(report.tokens_per_block)}  {tokens(report.tokens_per_block)}"),
        ("on", f"{environment_text(report.environment)}, torch {report.environment.torch}"),
        *([("rivals", ", ".join(map(" ".join, report.runtimes.items())))] if report.runtimes else []),
        ("ms/image", f"the median of {report.rows[0].rounds} rounds, +- half the distance between the quartiles"),
        ("FLOPs", "multiply-accumulates, all that is computed; stm info also has the paper's count"),
        ("products", f"{report.gemm_ms:.2f} ms an image: the dense model's matrix products alone{floats}"),
    ]
    if report.wall_clock_gain is not None and report.flops_gain is not None:
        rows.insert(0, ("gain", f"{report.wall_clock_gain:.3f}x by the clock, {report.flops_gain:.3f}x by FLOPs"))
    return rows
