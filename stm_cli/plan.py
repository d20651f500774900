"""`stm plan`: help a user to choose a rate."""

from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from stm.findings import PlanReport
from stm.units import operations, percent
from stm_cli import _groups as g
from stm_cli import _options as o
from stm_cli._format import environment_text, fields
from stm_cli._output import Output

EXAMPLES = ("stm plan vim-digits", "stm plan vim-ti --data my_images/", "stm plan vim-s --random-weights --threads 1")


@g.grouped
def run(
    model: o.Model,
    *,
    method: o.Method = None,
    schedule: o.Schedule = None,
    data: o.Pictures = None,
    limit: o.Few = None,
    seconds: o.Seconds = None,
    seed: o.Seed = 0,
    timed: o.Timed = 1,
    threads: o.Threads = None,
    rounds: o.Rounds = None,
    random_weights: o.RandomWeights = False,
    source: g.Source,
    machine: g.Machine,
    display: g.Display,
) -> None:
    """Show what rates of 10% to 60% cost and keep, measured on this machine."""
    from stm.commands.plan import plan
    from stm.options import MergeOptions

    output = Output(**vars(display))
    with output.progress() as on_progress:
        report = plan(
            model,
            g.model_options(source, machine),
            MergeOptions(method=method, schedule=schedule),
            data=data,
            limit=limit,
            seconds=seconds,
            seed=seed,
            batch_size=timed,
            threads=threads,
            rounds=rounds,
            random_weights=random_weights,
            on_progress=on_progress,
        )
    output.report(report, screen, value)
    for note in (*report.environment.fallbacks, *report.notes, *report.skipped_notes):
        output.note(note)
    # A rate out of reach is no failure of the others, so it is a note beside the table.
    for row in report.rows:
        if row.reason is not None:
            output.note(f"rate {row.rate:g}: {row.reason}")


def screen(report: PlanReport) -> RenderableType:
    """Draw one line per rate, the meaning of the columns, and the command that makes each model."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, show_edge=False)
    for name in ("rate", "tokens", "FLOPs", "ms/image", "gain", "agreement", "KL"):
        table.add_column(Text(name), justify="right", no_wrap=True)
    # A rate that no schedule reaches has no numbers; a note gives its reason.
    rows = [row for row in report.rows if row.reason is None]
    for row in rows:
        assert (
            row.tokens_per_block is not None
            and row.flops is not None
            and row.ms_per_image is not None
            and row.gain is not None
        )
        # Intervals, because the images are few: a plan is made in half a minute.
        kept = (_over(row.agreement, row.agreement_ci, percent), _over(row.kl, row.kl_ci, "{:.4f}".format))
        cells = (
            f"{row.tokens_per_block[0]} to {row.tokens_per_block[-1]}",
            operations(row.flops.honest),
            f"{row.ms_per_image:.2f}",
        )
        table.add_row(*map(Text, (percent(row.rate, 0) if row.rate else "dense", *cells, f"{row.gain:.2f}x", *kept)))
    below = [("on", environment_text(report.environment))]
    below.append(("FLOPs", "multiply-accumulates, all that is computed; stm info also has the paper's count"))
    if report.data is not None:
        # Said at the number itself: agreement is easily read as accuracy.
        below.append(("agreement", f"with the dense model's top-1 on {_images(report)}; this is not accuracy"))
        below.append(("intervals", "95%, below agreement and KL"))
    # Each command stays on one line at any width of the terminal, so that it can be pasted.
    commands = [Text(row.compress, no_wrap=True, overflow="ignore") for row in rows if row.compress is not None]
    return Group(report.model, table, fields(below), *commands)


def _over(figure: float | None, interval: tuple[float, float] | None, shown: Callable[[float], str]) -> str:
    """Return a cell of two lines: a figure over its interval."""
    if figure is None:
        return "-"
    return shown(figure) + ("" if interval is None else f"\n{shown(interval[0])} to {shown(interval[1])}")


def _images(report: PlanReport) -> str:
    """Return the number of images and their set, and the time limit if that is why there are no more."""
    if report.seconds is None or report.n == report.of:
        return f"{report.n:,} images of {report.data}"
    return (
        f"{report.n:,} of the {report.of:,} images of {report.data}: those that {report.seconds:g} s allowed, drawn at"
        " random"
    )


def value(report: PlanReport) -> str:
    """Return one line per rate: the rate, a tab, the gain."""
    return "\n".join(f"{row.rate:g}\t{row.gain:.4f}" for row in report.rows if row.gain is not None)
