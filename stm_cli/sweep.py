"""`stm sweep`: measure a grid of schedules, as in the paper's Table 3, and draw the curve of accuracy over cost."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from rich.console import Group, RenderableType

from stm.findings import SweepReport, SweepRow
from stm.units import interval, operations, percent
from stm_cli import _groups as g
from stm_cli import _options as o
from stm_cli._format import environment_text, fit_rows
from stm_cli._output import Output
from stm_cli._tables import Columns, Rows, filled

EXAMPLES = (
    "stm sweep vim-digits",
    "stm sweep vim-digits --schedules fitted,staged,border --sides both --peers random,rmeeto",
    "stm sweep vim-s --data imagenet/val --also vim-ti --limit 5000 --out sweep/",
    "stm sweep vim-ti --data imagenet/val --method paper --no-peers",
)


Key = Callable[[SweepRow], str]  # from a row of the report to the name of a line or column of a table


@g.grouped
def run(
    model: o.Model,
    *,
    method: o.Method = None,
    rates: o.Rates = None,
    sides: o.SweepSides = None,
    schedules: o.Orders = None,
    weights: o.SweepWeights = None,
    step_scales: o.StepScales = None,
    convs: o.Convs = None,
    tokens_per_side: o.SweepTokensPerSide = None,
    peers: o.Peers = None,
    no_peers: o.NoPeers = False,
    also: o.Also = None,
    fitted: g.Fitted,
    data: o.Data = None,
    reading: g.Reading,
    limit: o.SweepLimit = 100,
    batch_size: o.BatchSize = 32,
    seed: o.Seed = 0,
    out: o.SweepOut = None,
    source: g.Source,
    machine: g.Machine,
    workers: o.Workers = None,
    display: g.TableDisplay,
) -> None:
    """Measure a grid of schedules, and peers at the same savings. A run that is killed goes on where it was."""
    from stm.commands.sweep import sweep
    from stm.distributed import joined
    from stm.measure.sweep import Grid
    from stm.options import EvalOptions

    axes: dict[str, Any] = {
        "method": method,
        "rates": rates,
        "sides": sides,
        "schedules": schedules,
        "weights": weights,
        "step_scales": step_scales,
        "convs": convs,
        "tokens_per_side": tokens_per_side,
        "peers": () if no_peers else peers,  # an empty axis, since None would mean the default
    }
    # Only the axes that were given: the defaults of the others are the library's.
    grid = Grid(**{name: values for name, values in axes.items() if values is not None})
    output = Output(**vars(display))
    with output.progress() as on_progress, joined() as world:
        report = sweep(
            model,
            g.model_options(source, machine),
            EvalOptions(data=data, limit=limit, batch_size=batch_size, seed=seed, workers=workers, **vars(reading)),
            grid,
            fitted.options(),
            also=also or (),
            out=out,
            world=world,
            on_progress=on_progress,
        )
    output.report(report, screen, lambda shown: shown.output, pasted)
    if report.resumed:  # else a run that ends at once would look like one that did nothing
        output.note(f"{report.resumed} of {len(report.rows)} cells were in {report.output} already")
    for note in (
        *report.environment.fallbacks,
        *report.skipped_notes,
        *(f"{cell}: {why}" for cell, why in report.refused.items()),
    ):
        output.note(note)


def screen(report: SweepReport) -> RenderableType:
    """Draw the paper's Table 3, rates down and sides across, once per other choice; then peers with rates across."""
    # A preset has a schedule. A peer has no schedule, but the rate of the preset whose saving it matches. A dense model
    # has neither.
    parts: list[RenderableType] = []
    grid = [row for row in report.rows if row.schedule is not None]
    # The report keeps the order of the grid, whose innermost axes are rates and sides. So equal variants are
    # neighbours.
    for variant, members in groupby(grid, _variant):
        rows = list(members)
        parts += [variant, _table("rate", rows, lambda row: f"{row.rate:g}", lambda row: f"{row.sides}"), ""]
    peers = [row for row in report.rows if row.schedule is None and row.rate is not None]
    if peers:
        parts += [
            "peers, saving as much",
            _table("method", peers, lambda row: row.method, lambda row: f"{row.rate:g}"),
            "",
        ]
    for row in report.rows:
        if row.rate is None:
            name = row.method if row.method == "dense" else f"{row.method}, dense"
            parts.append(f"{name}: {_quality(row)}, {operations(row.flops.paper)} in the paper's convention")
    parts.append(
        "A cell: top-1 (agreement with dense where there are no labels), FLOPs in the paper's convention, honest"
        " saving."
    )
    parts.append(f"{report.model} on {report.n:,} images of {report.data}")
    parts += [f"{name} {value}" for name, value in fit_rows(report.fit)]
    parts.append(f"measured on {environment_text(report.environment)}")
    return Group(*parts)


def pasted(report: SweepReport) -> Rows:
    """Return one line per cell, with its place on every axis."""
    axes = ("method", "rate", "sides", "order", "weights", "p", "conv", "r")
    heads = ("FLOPs", "honest", "saved", "top-1 (%)", "drop (points)", "95%", "agreement (%)", "KL")
    rows = []
    for row in report.rows:
        place = (row.rate, row.sides, row.schedule, row.weights, row.step_scale, row.conv, row.tokens_per_side)
        rows.append(
            (
                row.method,
                *("" if value is None else f"{value:g}" if isinstance(value, float) else str(value) for value in place),
                operations(row.flops.paper),
                operations(row.flops.honest),
                percent(row.flops.honest_saving),
                "" if row.top1 is None else percent(row.top1)[:-1],
                "" if row.drop is None else f"{100 * row.drop:z.2f}",
                "" if row.drop_ci is None else interval(row.drop_ci, 2),
                "" if row.agreement is None else percent(row.agreement)[:-1],
                "" if row.kl is None else f"{row.kl:.4f}",
            )
        )
    return filled((*axes, *heads), rows)


def _variant(row: SweepRow) -> str:
    """Return the heading of a table: all choices that its cells share."""
    r = "" if row.tokens_per_side is None else f", r = {row.tokens_per_side}"
    return f"{row.method}: {row.schedule} order, {row.weights} weights, p = {row.step_scale:g}, {row.conv} conv{r}"


def _table(corner: str, rows: Sequence[SweepRow], down: Key, across: Key) -> Columns:
    """Return a table of rows by two of their values, in the order in which the values first appear."""
    columns = list(dict.fromkeys(map(across, rows)))
    lines = []
    for name in dict.fromkeys(map(down, rows)):
        # A cell may be missing: no schedule reaches some rates, and a note says why.
        line = {across(row): row for row in rows if down(row) == name}
        lines.append((name, *(_cell(line[column]) if column in line else "-" for column in columns)))
    return Columns((corner, *columns), lines, gap=2)


def _cell(row: SweepRow) -> str:
    return f"{_quality(row)}  {operations(row.flops.paper)}\n-{percent(row.flops.honest_saving)}"


def _quality(row: SweepRow) -> str:
    # Without labels the figure is the agreement, and the text below the tables says so.
    return percent(row.top1 if row.top1 is not None else row.agreement or 0.0)
