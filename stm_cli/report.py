"""`stm report`: one page about a compressed model, for people who were not there."""

from rich.console import Group, RenderableType

from stm.findings import PageReport
from stm_cli import _options as o
from stm_cli._format import fields, measured_rows, size, speed_row
from stm_cli._output import Output

EXAMPLES = (
    "stm report vim-digits-stm40",
    "stm report vim-s-stm40 --data my_images/ --records eval.csv",
    "stm report vim-s-stm40 --sweep sweep.json --bench bench.json",
)


@o.grouped
def run(
    folder: o.FolderOrRepo,
    *,
    data: o.Data = None,
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
    machine: o.Machine,
    workers: o.Workers = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Write one self-contained HTML page: what was compressed, how, and what it cost."""
    from stm.commands import report as report_command

    output = Output(json=json, quiet=quiet)
    with output.progress() as on_progress:
        found = report_command.report(
            folder,
            data=data,
            records=records,
            limit=limit,
            batch_size=batch_size,
            seed=seed,
            sweep=sweep,
            bench=bench,
            out=out,
            force=force,
            revision=revision,
            token=token,
            **vars(machine),
            workers=workers,
            on_progress=on_progress,
        )
    output.report(found, screen, lambda shown: shown.output)
    for note in (*found.environment.fallbacks, *found.eval.skipped_notes):
        output.note(note)


def screen(report: PageReport) -> RenderableType:
    rows = [("page", f"{report.output}, {size(report.bytes)}"), *measured_rows(report.eval)]
    if report.eval.images_per_second is not None:
        rows.append(speed_row(report.eval.images_per_second, report.environment))
    rows += [("not in it", why) for why in report.missing.values()]
    return Group(report.model, fields(rows))
