"""Where merging would cost a model most, by block and position, and what a plan merges there.

The costs are those of the fitted schedule (stm/merging/costs.py), so one picture shows why a schedule keeps or loses
what the model knew. Here are numbers only: figures and pages draw them.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from stm.data.fit_images import pictures
from stm.fitting import Fitting, fit, kept
from stm.merging.bnnm import parts_of
from stm.merging.costs import never_dearer
from stm.merging.groups import Formed, Groups, formed, patch_number
from stm.merging.schedule import Fixed, fixed
from stm.model.vim import ViM
from stm.progress import OnProgress
from stm.recipe import DRAWN, Fit
from stm.verdicts import fitted_on

FEW = 24  # drawn pictures that show where costs sit; a fit takes more, because a choice needs more than a picture does


@dataclass(frozen=True)
class CostMap:
    """The costs of a model.

    Args:
        cost: [block - 1][position], from block 1 on: the smaller cost, per token-layer saved, of the two pairs of
            neighbours that hold the position, if one of them merged before the block. NaN: no pair holds it, or that
            pair costs nothing. The level means nothing, only ratios do.
        cls: the class token's position, or the positions of several.
        images: in words, what the costs come from.
        merges: what the plan merges, in the order of the blocks.
    """

    cost: tuple[tuple[float, ...], ...]
    cls: Fixed
    images: str
    merges: tuple[Formed, ...] = ()

    @property
    def tokens(self) -> int:
        """The number of positions, class token included."""
        return len(self.cost[0])

    @property
    def logarithms(self) -> list[list[float]]:
        """The costs as powers of ten, because they span many orders of magnitude."""
        return [[math.log10(value) for value in row] for row in self.cost]  # of NaN it is NaN

    @property
    def first_merge(self) -> dict[int, int]:
        """From each position that merges to the first block that sees it merged."""
        first: dict[int, int] = {}
        for made in self.merges:
            for position in made.group:
                first.setdefault(position, made.before)
        return first


def cost_map(fitting: Fitting, merged: Sequence[Groups]) -> CostMap:
    """Return the costs of a fitted model, with the merges of any plan of it.

    Args:
        merged: the groups that enter each block.
    """
    shape = fitting.dense.config.model
    pairs = never_dearer(fitting.effects.cost[:, :, 2]).tolist()  # (depth - 1, L): of the positions i and i + 1
    within = [{min(pair) for pair in pairwise(part)} for part in parts_of(shape.tokens, shape.cls, "both")]
    possible = set[int]().union(*within)
    rows = []
    for block, costs in enumerate(pairs, start=1):
        saves = shape.depth - block  # token-layers: this block and all later ones have one token less
        row = []
        for position in range(shape.tokens):
            held = [costs[first] for first in (position - 1, position) if first in possible]
            smallest = min(held, default=0.0)
            row.append(smallest / saves if smallest > 0 else math.nan)
        rows.append(tuple(row))
    images = fitting.images
    about = Fit(data=images.data, n=images.n, seed=images.seed, sha256=fitting.sha256)
    return CostMap(tuple(rows), shape.cls, fitted_on(about), tuple(formed(merged)))


def shown_costs(model: ViM, merged: Sequence[Groups], on_progress: OnProgress | None = None) -> CostMap:
    """Return the costs of a model without a wait: those that its fit has kept, else those of `FEW` pictures.

    A fit on images of the user's is never repeated here: the images are not known.

    Args:
        model: compressed, with two blocks or more. It holds every parameter of the dense model.
        merged: see `cost_map`.

    Raises:
        StmError: the gradients are not finite.
    """
    dense, recipe = model.with_plan(None), model.config.recipe
    about = None if recipe is None else recipe.fit
    drawn = about is not None and about.data == DRAWN
    n, seed = (about.n, about.seed) if about is not None and drawn else (None, 0)
    fitting = kept(dense, pictures(dense.config, n=n, seed=seed))
    if fitting is None:
        fitting = fit(dense, pictures(dense.config, n=FEW, seed=seed), keep=False, on_progress=on_progress)
    return cost_map(fitting, merged)


def rows_of(costs: CostMap) -> Iterator[tuple[int, int, str, float | str]]:
    """Yield a line per block and position: both, the patch (empty for the class token), and the cost, if it has one."""
    for block, row in enumerate(costs.cost, start=1):
        for position, cost in enumerate(row):
            patch = "" if position in fixed(costs.cls) else str(patch_number(position, costs.cls))
            yield block, position, patch, "" if math.isnan(cost) else cost
