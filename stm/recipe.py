"""The recipe of a compressed model: the request that made it, and the images that decided what the request left open.

A folder's `config.json` holds it (stm/config.py), so that `--recipe` can run the request again, and so that no image
that decided a schedule is among those that measure it.
"""

import math
from dataclasses import dataclass

from stm.errors import check_choice, check_within

PRESET_NAMES = ("stm", "staged", "paper")
ORDERS = ("fitted", "staged", "border", "sweep", "even", "outward")
SIDES = ("both", "left", "right")
CUTS = ("flat", "regrouped", "staged", "border")  # the candidates for a fitted schedule
DRAWN = "drawn pictures"  # the name of the set that a fit uses if the user gives no images


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The images over which static hsp weights were averaged: the name of their set, their number and their hash."""

    data: str
    n: int
    sha256: str

    def __post_init__(self) -> None:
        check_within(self, 1, math.inf, "n")


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A candidate for a fitted schedule, and its KL(dense || candidate), in nats, on the judges (`Fit`).

    Args:
        cut: flat or regrouped (stm/merging/fit.py, regroup.py), or the order staged or border.
        step_scale: p.
    """

    cut: str
    step_scale: float
    kl: float

    def __post_init__(self) -> None:
        check_choice("cut", self.cut, CUTS, ValueError)
        check_within(self, 0, math.inf, "kl")


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The images that decided a fitted schedule. None of them may measure it.

    Args:
        data: the name of their set.
        n: the images that the costs come from.
        judges: the images that chose among the candidates; 0 if there was nothing to choose.
        seed: chose the images of both kinds, and the probes.
        sha256: of the images of both kinds, as the model takes them, in the order in which they were drawn.
        cut: the candidate that was taken.
        tried: all candidates, the best first; empty without judges.
        max_drop, speedup: the outcome that was asked for instead of a budget. The recipe's saving is the one that
            reached it.
    """

    data: str
    n: int
    judges: int = 0
    seed: int = 0
    sha256: str
    cut: str = "flat"
    tried: tuple[Tried, ...] = ()
    max_drop: float | None = None
    speedup: float | None = None

    def __post_init__(self) -> None:
        check_choice("cut", self.cut, CUTS, ValueError)
        check_within(self, 1, math.inf, "n")
        check_within(self, 0, math.inf, "judges", "seed", "speedup")
        check_within(self, 0, 1, "max_drop")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The request that made this model, enough to run it again. Exactly one of rate, saving and stages is set.

    Args:
        method: the preset from which the other values started.
        rate: the requested rate of the paper, a fraction.
        saving: the requested saving in token-layers, a fraction.
        removed_share: the share of patch tokens that the schedule in fact removes.
        schedule: the order of the merges.
        stages: the requested blocks before which stages act.
        sides: both, left or right.
        tokens_per_side: r of a gradual order; null for fitted and staged.
        calibration: the images over which weights were averaged, if any.
        fit: the images that decided a fitted schedule; null for the other orders.
        seed: chooses the images of the calibration and of the fit.

    Raises:
        ValueError: an unknown name, or not exactly one budget.
    """

    method: str
    rate: float | None = None
    saving: float | None = None
    removed_share: float
    schedule: str
    stages: tuple[int, ...] | None = None
    sides: str = "both"
    tokens_per_side: int | None = None
    calibration: Calibration | None = None
    fit: Fit | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("method", self.method, PRESET_NAMES, ValueError)
        check_choice("schedule", self.schedule, ORDERS, ValueError)
        check_choice("sides", self.sides, SIDES, ValueError)
        asked = [name for name in ("rate", "saving", "stages") if getattr(self, name) is not None]
        if len(asked) != 1:
            raise ValueError(
                f"it asks for {' and '.join(asked) or 'nothing'}, expected exactly one of rate, saving and stages"
            )
        check_within(self, 0, 1, "rate", "saving")
        check_within(self, 1, math.inf, "tokens_per_side")
        check_within(self, 0, math.inf, "seed")
        if self.tokens_per_side is not None and self.schedule in ("fitted", "staged"):
            raise ValueError(
                f"tokens_per_side is {self.tokens_per_side}, expected null: the schedule is {self.schedule}"
            )
        if self.fit is not None and self.schedule != "fitted":
            raise ValueError(f"fit is given, expected null: the schedule is {self.schedule}")
