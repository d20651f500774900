"""`stm eval`: measure a model's accuracy, and its agreement with the dense model that it was made of."""

import shlex

from rich.console import Group, RenderableType

from stm.reports import EvalReport
from stm_cli import _groups as g
from stm_cli import _options as o
from stm_cli._format import fields, image_notes, measured_rows, milder, shown_name, speed_row
from stm_cli._output import Output

EXAMPLES = (
    "stm eval",
    "stm eval vim-digits-stm40 --json",
    "stm eval vim-s-stm40 --data my_images/ --records predictions.csv",
    "stm eval vim-ti --data imagenet/val --limit 1000",
    "torchrun --nproc-per-node 8 -m stm_cli eval vim-s-stm40 --data imagenet/val",
)

_DEFAULTS = {".": "the one in this folder", "vim-digits": "the embedded one"}  # see `commands.eval.find_default`


@g.grouped
def run(
    model: o.OptionalModel = None,
    *,
    data: o.Data = None,
    reading: g.Reading,
    records: o.Records = None,
    limit: o.Limit = None,
    batch_size: o.BatchSize = 32,
    seed: o.Seed = 0,
    source: g.Source,
    machine: g.Machine,
    workers: o.Workers = None,
    display: g.Display,
) -> None:
    """Measure top-1 and top-5 with intervals, and agreement with the dense model."""
    from stm.commands.eval import evaluate
    from stm.distributed import joined
    from stm.options import EvalOptions

    options = g.model_options(source, machine)
    output = Output(**vars(display))
    # Under torchrun the processes share the images. Without torchrun, `joined` yields a world of one process.
    with output.progress() as on_progress, joined() as world:
        report = evaluate(
            model,
            options,
            EvalOptions(data=data, limit=limit, batch_size=batch_size, seed=seed, workers=workers, **vars(reading)),
            records=records,
            world=world,
            on_progress=on_progress,
        )
    output.report(report, screen, value)
    # A default model must not pass for the one that a user meant.
    named = (
        ()
        if model is not None
        else (f"no MODEL was named: this is {_DEFAULTS.get(report.model, 'the only one below this folder')}",)
    )
    for note in (*named, *report.environment.fallbacks, *report.notes, *image_notes(report)):
        output.note(note)
    for warning in report.warnings:
        output.warn(warning)
    if report.top1 is None and report.feature_change is None:
        # With the options of this run, so that the command reads the same model.
        again = shlex.join(("stm", "eval", report.model, *options.words(), "--data", "DIR"))
        output.note(f"accuracy was not measured, as {report.data} has no labels; measure it: {again}")
    # `stm info` runs nothing, so it takes no device, dtype or backend.
    output.next(*milder(report), ("stm", "info", report.model, *g.model_options(source).words()))


def screen(report: EvalReport) -> RenderableType:
    """Draw the figures of the evaluation, and the speed if anything was timed."""
    rows = measured_rows(report)
    if report.images_per_second is not None:
        rows.append(speed_row(report.images_per_second, report.environment))
    return Group(shown_name(report.model), fields(rows))


def value(report: EvalReport) -> str:
    """Return top-1 as a fraction; without labels, the agreement; of a backbone, the change of its features."""
    figures = (report.top1, report.agreement, report.feature_change)
    figure = next((each for each in figures if each is not None), None)
    return "" if figure is None else f"{figure:.4f}"
