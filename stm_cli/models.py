"""`stm models`: list the models that have a short name."""

from rich.console import RenderableType

from stm.reports import ListedModel, ModelsReport
from stm.units import percent, size
from stm_cli import _groups as g
from stm_cli._output import Output
from stm_cli._tables import Columns

EXAMPLES = ("stm models", "stm models --json")


@g.grouped
def run(*, display: g.Display) -> None:
    """List the models that have a short name: size, accuracy, and whether they are in the cache."""
    from stm.commands import models

    report = models.list_models()
    output = Output(**vars(display))
    output.report(report, screen, lambda shown: "\n".join(model.name for model in shown.models))
    # Nothing here was measured or read by us, so the notes say whose words the table repeats.
    output.note("accuracies are their authors', on ImageNet-1k's validation set")
    output.note(
        "licenses are those of the model cards' headers: read the text of a card too, which may say more, or something"
        " else"
    )
    output.next(("stm", "compress", report.models[1].name))  # the smallest of the Hub; the first one is embedded


def screen(report: ModelsReport) -> RenderableType:
    """Draw one line per model."""
    rows = []
    for model in report.models:
        # An empty cell and no dash: the embedded model was measured, but not on ImageNet.
        accuracy = "" if model.top1 is None else percent(model.top1)
        rows.append(
            (model.name, f"{model.parameters:,}", str(model.tokens), accuracy, model.license or "", _presence(model))
        )
    heads = ("name", "parameters", "tokens", "top-1", "license", "here")
    return Columns(heads, rows, gap=2, left=range(1, len(heads)))


def _presence(model: ListedModel) -> str:
    """Return whether the model's file is on this machine, and its size."""
    status = "in the package" if model.repo is None else "cached" if model.cached else "no"
    return status if model.bytes is None else f"{status}, {size(model.bytes)}"
