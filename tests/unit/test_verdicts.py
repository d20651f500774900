"""The sentences about a loss and about a fit. Every expected sentence is written by hand from the values beside it."""

import dataclasses

import pytest

from stm.config import Measured
from stm.options import MergeOptions
from stm.recipe import DRAWN, Fit, Recipe, Tried
from stm.verdicts import chosen, fitted_on, milder, proven_loss, unsure, warning

LOSS = Measured(data="digits", n=200, top1=0.93, dense_top1=0.98, drop=0.052, drop_ci=(0.031, 0.073))
ON_DRAWN = Fit(data=DRAWN, n=1576, sha256="0123456789abcdef" * 4, seed=3)
ON_OWN = dataclasses.replace(
    ON_DRAWN,
    data="my_images",
    n=256,
    judges=96,
    cut="regrouped",
    tried=tuple(
        Tried(cut=cut, step_scale=p, kl=kl)
        for cut, p, kl in (
            ("regrouped", 0.75, 0.001),
            ("flat", 0.5, 0.002),
            ("flat", 1.0, 0.0031),
            ("border", 0.5, 0.1),
            ("staged", 0.5, 0.25),
        )
    ),
)
FITTED = Recipe(method="stm", saving=0.45, removed_share=0.8, schedule="fitted", fit=ON_DRAWN)
PAPER = Recipe(method="paper", rate=0.4, removed_share=0.4, schedule="border")


@pytest.mark.parametrize(
    ("interval", "proven"),
    [((0.0001, 0.02), True), ((0.0, 0.02), False), ((-0.01, 0.02), False), ((-0.03, -0.01), False), (None, False)],
)
def test_a_loss_is_proven_if_its_interval_lies_above_0(interval: tuple[float, float] | None, proven: bool) -> None:
    measured = dataclasses.replace(LOSS, drop_ci=interval)
    assert proven_loss(measured) == proven
    assert (warning(measured, FITTED) is not None) == proven


@pytest.mark.parametrize(
    ("recipe", "remedy"),
    [
        (FITTED, "; try a smaller --saving, or fit on images of your own: --fit-on DIR"),
        (dataclasses.replace(FITTED, fit=ON_OWN), "; try a smaller --saving"),
        (PAPER, "; try the schedule that is fitted to the model: --method stm"),
        (None, ""),
    ],
)
def test_the_warning_says_the_loss_and_what_to_try(recipe: Recipe | None, remedy: str) -> None:
    assert warning(LOSS, recipe) == "top-1 drops by 5.20 points (95%: 3.10 to 7.30), more than chance explains" + remedy


@pytest.mark.parametrize(
    ("recipe", "saving", "expected"),
    [
        (FITTED, 0.4501, MergeOptions(saving=0.22)),  # half of 45, in whole percents
        (dataclasses.replace(FITTED, sides="left"), 0.2, MergeOptions(saving=0.1, sides="left")),
        (PAPER, 0.2199999999, MergeOptions(saving=0.22)),  # as much, by the preset that is the default
        (FITTED, 0.019, None),
        (None, 0.4, None),
    ],
)
def test_what_loses_less(recipe: Recipe | None, saving: float, expected: MergeOptions | None) -> None:
    assert milder(recipe, saving) == expected


def test_what_a_schedule_was_fitted_on() -> None:
    assert fitted_on(ON_DRAWN) == "1,576 drawn pictures, seed 3, sha256 0123456789ab; no data was needed"
    assert fitted_on(ON_OWN) == "256 images of my_images, seed 3, sha256 0123456789ab"
    assert chosen(ON_DRAWN) is None
    assert chosen(ON_OWN) == (
        "regrouped p=0.75 (KL 0.0010) on 96 other images, before flat p=0.5 (KL 0.0020), flat p=1 (KL 0.0031), border"
        " p=0.5 (KL 0.1000) and 1 more"
    )


def test_a_choice_without_images_is_unsure_above_30_percent() -> None:
    assert unsure(ON_DRAWN, 0.3) is None and unsure(ON_OWN, 0.45) is None and unsure(None, 0.45) is None
    assert unsure(ON_DRAWN, 0.31) == (
        "above 30% saved without images the choice is less certain; unlabelled images of the model's kind decide"
        " better: --fit-on DIR"
    )
