"""Gather what the page shows: from the folder, from an evaluation's records, and from reports of other commands.

A value that was not measured is absent, and `missing` tells which command would give it.
"""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from stm.codec import decode
from stm.config import Config, Size, sides
from stm.config_file import class_names
from stm.data.formats import check_file, open_image
from stm.data.images import enlarged
from stm.data.open import PHOTOGRAPHS
from stm.data.sets import SampleSet
from stm.errors import DataError
from stm.evaluations import Evaluation
from stm.explain.costs import CostMap
from stm.measure.records import Record
from stm.measure.stats import wilson
from stm.merging.groups import Groups, stages
from stm.page.charts import Interval, Point
from stm.recipe import PRESET_NAMES
from stm.reports import Environment

MOST_CHANGED = 10
MOST_STAGES = 4  # pictures of the merged patches
PHOTOGRAPH, PHOTOGRAPH_SIDE = "chelsea.jpg", 448
PHOTOGRAPH_BY = "Chelsea the cat by Stefan van der Walt, CC0 1.0"
THUMBNAIL = 160  # pixels per side


@dataclass(frozen=True, kw_only=True)
class Changed:
    """One of the most changed images.

    Args:
        picture: a thumbnail as a data URI; None if the image could not be read again.
        label: the true class, or None if it is not known.
        dense, now: the class that the dense and the compressed model give.
        kl: KL(dense || compressed) in nats.
    """

    file: str
    picture: str | None
    label: str | None
    dense: str
    now: str
    kl: float


class Rows(NamedTuple):
    """The rows of another command's report; `about` says in words what it measured, and on which machine."""

    rows: tuple[dict[str, Any], ...]
    about: str


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The contents of a page beside those of the folder.

    Args:
        name: the folder's base name.
        evaluation: of the compressed model, with the dense one as its reference.
        dense_ci: the interval of the dense model's top-1; None without labels.
        environment: in which the evaluation ran.
        changed: the most changed images.
        bench, sweep: from the reports of these commands, or None.
        missing: for each of those two that is None, the command that would give it.
        notes: the assumptions under which the source was read.
        costs: of merging in the dense model, with the merges of this one; None if they were not computed.
        warnings, milder: as in `stm.reports.Warned`.
    """

    name: str
    evaluation: Evaluation
    dense_ci: Interval | None
    environment: Environment
    changed: tuple[Changed, ...]
    bench: Rows | None = None
    sweep: Rows | None = None
    missing: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    costs: CostMap | None = None
    warnings: tuple[str, ...] = ()
    milder: str | None = None


def changed(records: Sequence[Record], samples: SampleSet, config: Config) -> tuple[Changed, ...]:
    """Return the images whose class probabilities moved most, by KL(dense || compressed)."""
    scored = [(index, record) for index, record in enumerate(records) if record.kl is not None]
    most_changed = []
    for index, record in sorted(scored, key=lambda pair: -(pair[1].kl or 0))[:MOST_CHANGED]:
        assert record.kl is not None and record.dense_pred is not None and record.pred is not None
        try:
            # The part of the image that the model saw, so that the picture explains the answer.
            picture = as_data(enlarged(samples.samples[index], config.preprocessing, THUMBNAIL), THUMBNAIL)
        except (DataError, OSError):  # it was readable when it was scored; a page without one picture is still a page
            picture = None
        most_changed.append(
            Changed(
                file=record.file,
                picture=picture,
                label=None if record.label is None else _class(record.label, config),
                dense=_class(record.dense_pred, config),
                now=_class(record.pred, config),
                kl=record.kl,
            )
        )
    return tuple(most_changed)


def dense_interval(records: Sequence[Record]) -> Interval:
    """Return the interval of the dense model's top-1.

    Args:
        records: each has a label and a dense prediction, or an error.
    """
    # Counted from the records, because an evaluation keeps the interval of the compressed model alone.
    scored = [record for record in records if record.error is None]
    return wilson(sum(record.dense_pred == record.label for record in scored), len(scored))


def per_block(config: Config) -> list[Groups]:
    """Return the groups that enter each block."""
    schedule = config.schedule
    return [schedule.groups[sum(step.after < block for step in schedule.steps)] for block in range(config.model.depth)]


def as_picture(pixels: Sequence[Sequence[tuple[int, int, int]]]) -> str:
    """Return rows of colours as a data URI, one pixel each."""
    image = Image.new("RGB", (len(pixels[0]), len(pixels)))
    image.putdata([pixel for row in pixels for pixel in row])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def merged_patches(config: Config) -> list[tuple[str, Groups]]:
    """Return the stages of the schedule after the dense one, each as a caption and its groups.

    There are at most `MOST_STAGES`.
    """
    # Neighbouring blocks with the same groups are one stage. The first stage is dense: each patch is its own group.
    merged = stages(per_block(config))[1:]
    if len(merged) > MOST_STAGES:  # evenly spread, with the first and the last
        merged = [merged[round(n * (len(merged) - 1) / (MOST_STAGES - 1))] for n in range(MOST_STAGES)]
    return [(f"{stage.blocks}: {len(stage.groups)} tokens", stage.groups) for stage in merged]


def photograph(size: Size) -> str:
    """Return the middle of an embedded photograph, in the proportions of a model's input, as a data URI."""
    height, width = sides(size)
    with open_image(PHOTOGRAPHS / PHOTOGRAPH) as image:
        across = min(image.width, image.height * width // height)
        down = min(image.height, image.width * height // width)
        left, top = (image.width - across) // 2, (image.height - down) // 2
        return as_data(image.crop((left, top, left + across, top + down)), PHOTOGRAPH_SIDE)


def as_data(image: Image.Image, side: int) -> str:
    """Return a picture as a data URI, at most `side` pixels wide."""
    buffer = io.BytesIO()
    if image.width > side:
        image = image.resize((side, max(1, side * image.height // image.width)), Image.Resampling.LANCZOS)
    image.convert("RGB").save(buffer, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def read_rows(path: Path, what: str) -> Rows:
    """Return what the page shows of a report that `stm bench`, `stm sweep` or `stm compare` printed with --json.

    Raises:
        DataError: the file cannot be read or holds something else.
    """
    hint = f"give what stm {what} --json printed"
    # The file comes from outside: it may be any JSON, or none. Each use below may fail, and all failures have one
    # sentence.
    try:
        check_file(path)
        document = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(document["rows"])
        usable = sum(map(_times if what == "bench" else _costs, rows))
        machine = decode(Environment, document["environment"], "environment").in_words
        images = f", {document['n']:,} images of {document['data']}" if "data" in document else ""
        about = f"stm {document['command']} {document['model']}{images}; {machine}"
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", hint) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is not a report of stm {what}", hint) from error
    if not rows or usable < len(rows):
        raise DataError(f"{path}: {usable} of {len(rows)} rows can be shown, expected all of at least one", hint)
    return Rows(rows, about)


def _times(row: dict[str, Any]) -> bool:
    """Return whether a row of a bench report has everything that the page's table of speeds shows."""
    numbers = (row.get(name) for name in ("batch_size", "ms_per_image", "images_per_second"))
    return isinstance(row.get("variant"), str) and all(isinstance(number, int | float) for number in numbers)


def _costs(row: dict[str, Any]) -> bool:
    """Return whether a row of a sweep or comparison has the operations over which the page draws it."""
    return isinstance(row.get("flops", {}).get("paper"), int)


def points(rows: Sequence[dict[str, Any]], figure: str) -> tuple[list[Point], list[Point]]:
    """Return the points of a sweep over operations (in G, the paper's count), and over time (ms per image) if measured.

    Args:
        figure: top1 or agreement.
    """
    by_flops, by_time = [], []
    for row in rows:
        # The dense model is a line of its own (`charts.pareto`), and a row without the figure has no height.
        value, speed = row.get(figure), row.get("images_per_second")
        if row.get("method") == "dense" or not isinstance(value, float | int):
            continue
        low, high = row.get(f"{figure}_ci") or (value, value)
        title, method = row.get("title"), row.get("method")
        # The title of a preset says its schedule already; a peer's title does not say after which blocks it acts.
        schedule = None if title and method in PRESET_NAMES else row.get("schedule")
        curve = ", ".join(str(name) for name in (title or method, schedule) if name)
        by_flops.append(Point(curve, row["flops"]["paper"] / 1e9, value, low, high))
        if speed:
            by_time.append(Point(curve, 1000 / speed, value, low, high))
    return by_flops, by_time


def speed_text(evaluation: Evaluation) -> str | None:
    """Return the speed that the evaluation measured, with three digits, or None."""
    speed = evaluation.images_per_second
    return None if speed is None else f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"


def _class(index: int, config: Config) -> str:
    """Return the name of a class, or its number if the model has no names."""
    return class_names(config)[index]
