"""Draw the figure of `stm compare`: per method one line with its accuracy, the interval, and the measured speed.

All methods are at one saving. The dense model and each dense sibling are lines from top to bottom: a compressed model
left of a smaller dense model is worse than that model.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stm.findings import CompareRow
from stm.plots import style as plots
from stm.recipe import PRESET_NAMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUALITIES = {"top1": "top-1 (%), 95% intervals", "agreement": "images that keep the dense model's top-1 (%)"}


def compared(rows: Sequence[CompareRow], title: str) -> "Figure":
    """Draw the table's rows; a method that acts after two choices of blocks has one line with two marks."""
    # Without labels there is no accuracy; agreement with the dense model then takes its place in the whole figure.
    quality = "top1" if rows[0].top1 is not None else "agreement"
    dense = [row for row in rows if row.method == "dense" or row.sibling]
    shown = [row for row in rows if row not in dense]
    names = list(dict.fromkeys(row.title for row in shown))
    figure, axes = plots.new(1.3 + 0.2 * len(names), 1, 2, sharey=True, width_ratios=(3, 2))
    left, right = axes[0]
    for row in shown:
        y, look = names.index(row.title), _look(row)
        value = 100 * getattr(row, quality)
        if row.top1_ci is not None:
            left.hlines(
                y + look["shift"],
                100 * row.top1_ci[0],
                100 * row.top1_ci[1],
                color=look["mark"]["color"],
                linewidth=0.8,
            )
        left.plot(value, y + look["shift"], **look["mark"])
        if row.images_per_second and rows[0].images_per_second:
            right.plot(row.images_per_second / rows[0].images_per_second, y + look["shift"], **look["mark"])
    for row in dense:
        line = {"color": plots.GREY, "linewidth": 0.9, "linestyle": "--" if row.sibling else "-", "zorder": 1}
        left.axvline(100 * getattr(row, quality), label=row.title, **line)
        if row.images_per_second and rows[0].images_per_second:
            right.axvline(row.images_per_second / rows[0].images_per_second, **line)
    left.set_yticks(range(len(names)), names)
    left.set_ylim(len(names) - 0.5, -0.5)  # upside down: the figure has the table's order
    left.set_xlabel(QUALITIES[quality])
    right.set_xlabel("measured speed, dense = 1")
    figure.legend(*_legend(left, shown), loc="outside lower center", ncols=5, handlelength=2)
    figure.suptitle(title, fontsize=8)
    return figure


def _look(row: CompareRow) -> dict[str, Any]:
    """Return how a row's mark looks, and how far it is shifted off its line so that two marks do not overlap."""
    ours, moved = row.method in PRESET_NAMES, row.schedule == "stm"
    colour = plots.BLUE if ours else plots.ORANGE
    mark = {
        "color": colour,
        "linestyle": "none",
        "markeredgecolor": colour,
        "markerfacecolor": "white" if moved else colour,
    }
    return {
        "shift": 0.18 if moved else 0.0,
        "mark": mark | {"marker": "o" if ours else "D" if moved else "s", "markersize": 4.5, "zorder": 3},
    }


def _legend(axis: Any, shown: Sequence[CompareRow]) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    handles, labels = axis.get_legend_handles_labels()
    # Marks have one look per kind, not per row: draw one of each kind that is shown.
    kinds = {
        "ours": lambda row: row.method in PRESET_NAMES,
        "peers, as published": lambda row: row.schedule == "published",
    }
    kinds["peers, at our places"] = lambda row: row.schedule == "stm"
    for label, belongs in kinds.items():
        if (row := next(filter(belongs, shown), None)) is not None:
            handles.append(Line2D([], [], **_look(row)["mark"]))
            labels.append(label)
    return handles, labels
