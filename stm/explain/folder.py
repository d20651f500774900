"""Measure all that `stm explain` shows of a model and its images, and write the folder that holds it.

The folder has each figure as PNG and SVG, and the figure's data as CSV or JSON.
"""

import csv
import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from stm.explain import cost_figures, figures
from stm.explain import measurements as explain
from stm.explain.costs import CostMap, rows_of
from stm.explain.figures import Maps
from stm.explain.measurements import Faded, Influence, Loss
from stm.explain.states import attention, state_norms
from stm.findings import Fit
from stm.merging.groups import Groups, patches, pruned, stages
from stm.merging.schedule import Fixed
from stm.model.vim import ViM
from stm.plots import style as plots
from stm.progress import OnProgress, Progress

MOST_IMAGES = 16  # each image has figures of its own
PLACES_OF_LOSSES = 12  # per side: losses run every block and rule, and are a mean over places that few suffice for
SHARED = ("fading", "losses", "ldsd", "costs", "schedule")
OF_IMAGE = ("maps", "groups")
SUMMARY = "explain.json"

Row = TypeVar("Row", Faded, Loss, Influence)


@dataclass(frozen=True)
class OfImage:
    """The results of one image: the picture, the maps of the dense and the compressed model, and the groups by
    block."""

    file: str
    picture: Image.Image
    maps: tuple[Maps, Maps]
    groups: tuple[Groups, ...]


@dataclass(frozen=True)
class Explanation:
    """The measurements of `stm.explain.measurements`, each a mean over the images.

    `plan` is the class token's change by the whole plan, [block][direction].
    """

    block: int
    images: tuple[OfImage, ...]
    fading: tuple[Faded, ...]
    fits: dict[str, Fit | None]
    losses: tuple[Loss, ...]
    influence: tuple[Influence, ...]
    plan: tuple[tuple[float, ...], ...]


def file_names() -> tuple[str, ...]:
    """Return every file that an explanation of any images may consist of: those that a new run may replace."""
    drawn = [*SHARED, *(_name(number, kind) for number in range(MOST_IMAGES) for kind in OF_IMAGE)]
    data = [
        *(f"{name}.csv" for name in (*SHARED, "plan")),
        *(name for n in range(MOST_IMAGES) for name in _data_names(n)),
        SUMMARY,
    ]
    return (*(f"{name}.{kind}" for name in drawn for kind in ("png", "svg")), *data)


def _name(number: int, what: str) -> str:
    return f"image-{number + 1}-{what}"


def _data_names(number: int) -> tuple[str, str, str]:
    return _name(number, "maps.csv"), _name(number, "attention.csv"), _name(number, "groups.json")


@torch.inference_mode()
def measure(
    small: ViM,
    inputs: Tensor,
    pictures: Sequence[tuple[str, Image.Image]],
    *,
    block: int,
    places: int | None,
    on_progress: OnProgress | None = None,
) -> Explanation:
    """Measure everything.

    Args:
        small: a compressed model. It holds the dense model's weights; single tokens are merged in the dense model.
        inputs: (n, C, H, W), normalised.
        pictures: name and picture of each image.
        block: the block whose maps are shown, and before which single tokens are merged.
        places: the most distances per side; None: all.
    """
    dense = small.with_plan(None)
    report = on_progress or (lambda progress: None)
    fewer = PLACES_OF_LOSSES if places is None else min(places, PLACES_OF_LOSSES)
    per_image: list[tuple[list[Faded], list[Loss], list[Influence], Tensor]] = []
    shown = []
    for number, (file, picture) in enumerate(pictures):
        report(Progress("explain", number, len(pictures), "images"))
        image = inputs[number : number + 1].to(dense.cls_token.device)
        was, now = (list(explain.walk(model, model.embed(image))) for model in (dense, small))
        groups = explain.groups_by_block(now)
        maps = (
            _maps("dense", was[block], explain.groups_by_block(was)[block]),
            _maps("merged", now[block], groups[block]),
        )
        shown.append(OfImage(file, picture, maps, groups))
        fading = explain.fading(dense, image, block, most=places)
        losses = explain.losses(dense, image, most=fewer)
        per_image.append((fading, losses, explain.influence(dense, image, most=places), explain.plan_change(was, now)))
    report(Progress("explain", len(pictures), len(pictures), "images"))
    all_fading, all_losses, all_influence, changes = zip(*per_image, strict=True)
    rows = mean_rows(all_fading)
    sides = {side: [row for row in rows if row.side == side] for side in explain.REACHING_SIDES}
    return Explanation(
        block=block,
        images=tuple(shown),
        fading=rows,
        fits={
            side: explain.fit_exponential([row.distance for row in side_rows], [row.cls[0] for row in side_rows])
            for side, side_rows in sides.items()
        },
        losses=mean_rows(all_losses),
        influence=mean_rows(all_influence),
        plan=tuple(map(tuple, torch.stack(list(changes)).mean(0).tolist())),
    )


def mean_rows(of_images: Sequence[Sequence[Row]]) -> tuple[Row, ...]:
    """Return the mean over the images, row by row. Fields that are not floats must be the same in all images."""
    return tuple(_mean_row(rows) for rows in zip(*of_images, strict=True))


def _mean_row(rows: Sequence[Row]) -> Row:
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(rows[0]):
        values = [getattr(row, field.name) for row in rows]
        if isinstance(values[0], float):
            changed[field.name] = sum(values) / len(values)
        elif isinstance(values[0], tuple):
            changed[field.name] = tuple(sum(column) / len(column) for column in zip(*values, strict=True))
    return dataclasses.replace(rows[0], **changed)


def _maps(name: str, trace: explain.BlockTrace, groups: Groups) -> Maps:
    forward, backward = attention(trace.scan)  # (L, L) each
    # The forward walk fills the lower triangle and the backward walk the upper one, so one picture holds both. The
    # diagonal, a token's attention to itself, is in both: the forward walk's is shown.
    both = forward + backward.triu(1)
    return Maps(
        name, state_norms(trace.scan)[:, 0].tolist(), both.tolist(), explain.measured(trace.entered.cls), groups
    )


def write(folder: Path, explanation: Explanation, small: ViM, costs: CostMap, title: str) -> tuple[str, ...]:
    """Draw the figures, write them and their data into a folder, and return the names of the files.

    Args:
        costs: of the dense model, with the merges of the first image.
        title: the compressed model's name in the figures.
    """
    first, grid = explanation.images[0], small.config.model.grid
    tokens, cls, n = small.config.model.tokens, small.config.model.cls, len(explanation.images)
    drawn = {
        "fading": figures.fading(explanation.fading, explanation.fits, explanation.block, n),
        "losses": figures.losses(explanation.losses, explanation.plan, title, n),
        "ldsd": figures.influence(explanation.influence, n),
        "costs": cost_figures.costs(costs, title),
        "schedule": cost_figures.schedule(first.picture, costs, first.groups, title, grid, first.file),
    }
    for number, image in enumerate(explanation.images):
        drawn[_name(number, "maps")] = figures.maps(image.picture, image.maps, explanation.block, tokens, cls, grid)
        drawn[_name(number, "groups")] = figures.groups(image.picture, stages(image.groups), tokens, cls, grid, title)
    files = [name for stem, figure in drawn.items() for name in plots.save(figure, folder, stem)]
    return (*files, *_write_data(folder, explanation, costs, tokens, cls))


def _write_data(folder: Path, explanation: Explanation, costs: CostMap, tokens: int, cls: Fixed) -> list[str]:
    tables: dict[str, tuple[Sequence[str], Iterable[Sequence[Any]]]] = {
        "fading.csv": (
            ("side", "distance", "merged", "predicted", "logits", *(f"class_block_{b}" for b in _blocks(explanation))),
            ((r.side, r.distance, r.merged, r.predicted, r.logits, *r.cls) for r in explanation.fading),
        ),
        "losses.csv": (
            ("after_block", "rule", "merged", "class"),
            ((r.after, r.rule, r.merged, r.cls) for r in explanation.losses),
        ),
        "ldsd.csv": (
            ("side", "distance", *(f"block_{b}" for b in range(len(explanation.plan)))),
            ((r.side, r.distance, *r.blocks) for r in explanation.influence),
        ),
        "plan.csv": (("block", "forward", "backward"), ((b, *changes) for b, changes in enumerate(explanation.plan))),
        "costs.csv": (("before_block", "position", "patch", "cost_per_token_layer"), rows_of(costs)),
        "schedule.csv": (
            ("before_block", "positions"),
            ((made.before, " ".join(map(str, made.group))) for made in costs.merges),
        ),
    }
    for number, image in enumerate(explanation.images):
        map_file, attention_file, groups_file = _data_names(number)
        tables[map_file] = (
            ("model", "token", "positions", "state_forward", "state_backward", "class_attention"),
            _map_rows(image.maps),
        )
        tables[attention_file] = (
            ("model", "token", *(str(j) for j in range(tokens))),
            ((maps.name, t, *row) for maps in image.maps for t, row in enumerate(maps.attention)),
        )
        (folder / groups_file).write_text(json.dumps(_groups_document(image, tokens, cls)) + "\n", encoding="utf-8")
    for name, (header, rows) in tables.items():
        with open(folder / name, "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(header)
            # Six digits, more than any figure shows: the last digits of a float differ between machines.
            table.writerows([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    return [*tables, *(_data_names(number)[2] for number in range(len(explanation.images)))]


def _blocks(explanation: Explanation) -> range:
    return range(explanation.block, len(explanation.plan))


def _map_rows(of_models: Iterable[Maps]) -> Iterable[Sequence[Any]]:
    for maps in of_models:
        for token, group in enumerate(maps.groups):
            states = (maps.state[direction][token] for direction in range(2))
            yield maps.name, token, " ".join(map(str, group)), *states, maps.attention[maps.cls][token]


def _groups_document(image: OfImage, tokens: int, cls: Fixed) -> dict[str, Any]:
    """Return the JSON document of an image's groups. Patches are numbered row by row from 0, without the class
    token."""
    return {
        "image": image.file,
        "stages": [
            {
                "blocks": [stage.first, stage.last],
                "tokens": len(stage.groups),
                "patches": patches(stage.groups, cls),
                "pruned": pruned(stage.groups, tokens, cls),
            }
            for stage in stages(image.groups)
        ],
    }
