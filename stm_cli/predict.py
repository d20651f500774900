"""`stm predict`: show the classes that a model gives to images."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from stm.errors import DataError
from stm.reports import Prediction, PredictReport
from stm.units import percent
from stm_cli import _groups as g
from stm_cli import _options as o
from stm_cli._output import Output

EXAMPLES = ("stm predict vim-digits-stm40 photo.jpg", "stm predict vim-s photo.jpg more.png --json")


@g.grouped
def run(
    model: o.Model,
    images: o.Images,
    *,
    batch_size: o.BatchSize = 32,
    source: g.Source,
    machine: g.Machine,
    display: g.Display,
) -> None:
    """Show the five most likely classes of each image."""
    from stm.commands.predict import predict

    output = Output(**vars(display))
    with output.progress() as on_progress:
        report = predict(
            model,
            images,
            g.model_options(source, machine),
            batch_size=batch_size,
            on_progress=on_progress,
        )
    output.report(report, screen, value)
    for note in report.environment.fallbacks:
        output.note(note)
    # After the report: the readable images have their answers, and the exit code still tells a script of the others.
    if broken := [prediction for prediction in report.predictions if prediction.error]:
        raise DataError(
            f"{len(broken)} of {len(report.predictions)} images could not be read; the first: {broken[0].error}"
        )


def screen(report: PredictReport) -> RenderableType:
    """Draw one block per image, in the order of the command line."""
    return Group(*(part for prediction in report.predictions for part in _block(prediction)))


def _block(prediction: Prediction) -> tuple[RenderableType, ...]:
    """Return an image's name over its classes, or the reason why it could not be read."""
    if prediction.error:
        return (Text(prediction.error),)
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right")
    table.add_column(overflow="fold")  # a label that is cut may read as another one
    for guess in prediction.top5:
        table.add_row(f"  {percent(guess.probability)}", Text(guess.label))
    return Text(prediction.file), table


def value(report: PredictReport) -> str:
    """Return one line per image: its name, a tab, the most likely label (empty for an image that could not be read)."""
    # A line for every image, also for an unreadable one: scripts pair the lines with their files.
    return "\n".join(f"{p.file}\t{p.top5[0].label if p.top5 else ''}" for p in report.predictions)
