"""`stm export`: write a model in a layout that other programs read."""

from dataclasses import replace

from rich.console import Group, RenderableType

from stm.options import words
from stm.reports import ExportReport
from stm.units import size
from stm_cli import _groups as g
from stm_cli import _options as o
from stm_cli import _publishing as p
from stm_cli._format import fields, source_text
from stm_cli._output import Output

EXAMPLES = (
    "stm export my-vim --format onnx",
    "stm export my-vim --format pt2 --features --out-indices 5,11,17,23",
    "stm export my-vim --format official",
    "stm export vim_finetuned.pth --format folder --out my-vim",
)


@g.grouped
def run(
    model: o.Model,
    *,
    format: p.ExportFormat = "official",
    batch_size: p.ExportBatch = None,
    dynamic_batch: p.DynamicBatch = False,
    with_preprocessing: p.WithPreprocessing = False,
    features: p.Features = False,
    out_indices: p.OutIndices = None,
    dtype: o.Dtype = None,
    out: p.OutFile = None,
    force: p.ForceFile = False,
    source: g.Source,
    display: g.Display,
) -> None:
    """Write a model for another runtime, or the dense model in another layout.

    An export for another runtime is run there, in a process of its own, before it gets its name.
    """

    from stm.commands.export import export
    from stm.model_names import model_of

    output = Output(**vars(display))
    with output.progress() as on_progress:
        report = export(
            model,
            replace(g.model_options(source), dtype=dtype),
            format=format,
            batch_size=batch_size,
            dynamic_batch=dynamic_batch,
            with_preprocessing=with_preprocessing,
            features=features,
            out_indices=out_indices,
            out=out,
            force=force,
            on_progress=on_progress,
        )
    output.report(report, screen, lambda shown: shown.output)
    for note in report.notes:  # they name what the file does not hold, so that nobody misses a plan later
        output.note(note)
    if report.check is None:  # only what stm wrote for itself or for hustvl/Vim can be read again
        # An official file holds tensors only, so the command needs the options that read it as this model.
        output.next(("stm", "info", model_of(report.output), *words(report.reading)))


def screen(report: ExportReport) -> RenderableType:
    """Draw what was written, and the origin of its weights."""
    rows = [
        ("format", report.format),
        ("tensors", f"{report.tensors:,}, {size(report.bytes)}"),
        ("source", source_text(report.source)),
    ]
    if (check := report.check) is not None:
        rows[0] = ("format", report.format if report.opset is None else f"{report.format}, opset {report.opset}")
        rows += [
            ("takes, gives", f"{report.input} -> {report.result}"),
            (
                "checked",
                f"in {check.runtime} {check.version} on {check.images} images, batches of "
                f"{' and '.join(map(str, check.batch_sizes))}: differs by {check.difference:.1e} of the largest output "
                f"(at most {check.tolerance:.0e})",
            ),
            (
                "speed",
                f"{check.ms_per_image:.1f} ms per image in {check.runtime}, {check.own_ms_per_image:.1f} in stm; "
                f"batch {check.batch_sizes[0]}, {check.threads} threads",
            ),
        ]
        if check.agreement is not None:
            rows.insert(-1, ("agreement", f"{check.agreement:.1%} of the images get the same first class"))
    return Group(f"{report.model} -> {report.output}", fields(rows))
