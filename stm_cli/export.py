"""`stm export`: write a model in a layout that other programs read."""

from rich.console import Group, RenderableType

from stm.options import words
from stm.reports import ExportReport
from stm.units import size
from stm_cli import _groups as g
from stm_cli import _options as o
from stm_cli._format import fields, source_text
from stm_cli._output import Output

EXAMPLES = ("stm export my-vim --format official", "stm export vim_finetuned.pth --format folder --out my-vim")


@g.grouped
def run(
    model: o.Model,
    *,
    format: o.ExportFormat = "official",
    out: o.OutFile = None,
    force: o.ForceFile = False,
    source: g.Source,
    display: g.Display,
) -> None:
    """Write the dense model in another layout: the official one, or a folder of ours."""

    from stm.commands.export import export
    from stm.model_names import model_of

    output = Output(**vars(display))
    with output.progress() as on_progress:
        report = export(
            model,
            g.model_options(source),
            format=format,
            out=out,
            force=force,
            on_progress=on_progress,
        )
    output.report(report, screen, lambda shown: shown.output)
    for note in report.notes:  # they name what the file does not hold, so that nobody misses a plan later
        output.note(note)
    # An official file holds tensors only, so the command needs the options that read it as this model.
    output.next(("stm", "info", model_of(report.output), *words(report.reading)))


def screen(report: ExportReport) -> RenderableType:
    """Draw what was written, and the origin of its weights."""
    rows = [
        ("format", report.format),
        ("tensors", f"{report.tensors:,}, {size(report.bytes)}"),
        ("source", source_text(report.source)),
    ]
    return Group(f"{report.model} -> {report.output}", fields(rows))
