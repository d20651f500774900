"""`stm info`: show a model's shape, cost and origin. Nothing is run."""

from typing import Any

from rich.console import Group, RenderableType

from stm.codec import decode
from stm.config import Measured, in_pixels
from stm.errors import listed
from stm.evaluations import rounding_text
from stm.recipe import Fit
from stm.reports import InfoReport
from stm_cli import _groups as g
from stm_cli import _options as o
from stm_cli._format import (
    fields,
    fit_rows,
    flops_rows,
    measured_rows,
    merging_row,
    shown_name,
    source_text,
    staircase,
    tokens,
)
from stm_cli._output import Output

EXAMPLES = ("stm info vim-digits-stm40", "stm info vim-s", "stm info someone/their-vim --file weights.pth --json")


@g.grouped
def run(
    model: o.Model,
    *,
    source: g.Source,
    display: g.Display,
) -> None:
    """Show schedule, tokens per block, FLOPs, parameters, provenance and what was measured."""
    from stm.commands.info import info

    options = g.model_options(source)
    output = Output(**vars(display))
    with output.progress() as on_progress:
        report = info(
            model,
            options,
            on_progress=on_progress,
        )
    output.report(report, screen, lambda shown: str(shown.flops.paper))
    for note in report.notes:
        output.note(note)
    # The next step is to measure a compressed model, or to compress a dense one.
    if report.config["schedule"]["steps"]:
        output.next(("stm", "eval", model, *options.words()))
    else:
        output.next(("stm", "compress", model, *options.words()))


def screen(report: InfoReport) -> RenderableType:
    """Draw what the folder says of itself, and the counts that follow from it."""
    config = report.config  # the document as it would be saved, so the screen and the folder agree
    rows = [
        ("model", _shape(config)),
        ("tokens", f"{staircase(report.tokens_per_block)}  {tokens(report.tokens_per_block)}"),
        *((merging_row(config["recipe"], config["protection"]),) if config["schedule"]["steps"] else ()),
        *fit_rows(_fit(config)),
        *flops_rows(report.flops, exact=True),  # to the unit, to be compared with a paper's table
        ("parameters", f"{report.parameters:,}"),
        *_classes(config),
        ("source", source_text(report.source)),
    ]
    for measured in report.measured:  # as the folder records it: nothing is measured here
        rows += measured_rows(measured)
    if config.get("rounding") is not None:
        rows.append(("int8", rounding_text(decode(Measured, config["rounding"], "rounding"))))
    return Group(shown_name(report.model), fields(rows))


def _fit(config: dict[str, Any]) -> Fit | None:
    """Return what decided the schedule, from the document of the folder."""
    return decode(Fit | None, (config["recipe"] or {}).get("fit"), "recipe.fit")


def _classes(config: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the row with the names of the classes; none without names, or if they only repeat the indices."""
    names = config["label_names"]
    return (
        [] if names in (None, [str(index) for index in range(config["num_classes"])]) else [("classes", listed(names))]
    )


def _shape(config: dict[str, Any]) -> str:
    """Return the model's shape in one line."""
    model = config["model"]
    channels = f"{model['in_chans']} channel{'s' if model['in_chans'] > 1 else ''}"
    token = "class token in the middle" if model["class_token"] == "middle" else "class token at the head"
    if "class_tokens" in model:
        token = f"{model['class_tokens']} class tokens spread" if model["class_tokens"] else "no class token"
    classes = f"{config['num_classes']} classes" if config["num_classes"] else "a backbone without a head"
    return (
        f"ViM, {model['depth']} blocks, D={model['d_model']}, N={model['d_state']}, {classes},"
        f" {in_pixels(model['image_size'])} pixels, {channels}, patch {model['patch']}, stride"
        f" {model['stride']}, {token}, {config['dtype']}"
    )
