"""The two figures of `stm explain` about a schedule: what merging costs and what merges, and the schedule on an image.

They are apart from stm/explain/figures.py because they show a plan and the dense model, while those show states.
"""

from typing import TYPE_CHECKING

from PIL import Image

from stm.explain.costs import CostMap
from stm.explain.figures import bare, outlined
from stm.merging.groups import Groups, patch_number, patches, runs
from stm.merging.schedule import fixed
from stm.plots import style as plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAINT = 0.6  # of a patch's colour over the photograph: both stay visible


def costs(cost_map: CostMap, title: str) -> "Figure":
    """Draw the cost of the cheaper pair by block and position, and a bar over the positions of every merge.

    Args:
        title: how the model was merged.
    """
    from matplotlib.collections import LineCollection

    figure, axes = plots.new(3.6)
    axis = axes[0][0]
    axis.grid(False)
    depth, tokens = len(cost_map.cost) + 1, cost_map.tokens
    edges = ([position - 0.5 for position in range(tokens + 1)], [block - 0.5 for block in range(1, depth + 1)])
    # Rasterized: one vector shape per cell would make the SVG huge.
    shown = axis.pcolormesh(*edges, cost_map.logarithms, cmap=plots.MAP, rasterized=True)
    bars = [
        ((run[0] - 0.4, made.before), (run[-1] + 0.4, made.before))
        for made in cost_map.merges
        for run in runs(made.group)
    ]
    # A dark line under the bright one keeps it visible on every colour of the map.
    axis.add_collection(LineCollection(bars, colors="black", linewidths=2.6, capstyle="butt"))
    axis.add_collection(LineCollection(bars, colors="white", linewidths=1.3, capstyle="butt"))
    places = fixed(cost_map.cls)
    for c in places:
        axis.axvline(c, color=plots.ORANGE, linewidth=1.2 if len(places) == 1 else 0.6)
    axis.annotate("class token" + "s" * (len(places) > 1), (places[len(places) // 2], 1), (0, 3),
                  xycoords=("data", "axes fraction"), textcoords="offset points", ha="center", color=plots.ORANGE,
                  fontsize=7)  # fmt: skip
    axis.set_xlim(-0.5, tokens - 0.5)
    axis.set_ylim(depth - 0.5, 0.5)
    axis.set_xlabel("position in the sequence; a bar covers the positions that become one token")
    axis.set_ylabel("before block")
    figure.colorbar(shown, ax=axis, label="cost of a pair per token-layer, log10", pad=0.01)
    figure.suptitle(f"{title}\ncosts from {cost_map.images}", fontsize=8)
    return figure


def schedule(
    image: Image.Image, cost_map: CostMap, per_block: tuple[Groups, ...], title: str, grid: tuple[int, int], file: str
) -> "Figure":
    """Draw the tokens that the last block sees over the photograph. The colour of a patch is its first merge's block.

    Args:
        per_block: the groups that enter each block.
        grid: the rows and columns of patches.
        file: the image's name.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator

    figure, axes = plots.new(3.8, width=4.4)
    axis = axes[0][0]
    bare(axis)
    last = max(2, len(per_block) - 1)  # all blocks have a colour, so that figures of one depth compare
    colours = ScalarMappable(Normalize(1, last), plots.MAP)
    outlined(axis, image, per_block[-1], cost_map.tokens, cost_map.cls, grid)
    for position, block in cost_map.first_merge.items():
        if position not in fixed(cost_map.cls):
            row, column = divmod(patch_number(position, cost_map.cls), grid[1])
            colour = colours.cmap((block - 1) / (last - 1))
            axis.add_patch(Rectangle((column, row), 1, 1, facecolor=colour, edgecolor="none", alpha=FAINT))
    figure.colorbar(
        colours, ax=axis, label="first merged before block", pad=0.02, shrink=0.9, ticks=MaxNLocator(integer=True)
    )
    whole = len(patches(per_block[-1], cost_map.cls))
    figure.suptitle(
        f"{title}\n{file}: {cost_map.tokens - len(fixed(cost_map.cls))} patches become {whole} tokens", fontsize=8
    )
    return figure
