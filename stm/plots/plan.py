"""Draw the figure of `stm plan`: what is lost and what is gained over the saving.

Marks have their 95% intervals. A vertical line is the saving that is recommended.
"""

from typing import TYPE_CHECKING, NamedTuple

from stm.findings import PlanReport, PlanRow
from stm.plots import style as plots
from stm.units import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class _Panel(NamedTuple):
    """One figure of the rows over the saving; its unit is `scale` times the row's."""

    name: str
    label: str
    scale: float = 1
    level: float | None = None  # of the dense model


_PANELS = (
    _Panel("kl", "KL to the dense model (nats)"),
    _Panel("drop", "top-1 lost (points)", 100, 0),
    _Panel("gain", "measured speed, dense = 1", 1, 1),
)


def planned(report: PlanReport) -> "Figure":
    """Draw a panel for each figure that was measured: KL, the drop if there are labels, and the gain."""
    rows = [row for row in report.rows if row.reason is None and row.asked_saving]
    shown = [panel for panel in _PANELS if all(getattr(row, panel.name) is not None for row in rows)]
    figure, axes = plots.new(2.6, 1, len(shown))
    for number, (axis, panel) in enumerate(zip(axes[0], shown, strict=True)):
        _draw(axis, panel, rows, number)
        if report.recommended is not None:
            axis.axvline(100 * report.recommended.saving, color=plots.GREY, linewidth=0.8, linestyle=":", zorder=1)
        axis.set_xlabel("token-layers saved (%)")
        axis.set_ylabel(panel.label)
    on = "" if report.data is None else f" on {report.n:,} images of {report.data}, 95% intervals"
    advice = "" if report.recommended is None else f"; recommended: {percent(report.recommended.saving, 0)}"
    figure.suptitle(f"{report.model}{on}{advice}", fontsize=8)
    return figure


def _draw(axis: "Axes", panel: _Panel, rows: list[PlanRow], number: int) -> None:
    x = [100 * (row.saving or 0) for row in rows]
    y = [panel.scale * getattr(row, panel.name) for row in rows]
    look = plots.line(number)
    axis.plot(x, y, **look)
    intervals = [getattr(row, f"{panel.name}_ci") for row in rows]
    low = [panel.scale * interval[0] for interval in intervals if interval is not None]
    high = [panel.scale * interval[1] for interval in intervals if interval is not None]
    at = [saving for saving, interval in zip(x, intervals, strict=True) if interval is not None]
    floor = min(y) / 3 if panel.name == "kl" and min(y) > 0 else None
    if floor is not None:
        # KL spans orders of magnitude. An interval that reaches 0 reaches the lower edge.
        axis.set_yscale("log")
        low = [max(value, floor) for value in low]
    axis.vlines(at, low, high, color=look["color"], linewidth=0.8, zorder=1)
    if floor is not None:
        axis.set_ylim(bottom=floor)  # last: it ends the automatic choice of the upper edge too
    if panel.level is not None:
        axis.axhline(panel.level, color=plots.GREY, linewidth=0.6, zorder=1)
