"""Compute the drawings of the page as numbers: the position of each line, bar and mark.

The template makes SVG of the numbers, and the style sheet gives them colours, so that one drawing serves light and dark
screens. A drawing is 360 units wide, so that its type can be read on a phone. Positions are rounded to hundredths of a
unit, which keeps the page small and its bytes the same on every machine.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stm.evaluations import Evaluation
from stm.explain.costs import CostMap
from stm.merging.groups import Groups, edges, patch_number, patches, runs
from stm.merging.schedule import Fixed, fixed

Interval = tuple[float, float]

WIDTH = 360
CELL = 16  # units of a patch in a photograph's overlay


@dataclass(frozen=True)
class Axis:
    """A linear scale from values to positions: `low` lies at `start`, `high` at `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 2)

    @property
    def ticks(self) -> list[float]:
        """Return three to seven round values between the ends."""
        rough = (self.high - self.low) / 5
        power = 10 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
        # The small tolerances keep a tick at an end, which rounding may put a hair outside.
        first = math.ceil(self.low / step - 1e-9)
        return [round(n * step, 12) for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def axis(values: Sequence[float], start: float, end: float, *, least: float = 0.0) -> Axis:
    """Return an axis with room around the values, at least `least` long."""
    # `least` keeps small differences small on the page. The tiny last bound avoids an axis of length 0.
    low, high = min(values), max(values)
    room = max(0.08 * (high - low), (least - (high - low)) / 2, 1e-9)
    return Axis(low - room, high + room, start, end)


def staircase(tokens_per_block: Sequence[int]) -> dict[str, Any]:
    """Return one bar per block, as high as its number of tokens.

    A bar has a label if the number changes there and the label does not meet the one before.
    """
    left, right, top, bottom = 34, WIDTH - 4, 18, 150
    up = Axis(0, tokens_per_block[0], bottom, top)  # no block has more tokens than the first
    pitch = (right - left) / len(tokens_per_block)
    bars, free = [], 0.0
    for block, tokens in enumerate(tokens_per_block):
        x = left + block * pitch
        new = block == 0 or tokens != tokens_per_block[block - 1]
        label = new and x >= free
        if label:
            free = x + 26  # three digits in the drawing's type
        bars.append(
            {
                "x": round(x, 2),
                "y": up(tokens),
                "width": round(pitch * 0.86, 2),
                "height": round(bottom - up(tokens), 2),
            }
            | {"label": tokens if label else None, "block": block, "tokens": tokens}
        )
    every = max(1, math.ceil(len(bars) / 8))  # the axis has room for about eight block numbers
    return {"bars": bars, "bottom": bottom, "left": left, "right": right, "every": every, "pitch": pitch}


def intervals(evaluation: Evaluation, dense_ci: Interval) -> dict[str, Any]:
    """Return a mark with its interval for the dense top-1, and one for the compressed top-1."""
    assert evaluation.top1 is not None and evaluation.top1_ci is not None and evaluation.dense_top1 is not None
    rows = [("dense", evaluation.dense_top1, dense_ci), ("compressed", evaluation.top1, evaluation.top1_ci)]
    # Two points of accuracy at least: else a difference of one image would look like a gulf.
    across = axis([value for _, _, ci in rows for value in ci], 84, WIDTH - 16, least=0.02)
    marks = [
        {"name": name, "y": 22 + 30 * n, "x": across(value), "low": across(ci[0]), "high": across(ci[1])}
        for n, (name, value, ci) in enumerate(rows)
    ]
    return {"rows": marks, "ticks": [{"x": across(tick), "value": tick} for tick in across.ticks], "bottom": 72}


def outlines(groups: Groups, cls: Fixed, across: int) -> dict[str, str]:
    """Return the outlines of single patches and of merged groups as paths of a drawing with `CELL` units per patch.

    Args:
        across: the patches per row.
    """
    every = patches(groups, cls)
    return {
        "single": _path([edge for group in every if len(group) == 1 for edge in edges(group, across)]),
        "merged": _path([edge for group in every if len(group) > 1 for edge in edges(group, across)]),
    }


def _path(segments: Sequence[tuple[tuple[int, int], tuple[int, int]]]) -> str:
    """Return the path of all segments."""
    # Neighbours share their border: a segment that is drawn twice would look darker. Sorting fixes the bytes.
    return "".join(f"M{x0 * CELL} {y0 * CELL}L{x1 * CELL} {y1 * CELL}" for (x0, y0), (x1, y1) in sorted(set(segments)))


@dataclass(frozen=True)
class Point:
    """One measured model of a sweep or comparison; `low` and `high` are the interval of `value`."""

    curve: str
    cost: float
    value: float
    low: float
    high: float


def pareto(points: Sequence[Point], ours: Point | None = None, dense: Point | None = None) -> dict[str, Any]:
    """Return accuracy over cost: one curve per method, this model, and the dense one as a horizontal line."""
    every = [*points, *(point for point in (ours, dense) if point is not None)]
    bottom, left = 196, 44
    across = axis([point.cost for point in every], left, WIDTH - 12)
    up = axis([value for point in every for value in (point.low, point.high)], bottom, 12, least=0.01)
    # Sorted, so that a line runs from left to right and the same rows give the same bytes in any order.
    curves: dict[str, list[dict[str, float]]] = {}
    for point in sorted(points, key=lambda point: (point.curve, point.cost)):
        position = {"x": across(point.cost), "y": up(point.value), "low": up(point.low), "high": up(point.high)}
        curves.setdefault(point.curve, []).append(position)

    def position_of(point: Point | None) -> dict[str, float] | None:
        return None if point is None else {"x": across(point.cost), "y": up(point.value)}

    return {
        "curves": [{"name": name, "points": positions} for name, positions in curves.items()],
        "ours": position_of(ours),
        "dense": position_of(dense),
        "x": [{"at": across(tick), "value": tick} for tick in across.ticks],
        "y": [{"at": up(tick), "value": tick} for tick in up.ticks],
        "left": left,
        "bottom": bottom,
    }


# viridis at nine points, from dark to bright: its lightness grows evenly, on paper and for any colour vision
_VIRIDIS = ("440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725")


def colour(share: float) -> tuple[int, int, int]:
    """Return the colour of a share, 0 (dark) to 1 (bright), as red, green and blue."""
    position = min(max(share, 0.0), 1.0) * (len(_VIRIDIS) - 1)
    first = min(int(position), len(_VIRIDIS) - 2)
    one, other = (bytes.fromhex(_VIRIDIS[number]) for number in (first, first + 1))
    red, green, blue = (round(a + (position - first) * (b - a)) for a, b in zip(one, other, strict=True))
    return red, green, blue


def costs(cost_map: CostMap) -> dict[str, Any]:
    """Return the map of costs: its colours row by row, a bar per merge, and the ticks of the axes."""
    left, right, top = 34, WIDTH - 4, 18
    blocks, row = len(cost_map.cost), max(3.0, min(8.0, 184 / len(cost_map.cost)))
    bottom = top + blocks * row
    across = Axis(-0.5, cost_map.tokens - 0.5, left, right)
    values = [value for line in cost_map.logarithms for value in line if math.isfinite(value)]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    span = (high - low) or 1.0
    every = max(1, math.ceil(blocks / 6))
    return {
        "pixels": [
            [colour((value - low) / span) if math.isfinite(value) else (128, 128, 128) for value in line]
            for line in cost_map.logarithms
        ],
        "bars": [
            {"x": across(run[0] - 0.4), "to": across(run[-1] + 0.4), "y": round(top + (made.before - 0.5) * row, 2)}
            for made in cost_map.merges
            for run in runs(made.group)
        ],
        "cls": [across(c) for c in fixed(cost_map.cls)],
        "left": left,
        "right": right,
        "top": top,
        "bottom": round(bottom, 2),
        "low": low,
        "high": high,
        "y": [{"at": round(top + (block - 0.5) * row, 2), "value": block} for block in range(1, blocks + 1, every)],
        "x": [{"at": across(tick), "value": round(tick)} for tick in Axis(0, cost_map.tokens - 1, left, right).ticks],
    }


def first_merges(cost_map: CostMap, groups: Groups, across: int) -> dict[str, Any]:
    """Return the patches by the block before which they first merged, and the outlines of the tokens that are left."""
    last = max(2, len(cost_map.cost))
    by_block: dict[int, list[int]] = {}
    for position, block in cost_map.first_merge.items():
        by_block.setdefault(block, []).append(patch_number(position, cost_map.cls))
    fills = []
    for block, held in sorted(by_block.items()):
        red, green, blue = colour((block - 1) / (last - 1))
        squares = "".join(
            f"M{patch % across * CELL} {patch // across * CELL}h{CELL}v{CELL}h-{CELL}z" for patch in sorted(held)
        )
        fills.append({"block": block, "fill": f"#{red:02x}{green:02x}{blue:02x}", "path": squares})
    return outlines(groups, cost_map.cls, across) | {"fills": fills, "left": len(patches(groups, cost_map.cls))}
