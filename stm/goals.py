"""Budgets by outcome: the saving that keeps a promise about accuracy, or that makes a model as fast as asked.

Both search over whole percents of the token-layers: a finer step would be below what either can be measured to.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from stm.bake import bake
from stm.bench.bench import served_speed
from stm.errors import Infeasible, InfeasibleBudget, InfeasibleDrop, UsageError
from stm.evaluations import Assessment
from stm.fitting import Fitting, most_layers
from stm.measure.evaluate import assess
from stm.model.vim import ViM
from stm.options import EvalOptions, MergeOptions
from stm.progress import OnProgress, Progress


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a compressed model is to reach, instead of a budget.

    Args:
        max_drop: the most top-1 to lose, a fraction of the images.
        speedup: of the served model over the served dense one, on this machine; above 1.
        batch_size: images per forward that is timed.
    """

    max_drop: float | None = None
    speedup: float | None = None
    batch_size: int = 1

    @property
    def given(self) -> bool:
        """Whether there is a goal."""
        return self.max_drop is not None or self.speedup is not None

    @property
    def name(self) -> str:
        """The name of the option that was given."""
        return "speedup" if self.speedup is not None else "max_drop"

    def check(self, merge: MergeOptions) -> None:
        """Raise UsageError if a goal is none, or stands beside another or a budget."""
        budget = [name for name in ("rate", "saving", "stages") if getattr(merge, name) is not None]
        goals = [name for name in ("max_drop", "speedup") if getattr(self, name) is not None]
        if len(goals + budget) > 1 and goals:
            raise UsageError(f"{' and '.join(goals + budget)} were given, expected only one of them")
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise UsageError(f"max_drop is {self.max_drop:g}, expected a fraction of the images, 0 to 1")
        if self.speedup is not None and not self.speedup > 1:
            raise UsageError(
                f"speedup is {self.speedup:g}, expected a number above 1; 1.5 is one and a half times as fast"
            )

    def met(
        self,
        fitting: Fitting,
        merge: MergeOptions,
        images: EvalOptions = EvalOptions(),
        on_progress: OnProgress | None = None,
    ) -> MergeOptions:
        """Return the options with the saving that meets the goal; the same options without a goal.

        Args:
            fitting: its judges have labels if the goal is a drop.
            images: how the judges are measured.

        Raises:
            UsageError: the judges have no labels.
            InfeasibleDrop: no saving keeps the drop.
            Infeasible: no saving is as fast.
        """
        if self.max_drop is not None:
            saving = _largest_saving(fitting, merge, self.max_drop, images, on_progress)
        elif self.speedup is not None:
            saving = _saving_for_speed(fitting, merge, self.speedup, self.batch_size, on_progress)
        else:
            return merge
        return dataclasses.replace(merge, saving=saving)

    def recorded(self, small: ViM) -> ViM:
        """Return the model with the goal in its recipe."""
        recipe = small.config.recipe
        if not self.given or recipe is None or recipe.fit is None:
            return small
        fit = dataclasses.replace(recipe.fit, max_drop=self.max_drop, speedup=self.speedup)
        small.config = dataclasses.replace(small.config, recipe=dataclasses.replace(recipe, fit=fit))
        return small


def _largest_saving(
    fitting: Fitting, merge: MergeOptions, max_drop: float, images: EvalOptions, on_progress: OnProgress | None
) -> float:
    """Return the largest saving whose drop on the judges has its 95% upper bound within `max_drop`."""
    judges = fitting.images.judges
    if judges is None or not judges.labelled:
        raise UsageError(
            f"max drop needs labels, and {fitting.images.data} has none",
            "give labelled images, or a --rate or --saving",
        )
    flat, measured = fitting.without_judges(), dict[int, Assessment]()

    def keeps(percent: int) -> bool:
        small = bake(fitting.dense, dataclasses.replace(merge, saving=percent / 100), fitting=flat)
        measured[percent] = assess(small, judges, images, reference=fitting.dense)
        interval = measured[percent].drop_ci
        return interval is not None and interval[1] <= max_drop

    best = _last(keeps, _most(fitting, merge), "choose", on_progress)
    if best == 0:
        interval, n = measured[1].drop_ci, measured[1].n
        assert interval is not None  # the judges have labels
        raise InfeasibleDrop(
            f"no saving keeps the drop within {100 * max_drop:g} points with 95% certainty: on the {n} images that"
            f" choose, a saving of 1% may drop by {100 * interval[1]:.2f} points",
            "more labelled images make the interval narrower, a larger --max-drop allows more",
            asked="max_drop",
            value=max_drop,
            best=interval[1],
            n=n,
        )
    return best / 100


def _saving_for_speed(
    fitting: Fitting, merge: MergeOptions, speedup: float, batch_size: int, on_progress: OnProgress | None
) -> float:
    """Return the smallest saving whose measured gain is `speedup`: both models timed in turns, after `optimize`."""
    flat, gains = fitting.without_judges(), dict[int, float]()

    def is_slower(percent: int) -> bool:
        small = bake(fitting.dense, dataclasses.replace(merge, saving=percent / 100), fitting=flat)
        gains[percent] = served_speed(fitting.dense, small, batch_size=batch_size).gain
        return gains[percent] < speedup

    most = _most(fitting, merge)
    slower = _last(is_slower, most, "speed", on_progress)
    if slower == most:
        raise Infeasible(
            f"no saving makes this model {speedup:g}x as fast here at batch size {batch_size}: the largest, {most}%,"
            f" reaches {gains[most]:.2f}x",
            "ask for less, or run it on the machine where it will serve",
            asked="speedup",
            value=speedup,
            best=gains[most],
        )
    return (slower + 1) / 100


def _most(fitting: Fitting, merge: MergeOptions) -> int:
    """Return the largest saving in whole percents.

    Raises:
        UsageError: it is below 1%.
    """
    sides = merge.sides or merge.preset.sides or "both"
    shape = fitting.dense.config.model
    most = 100 * most_layers(shape, sides) // (shape.tokens * shape.depth)
    if not most:
        raise InfeasibleBudget(
            f"no saving of 1% or more is possible with {shape.tokens} tokens and {shape.depth} blocks",
            "choose a model of more tokens or blocks",
            asked="saving",
            value=0.01,
            best=None,
        )
    return most


def _last(holds: Callable[[int], bool], most: int, stage: str, on_progress: OnProgress | None) -> int:
    """Return the last of 1 to `most` for which something holds, by bisection; 0 if it holds for none."""
    low, high, done, tries = 0, most + 1, 0, (most + 1).bit_length()
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
        done += 1
        if on_progress is not None:
            on_progress(Progress(stage, min(done, tries), tries, "tries"))
    return low
