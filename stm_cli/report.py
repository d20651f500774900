"""`stm report`: write one page about a compressed model, for people who do not run stm."""

from rich.console import Group, RenderableType

from stm.findings import PageReport
from stm.units import size
from stm_cli import _groups as g
from stm_cli import _options as o
from stm_cli._format import fields, measured_rows, milder, speed_row
from stm_cli._output import Output

EXAMPLES = (
    "stm report vim-digits-stm40",
    "stm report vim-s-stm40 --data my_images/ --records eval.csv",
    "stm report vim-s-stm40 --sweep sweep.json --bench bench.json",
)


@g.grouped
def run(
    folder: o.FolderOrRepo,
    *,
    data: o.Data = None,
    reading: g.Reading,
    records: o.Records = None,
    limit: o.Limit = None,
    batch_size: o.BatchSize = 32,
    seed: o.Seed = 0,
    sweep: o.Sweep = None,
    bench: o.Bench = None,
    out: o.Page = None,
    force: o.ForcePage = False,
    revision: o.Revision = None,
    token: o.Token = None,
    machine: g.Machine,
    workers: o.Workers = None,
    display: g.Display,
) -> None:
    """Write one self-contained HTML page: what was compressed, how, and what it cost."""
    from stm.commands.report import report
    from stm.options import EvalOptions, ModelOptions

    output = Output(**vars(display))
    with output.progress() as on_progress:
        page = report(
            folder,
            # Only these: a folder tells everything else about its model.
            ModelOptions(revision=revision, token=token, **vars(machine)),
            EvalOptions(data=data, limit=limit, batch_size=batch_size, seed=seed, workers=workers, **vars(reading)),
            records=records,
            sweep=sweep,
            bench=bench,
            out=out,
            force=force,
            on_progress=on_progress,
        )
    output.report(page, screen, lambda shown: shown.output)
    for note in (*page.environment.fallbacks, *page.eval.skipped_notes):
        output.note(note)
    for warning in page.warnings:
        output.warn(warning)
    output.next(*milder(page))


def screen(report: PageReport) -> RenderableType:
    """Draw the page's path and figures, and the commands that would fill its empty sections."""
    rows = [("page", f"{report.output}, {size(report.bytes)}"), *measured_rows(report.eval)]
    if report.eval.images_per_second is not None:  # nothing is timed if every image was in the records
        rows.append(speed_row(report.eval.images_per_second, report.environment))
    # An empty section of the page looks like a fault. The screen tells how to fill it before the page is sent.
    rows += [("not in it", why) for why in report.missing.values()]
    return Group(report.model, fields(rows))
