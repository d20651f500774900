"""The sentences about a loss and about a fit. Every expected sentence is written by hand from the values beside it."""

import dataclasses
from typing import Any

import pytest

from stm.config import Measured
from stm.options import MergeOptions
from stm.recipe import DRAWN, Fit, Recipe, Tried
from stm.reports import Criterion, Gate, KlGate
from stm.verdicts import chosen, fitted_on, judged, milder, proven_loss, unsure, warning

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


NO_LOSS = dataclasses.replace(LOSS, drop=0.01, drop_ci=(-0.002, 0.022))
UNLABELLED = Measured(data="crops", n=96, agreement=0.97, kl=0.002)
CHANCE = Criterion(name="drop_ci", bound=0.0, measured=-0.002, met=True, n=200)
LOST = Criterion(name="drop_ci", bound=0.0, measured=0.031, met=False, n=200)
WITHIN = Gate(max_drop=0.06, drop=0.052, passed=True)
MET = Criterion(name="max_drop", bound=0.06, measured=0.052, met=True, n=200)
BEYOND = Gate(max_drop=0.005, drop=0.01, passed=False)
MISSED = Criterion(name="max_drop", bound=0.005, measured=0.01, met=False, n=200)
NEAR, FAR = (KlGate(max_kl=0.01, kl=kl, passed=kl <= 0.01) for kl in (0.004, 0.04))


@pytest.mark.parametrize(
    ("measured", "gate", "kl_gate", "verdict", "decided"),
    [
        (NO_LOSS, None, None, "accepted", [CHANCE]),
        (LOSS, None, None, "regression", [LOST]),
        # What the user allows is allowed, although it is beyond chance; and what is not allowed may be chance.
        (LOSS, WITHIN, None, "accepted", [MET]),
        (NO_LOSS, BEYOND, None, "regression", [MISSED]),
        (None, None, None, "not_measured", []),
        (UNLABELLED, None, None, "not_measured", []),
        # int8's gate says nothing of what merging costs: it can refuse a model, but not accept one.
        (UNLABELLED, None, NEAR, "not_measured", [("max_kl", 0.004, True, 96)]),
        (UNLABELLED, None, FAR, "regression", [("max_kl", 0.04, False, 96)]),
        (NO_LOSS, None, NEAR, "accepted", [CHANCE, ("max_kl", 0.004, True, 200)]),
        (LOSS, WITHIN, FAR, "regression", [MET, ("max_kl", 0.04, False, 200)]),
    ],
)
def test_the_verdict_and_the_numbers_that_decided(
    measured: Measured | None, gate: Gate | None, kl_gate: KlGate | None, verdict: str, decided: list[Any]
) -> None:
    of_kl = [
        each
        if isinstance(each, Criterion)
        else Criterion(name=each[0], bound=0.01, measured=each[1], met=each[2], n=each[3])
        for each in decided
    ]
    assert judged(measured, gate, kl_gate) == (verdict, tuple(of_kl))


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
