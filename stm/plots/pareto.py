"""Draw accuracy over cost: the figure of `stm sweep`.

Up and to the left is better. A smaller dense sibling is a horizontal line: a compressed model below the line is worse
than that sibling.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from stm.plots import style as plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from stm.findings import SweepRow


class Point(NamedTuple):
    """A measured model.

    Args:
        flops: multiply-accumulates of one image, honestly counted.
        seconds: of one image, or None if it was not timed.
        quality: top-1 as a fraction, or the agreement with the dense model.
        interval: of the quality.
    """

    flops: int
    seconds: float | None
    quality: float
    interval: tuple[float, float] | None = None


class Curve(NamedTuple):
    """Points that belong together. `look`: "dense", "sibling", "ours" or "peer"."""

    label: str
    points: Sequence[Point]
    look: str = "peer"


QUALITIES = {"top1": "top-1 (%)", "agreement": "images that keep the dense model's top-1 (%)"}


def swept(rows: "Sequence[SweepRow]", title: str) -> "Figure":
    """Draw the curves of a sweep: one per setting of all axes but the rate, and one per peer."""
    quality = "top1" if rows[0].top1 is not None else "agreement"
    groups: dict[tuple[Any, ...], list[SweepRow]] = {}
    for row in rows:
        groups.setdefault((row.method, *(getattr(row, axis) for axis in AXES)), []).append(row)
    # A curve's label names only the axes on which the sweep's own curves differ.
    varied = [axis for axis in AXES if len({getattr(row, axis) for row in rows if row.schedule is not None}) > 1]
    curves = []
    for members in groups.values():
        first = members[0]
        points = [_point(row, quality) for row in members]
        if first.schedule is None:
            look = "dense" if first.method == "dense" else "sibling" if first.sibling else "peer"
            curves.append(Curve(first.method, points, look))
        else:
            words = (NAMES[axis](getattr(first, axis)) for axis in varied if getattr(first, axis) is not None)
            curves.append(Curve(" ".join([first.method, *words]), points, "ours"))
    return pareto(curves, quality, title)


AXES = ("sides", "schedule", "weights", "step_scale", "conv", "tokens_per_side")
NAMES: dict[str, Callable[[Any], str]] = {
    "sides": lambda value: {"both": "both sides"}.get(value, f"{value} side"),
    "schedule": str,
    "weights": str,
    "step_scale": lambda value: f"p = {value:g}",
    "conv": lambda value: f"{value} conv",
    "tokens_per_side": lambda value: f"r = {value}",
}


def _point(row: "SweepRow", quality: str) -> Point:
    seconds = 1 / row.images_per_second if row.images_per_second else None
    return Point(row.flops.honest, seconds, getattr(row, quality), row.top1_ci if quality == "top1" else None)


def pareto(curves: Sequence[Curve], quality: str, title: str) -> "Figure":
    """Draw quality over operations and, if any point was timed, over the measured time per image.

    Args:
        quality: a key of `QUALITIES` that names the points' quality.
    """
    timed = any(point.seconds is not None for curve in curves for point in curve.points)
    figure, axes = plots.new(3.4, 1, 2 if timed else 1, sharey=True)
    scale, unit = _unit(max(point.flops for curve in curves for point in curve.points))
    for axis, over in zip(axes[0], ("flops", "seconds"), strict=False):
        number = 0
        for curve in curves:
            # Both panels join the points in the order of their operations, so a curve is the same path in both.
            points = sorted((p for p in curve.points if getattr(p, over) is not None), key=lambda p: p.flops)
            x = [point.flops / scale if over == "flops" else 1000 * (point.seconds or 0) for point in points]
            if points:
                _draw(axis, curve, x, points, number, faint=over == "seconds")
            number += curve.look not in ("dense", "sibling")  # grey curves use up no colour
        axis.set_xlabel(f"{unit} multiply-accumulates an image" if over == "flops" else "ms an image, as measured")
    axes[0][0].set_ylabel(QUALITIES[quality])
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=5, handlelength=3)
    figure.suptitle(title, fontsize=8)
    return figure


def _draw(axis: Any, curve: Curve, x: Sequence[float], points: Sequence[Point], number: int, faint: bool) -> None:
    """Draw one curve. `faint` thins its line: measured times need not rise with the operations, so the line may turn
    back."""
    y = [100 * point.quality for point in points]
    if curve.look in ("dense", "sibling"):
        dash = "-" if curve.look == "dense" else "--"
        axis.axhline(y[0], color=plots.GREY, linewidth=0.8, linestyle=dash)
        axis.plot(
            x,
            y,
            color=plots.GREY,
            linestyle=dash,
            marker="*" if curve.look == "dense" else "X",
            markersize=6,
            label=curve.label,
        )
        return
    look = plots.line(number) | {"zorder": 3 if curve.look == "ours" else 2}
    if curve.look == "ours":
        look |= {"markerfacecolor": look["color"], "markersize": 5.5, "linewidth": 1.8}
    if faint:
        axis.plot(x, y, **look | {"marker": "", "linewidth": 0.6, "alpha": 0.5})
        look["linestyle"] = "none"
    axis.plot(x, y, label=curve.label, **look)
    if len(points) == 1 and (interval := points[0].interval) is not None:
        axis.vlines(x, 100 * interval[0], 100 * interval[1], color=look["color"], linewidth=0.5, alpha=0.5, zorder=1)


def _unit(flops: int) -> tuple[float, str]:
    return next((scale, name) for scale, name in ((1e9, "G"), (1e6, "M"), (1.0, "")) if flops >= scale)
