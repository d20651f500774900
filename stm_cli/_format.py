"""Format numbers and blocks of text that several screens share. All functions are pure functions of a report."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from stm.config import Measured, Source
from stm.evaluations import CLASSIFIER, Assessment, Figure, figures
from stm.recipe import Fit
from stm.reports import Environment, Flops, Warned
from stm.units import interval, operations, percent
from stm.verdicts import chosen, fitted_on
from stm_cli._visible import visible

Row = tuple[str, str]
# The names of figures on a screen. Several fields of a report may be one row of a screen, and then share the reason why
# they were not measured.
_NAMES = {
    "top1": "top-1",
    "top1_ci": "top-1",
    "top5": "top-5",
    "top5_ci": "top-5",
    "agreement": "agreement",
    "kl": "KL",
    "dense_top1": "drop",
    "drop": "drop",
    "drop_ci": "drop",
    "mcnemar_p": "drop",
    "feature_change": "features",
    "images_per_second": "speed",
}


def fields(rows: Iterable[Row]) -> Table:
    """Return a table with names on the left and their values on the right."""
    # Cells are `Text`, so that a file called `[bold].png` is no markup. Values fold and are never cut: people paste
    # paths.
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    return table


def tokens(per_block: Sequence[int]) -> str:
    """Return the token counts of all blocks as runs of equal counts: 197 x 13, 99 x 11."""
    runs = [(count, len(list(run))) for count, run in groupby(per_block)]
    return ", ".join(f"{count} x {blocks}" if blocks > 1 else str(count) for count, blocks in runs)


def staircase(per_block: Sequence[int]) -> str:
    """Draw one character per block, as high as its share of the first block's tokens."""
    steps = " ▁▂▃▄▅▆▇█"  # the blank is never used, since every block has some tokens
    return "".join(steps[max(1, round(8 * count / per_block[0]))] for count in per_block)


def shown_name(model: str) -> str:
    """Return the title of a screen: the name that was given, or the folder's own name if `.` or `/` was given."""
    return visible(Path(model).resolve().name) if set(model) <= {".", "/"} else model


def merging_row(recipe: Mapping[str, Any] | None, protection: Mapping[str, Any]) -> Row:
    """Return how tokens are merged, from the two objects of config.json.

    Args:
        recipe: None if the model has changed since it was merged; its protection still holds.
    """
    parts = [f"{protection['weights']} weights"]
    if protection["weights"] == "hsp":
        parts = [f"hsp weights ({protection['mode']}{', normalized' if protection['normalized'] else ''})"]
    parts.append(f"step scale p={protection['step_scale']:g}")
    parts.append("span conv" if protection["span_conv"] else "plain conv")
    if recipe is not None:
        sides = "" if recipe["sides"] == "both" else f", {recipe['sides']} side only"
        step = "" if recipe["tokens_per_side"] is None else f", {recipe['tokens_per_side']} a side and step"
        parts.insert(0, f"{recipe['method']}: {recipe['schedule']}{step}{sides}")
        if recipe["calibration"] is not None:
            parts.append(f"calibrated on {recipe['calibration']['n']} images of {recipe['calibration']['data']}")
    return "method", ", ".join(parts)


def fit_rows(fit: Fit | None) -> list[Row]:
    """Return the rows about a fit: the images that decided the schedule, and the candidates that it beat."""
    if fit is None:
        return []
    rows = [("fitted on", fitted_on(fit))]
    return [*rows, ("chosen", beaten)] if (beaten := chosen(fit)) else rows


def milder(report: Warned) -> list[tuple[str, ...]]:
    """Return the words of the command that loses less, if a report has one, as `Output.next` takes it."""
    return [] if report.milder is None else [tuple(shlex.split(report.milder))]


def flops_rows(flops: Flops, *, exact: bool = False) -> list[Row]:
    """Return both counts of multiply-accumulates and their savings; `exact` gives the counts to the unit."""

    # A saving that rounds to nothing is left out: "0.0% less than dense" would read as a result of merging.
    def row(name: str, count: int, saving: float) -> Row:
        number = f"{count:,} MACs an image ({operations(count)})" if exact else f"{operations(count)} MACs an image"
        return f"FLOPs ({name})", number + (f", {percent(saving)} less than dense" if round(saving, 3) else "")

    return [row("paper", flops.paper, flops.paper_saving), row("honest", flops.honest, flops.honest_saving)]


def measured_rows(measured: Measured) -> list[Row]:
    """Return the figures of an evaluation, and the reasons why others are missing."""
    rows = [
        (
            "images",
            f"{measured.n:,} of {measured.data}" + (f", {measured.failed:,} unreadable" if measured.failed else ""),
        )
    ]
    known = {figure.name: figure for figure in figures(measured)}
    for name, figure in known.items():
        text = figure.text(digits=1)
        if name in ("top1", "top5"):
            rows.append((_NAMES[name], text + _interval(figure)))
        elif name == "drop" and "dense_top1" in known:  # one row has all that compares the two accuracies
            text += f" points from the dense {known['dense_top1'].text(digits=1)}{_interval(figure, 2)}"
            p = f", p={known['mcnemar_p'].value:.2g}" if "mcnemar_p" in known else ""
            rows.append((_NAMES[name], text + p))
        elif name == "agreement":
            rows.append((_NAMES[name], f"{text} of the images keep the dense model's top-1"))
        elif name == "kl":
            rows.append((_NAMES[name], f"{text} nats from the dense model"))
        elif name == "feature_change":
            rows.append((_NAMES[name], f"{text} from the dense model's (root mean square)"))
    # One line per reason, not per figure: without labels the same sentence would stand there several times.
    for reason in dict.fromkeys(measured.reasons.values()):
        keys = dict.fromkeys(name for key, name in _NAMES.items() if measured.reasons.get(key) == reason)
        if reason != CLASSIFIER:  # nobody misses the features of a classifier
            rows.append(("not measured", f"{', '.join(keys)}: {reason}"))
    return rows


def _interval(figure: Figure, digits: int = 1) -> str:
    """Return the interval of a figure as its row shows it, or nothing."""
    return f" (95%: {interval(figure.ci, digits)})" if figure.ci else ""


def image_notes(measured: Assessment) -> list[str]:
    """Return notes about the images that could not be read and the files that were not taken for images.

    The first few are named, and the others are counted.
    """
    more = measured.failed - len(measured.broken)
    return [*measured.broken, *([f"{more:,} more could not be read"] if more else []), *measured.skipped_notes]


def speed_row(images_per_second: float, environment: Environment) -> Row:
    """Return the speed and the machine that it was measured on: a speed alone says nothing."""
    speed = f"{images_per_second:,.0f}" if images_per_second >= 100 else f"{images_per_second:.3g}"
    return "speed", f"{speed} images/s on {environment_text(environment)}"


def source_text(source: Source) -> str:
    """Return the origin of the weights in one line."""
    # A licence is named as the card's header has it. The text of the card may restrict more, so the line says so.
    parts = [
        source.repo,
        source.file,
        source.revision and f"revision {source.revision[:12]}",
        source.sha256 and f"sha256 {source.sha256[:12]}",
        source.license
        and f"license {source.license}" + (" by the model card's header, read its text too" if source.repo else ""),
    ]
    return ", ".join(part for part in parts if part) or "not recorded"


def environment_text(environment: Environment) -> str:
    """Return the environment of a measurement in one line."""
    return environment.in_words
