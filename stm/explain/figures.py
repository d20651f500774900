"""The figures of `stm explain`, each drawn from the quantities that it shows.

Every function takes plain values and returns a figure; `stm.explain.folder` writes the same values as CSV beside it, so
that each figure can be drawn again elsewhere.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from PIL import Image

from stm.explain.measurements import REACHING_SIDES, RULES, Faded, Influence, Loss, measured, some
from stm.findings import Fit
from stm.merging.groups import Groups, Stage, edges, patch_number, patches, pruned, scattered
from stm.merging.schedule import Fixed, fixed
from stm.plots import style as plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_STAGES = 8  # panels of the figure of groups
DECADES = 5  # of attention that the colours cover; smaller values share the darkest colour
NAMES = {"prune": "removed", "mean": "merged, mean", "hsp": "merged, hidden-state protection"}


@dataclass(frozen=True)
class Maps:
    """What the scan of one block did on one image, by token.

    Args:
        name: of the model: "dense", or the method that compressed it.
        state: [direction][token], the Frobenius norm of the state after each token.
        attention: [token t][token j]: the forward walk's at and below the diagonal, the backward walk's above it.
        cls: the position of the class token that is measured.
        groups: the positions that each token holds.
    """

    name: str
    state: list[list[float]]
    attention: list[list[float]]
    cls: int
    groups: Groups

    def by_patch(self, values: Sequence[float], tokens: int, cls: Fixed) -> list[float]:
        """Return one value per patch from one per token: that of the token that holds the patch; NaN if pruned."""
        out = [math.nan] * tokens  # matplotlib leaves NaN blank
        for value, group in zip(values, self.groups, strict=True):
            for position in group:
                out[position] = value
        return [value for position, value in enumerate(out) if position not in fixed(cls)]


def maps(
    image: Image.Image, rows: Sequence[Maps], block: int, tokens: int, cls: Fixed, grid: tuple[int, int]
) -> "Figure":
    """Draw the photograph, the state's norm along both walks, the class token's attention and all attention.

    Each model has a row. The models share the colours of a column, so that rows can be compared. A dashed line across
    the map of the class token's attention is the class token's place in the sequence.

    Args:
        grid: the rows and columns of patches.
    """
    figure, axes = plots.new(1.42 * len(rows) + 0.62, len(rows), 5)
    down, across = grid
    titles = ("image", "|h|, forward", "|h|, backward", "class attention", "attention a(t, j)")
    columns: list[list[list[list[float]]]] = [[], [], [], []]
    for row in rows:
        columns[0].append(_rows(row.by_patch(row.state[0], tokens, cls), across))
        columns[1].append(_rows(row.by_patch(row.state[1], tokens, cls), across))
        columns[2].append(_rows(row.by_patch(_log10(row.attention[row.cls]), tokens, cls), across))
        columns[3].append([_log10(line) for line in row.attention])
    for number, (row, line) in enumerate(zip(rows, axes, strict=True)):
        for axis, title in zip(line, titles, strict=True):
            bare(axis)
            axis.set_title(title if number == 0 else "")
        line[0].set_ylabel(f"{row.name}\n{len(row.groups)} tokens in block {block}")
        outlined(line[0], image, row.groups, tokens, cls, grid)
    for column, pictures in enumerate(columns, start=1):
        values = [value for picture in pictures for line in picture for value in line if math.isfinite(value)]
        high = max(values)
        low = max(min(values), high - DECADES) if column > 2 else min(values)
        for picture, axis in zip(pictures, axes[:, column], strict=True):
            shown = axis.imshow(picture, cmap=plots.MAP, vmin=low, vmax=high)
        bar = figure.colorbar(shown, ax=list(axes[:, column]), location="bottom", aspect=18, pad=0.03)
        bar.set_label("Frobenius norm" if column < 3 else "log10", fontsize=7)
        bar.ax.tick_params(labelsize=6, length=2)
    # An invisible colour bar under the photographs keeps all pictures of a row the same size.
    invisible = figure.colorbar(shown, ax=list(axes[:, 0]), location="bottom", aspect=18, pad=0.03)
    invisible.ax.set_visible(False)
    before = patch_number(measured(cls), cls)
    for axis in axes[:, 3]:
        # The outline of the patches before the class token, without its parts on the picture's own border.
        for (x0, y0), (x1, y1) in edges(range(before), across) if before else []:
            if not (x0 == x1 in (0, across) or y0 == y1 in (0, down)):
                axis.plot((x0 - 0.5, x1 - 0.5), (y0 - 0.5, y1 - 0.5), color="white", linewidth=0.8, linestyle="--")
    return figure


def fading(rows: Sequence[Faded], fits: dict[str, Fit | None], before: int, images: int) -> "Figure":
    """Draw the change over the distance with its exponential, and the class token's change in every later block."""
    figure, axes = plots.new(4.7, 2, 2, sharey="row", height_ratios=(1.1, 1))
    sides = [(side, [row for row in rows if row.side == side]) for side in REACHING_SIDES]
    # Both heat maps share the colours of all values, so that the sides can be compared.
    logs = [math.log10(value) for row in rows for value in row.cls if value > 0]
    for (side, side_rows), axis, heat in zip(sides, axes[0], axes[1], strict=True):
        if not side_rows:  # a class token at the head has nothing before it
            axis.set_axis_off()
            heat.set_axis_off()
            continue
        distances = [row.distance for row in side_rows]
        curves = (
            ("state at the merge", [row.merged for row in side_rows]),
            (f"class token's state, block {before}", [row.cls[0] for row in side_rows]),
            ("the same, from the state at the merge by decays alone", [row.predicted for row in side_rows]),
            ("logits", [row.logits for row in side_rows]),
        )
        for number, (name, values) in enumerate(curves):
            axis.semilogy(distances, values, label=name, **plots.line(number, every=max(1, len(side_rows) // 12)))
        if fit := fits.get(side):
            curve = [fit.amplitude * math.exp(-fit.rate * d) for d in distances]
            axis.semilogy(
                distances, curve, color="black", linewidth=1.4, label="exponential fitted to the class token's state"
            )
            text = f"{fit.amplitude:.2g} exp({-fit.rate:.2g} d), R² = {fit.r2:.2f}"
            axis.text(0.02, 0.03, text, transform=axis.transAxes, fontsize=7)
        axis.set_title(f"{side} of the class token, {'forward' if side == 'left' else 'backward'} walk")
        axis.set_xlim(distances[0] - 0.5, distances[-1] + 0.5)
        changes = [[row.cls[n] for row in side_rows] for n in range(len(side_rows[0].cls))]
        shown = _heat(heat, distances, changes, before, min(logs), max(logs))
        heat.set_xlabel("distance d of the merge, in tokens")
    axes[0][0].set_ylabel("relative change")
    axes[1][0].set_ylabel("block")
    axes[1][0].invert_yaxis()
    figure.colorbar(shown, ax=list(axes[1]), label="class token's change, log10", pad=0.01)
    # One legend for both sides: that of the side with more curves, as a side may be empty or have no fit.
    handles, labels = max((axis.get_legend_handles_labels() for axis in axes[0]), key=lambda legend: len(legend[1]))
    figure.legend(handles, labels, loc="outside lower center", ncols=2, handlelength=4)
    figure.suptitle(f"One token merged into its neighbour before block {before}; mean of {_images(images)}", fontsize=8)
    return figure


def losses(rows: Sequence[Loss], plan: Sequence[Sequence[float]], name: str, images: int) -> "Figure":
    """Draw the loss of removal and of merging by block, and the change that the whole plan makes.

    Args:
        plan: [block][direction], the class token's change by the compressed model `name`.
    """
    figure, axes = plots.new(2.7, 1, 3)
    left, middle, right = axes[0]
    for number, rule in enumerate(RULES):
        of_rule = [row for row in rows if row.rule == rule]
        look = plots.line(number, every=2)
        left.plot([row.after for row in of_rule], [row.merged for row in of_rule], label=NAMES[rule], **look)
        middle.plot([row.after for row in of_rule], [row.cls for row in of_rule], label=NAMES[rule], **look)
    left.set_title("one token: state at the merge")
    middle.set_title("one token: class token's state")
    left.set_ylabel("relative change in the next block")
    for axis in (left, middle):
        axis.set_xlabel("after block")
        axis.set_ylim(bottom=0)
    for direction, walk in enumerate(("forward walk", "backward walk")):
        points = [(block, changes[direction]) for block, changes in enumerate(plan)]
        right.plot(*zip(*points, strict=True), label=walk, **plots.line(direction + 3, every=2))
    right.legend(handlelength=4, loc="upper left")
    right.set_title("all merges: class token's state")
    right.set_xlabel("block")
    right.set_ylim(bottom=0)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, handlelength=4)
    figure.suptitle(f"One token alone, and right: {name}; mean of {_images(images)}", fontsize=8)
    return figure


def influence(rows: Sequence[Influence], images: int) -> "Figure":
    """Draw LDSD over distance, direction and block, and its mean over thirds of the depth."""
    figure, axes = plots.new(4.4, 2, 1, sharex=True)
    curves, heat = axes[0][0], axes[1][0]
    signed = [-row.distance if row.side == "left" else row.distance for row in rows]
    depth = len(rows[0].blocks)
    for number in range(3):
        part = range(number * depth // 3, (number + 1) * depth // 3)
        look = plots.line(number, every=max(1, len(rows) // 24))
        for side, sign in zip(REACHING_SIDES, (-1, 1), strict=True):
            side_rows = [row for row in rows if row.side == side]
            means = [sum(row.blocks[block] for block in part) / len(part) for row in side_rows]
            # Both sides of a third have one look: only the first side that has rows names it in the legend.
            label = (
                f"blocks {part[0]} to {part[-1]}"
                if side == "left" or not any(row.side == "left" for row in rows)
                else None
            )
            curves.semilogy([sign * row.distance for row in side_rows], means, label=label, **look)
    curves.legend(handlelength=3)
    curves.set_ylabel("change of the class token's state")
    curves.set_title(f"Each token alone zeroed: how far the class token's state moves; mean of {_images(images)}")
    picture = _heat(heat, signed, [[row.blocks[block] for row in rows] for block in range(depth)], 0)
    heat.invert_yaxis()
    heat.set_ylabel("block")
    heat.set_xlabel("place in the sequence from the class token: before it (forward walk)  |  after it (backward walk)")
    figure.colorbar(picture, ax=heat, label="log10", pad=0.01)
    return figure


def groups(
    image: Image.Image, stages: Sequence[Stage], tokens: int, cls: Fixed, grid: tuple[int, int], name: str
) -> "Figure":
    """Draw the photograph once per stage with the merged groups outlined; pruned patches are dark."""
    shown = some(stages, MOST_STAGES)
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    size = plots.WIDTH / 4
    figure, axes = plots.new((size + 0.2) * rows + 0.2, rows, columns, width=max(3.4, size * columns))
    cells = list(axes.flat)
    for axis, stage in zip(cells, shown, strict=False):
        bare(axis)
        outlined(axis, image, stage.groups, tokens, cls, grid)
        axis.set_title(f"{stage.blocks}: {len(stage.groups)} tokens")
    for axis in cells[len(shown) :]:
        axis.set_axis_off()
    notes = []
    if any(scattered(group, grid[1]) for stage in shown for group in patches(stage.groups, cls)):
        notes.append("patches of one token that lie apart have their mean colour")
    if any(pruned(stage.groups, tokens, cls) for stage in shown):
        notes.append("dark patches were removed")
    figure.suptitle("\n".join([name, "; ".join(notes)]).rstrip(), fontsize=8)
    return figure


def outlined(axis: "Axes", image: Image.Image, held: Groups, tokens: int, cls: Fixed, grid: tuple[int, int]) -> None:
    """Draw the image with the outline of each group's patches."""
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Rectangle

    every, (down, across) = patches(held, cls), grid
    shown = image.convert("RGB")
    if apart := [group for group in every if len(group) > 1 and scattered(group, across)]:
        # An outline cannot join pieces that lie apart: one colour shows that they are one token.
        shown = _averaged(shown, apart, grid)
    axis.imshow(shown, extent=(0, across, down, 0), interpolation="bilinear")
    faint = [edge for group in every if len(group) == 1 for edge in edges(group, across)]
    merged = [edge for group in every if len(group) > 1 for edge in edges(group, across)]
    axis.add_collection(LineCollection(faint, colors="white", linewidths=0.25, alpha=0.6))
    # A black line under the coloured one keeps it visible on bright and dark images.
    axis.add_collection(LineCollection(merged, colors="black", linewidths=1.5, capstyle="projecting"))
    axis.add_collection(LineCollection(merged, colors=plots.AMBER, linewidths=0.8, capstyle="projecting"))
    for patch in pruned(held, tokens, cls):
        axis.add_patch(
            Rectangle((patch % across, patch // across), 1, 1, facecolor="black", edgecolor="none", alpha=0.75)
        )
    axis.set_xlim(-0.05, across + 0.05)
    axis.set_ylim(down + 0.05, -0.05)


def _averaged(image: Image.Image, every: Sequence[Sequence[int]], grid: tuple[int, int]) -> Image.Image:
    """Return the image with the patches of each group in their mean colour."""
    down, across = grid
    small = image.resize((across, down), Image.Resampling.BOX)  # one pixel per patch: its mean
    out = image.copy()
    step = image.width / across
    for group in every:
        pixels = [small.getpixel((patch % across, patch // across)) for patch in group]
        mean = tuple(round(sum(channel) / len(pixels)) for channel in zip(*pixels, strict=True))
        for patch in group:
            row, column = divmod(patch, across)
            box = (round(column * step), round(row * step), round((column + 1) * step), round((row + 1) * step))
            out.paste(mean, box)
    return out


def _heat(
    axis: "Axes",
    distances: Sequence[int],
    rows: list[list[float]],
    first: int,
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """Draw log10 of a value by block (upward) and distance (across); return what the colour bar needs."""
    from matplotlib.ticker import MaxNLocator

    axis.grid(False)
    logs = [[math.log10(value) if value > 0 else math.nan for value in row] for row in rows]
    # Cells reach halfway to the next distance: distances are not evenly spaced if only some were measured.
    edges_x = [distances[0] - 0.5, *((a + b) / 2 for a, b in pairwise(distances)), distances[-1] + 0.5]
    edges_y = [first - 0.5 + number for number in range(len(rows) + 1)]
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    # Rasterized: one vector shape per cell would make the SVG huge.
    return axis.pcolormesh(edges_x, edges_y, logs, cmap=plots.MAP, vmin=low, vmax=high, rasterized=True)


def _log10(values: Sequence[float]) -> list[float]:
    return [math.log10(value) if value > 0 else math.nan for value in values]


def _rows(values: Sequence[float], across: int) -> list[list[float]]:
    return [list(values[first : first + across]) for first in range(0, len(values), across)]


def bare(axis: "Axes") -> None:
    """Remove ticks, grid and frame from an axis that holds a picture."""
    axis.grid(False)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _images(count: int) -> str:
    return "one image" if count == 1 else f"{count} images"
