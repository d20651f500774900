"""The figures of an evaluation: one list, of which screens, cards and pages are made."""

from dataclasses import fields, replace

from stm.config import Measured
from stm.evaluations import figure_rows, figures
from stm.hub import card
from stm.page import render

FULL = Measured(
    data="digits",
    n=599,
    top1=0.97,
    top1_ci=(0.95, 0.98),
    top5=0.999,
    agreement=0.9876,
    kl=0.12345,
    dense_top1=0.975,
    drop=0.005,
    drop_ci=(-0.01, 0.02),
    mcnemar_p=0.0012345,
    feature_change=0.0432,
)


def test_no_figure_that_was_measured_is_left_out() -> None:
    numbers = {field.name for field in fields(Measured) if field.type == float | None}
    assert {figure.name for figure in figures(FULL)} == numbers
    assert set(card._LABELS) == set(render.LABELS) == numbers


def test_rows_have_units_and_the_intervals_that_are_known() -> None:
    assert figure_rows(FULL, {name: name for name in card._LABELS}, (0.9, 0.99)) == [
        ("dense_top1", "97.50%", "90.00% to 99.00%"),
        ("top1", "97.00%", "95.00% to 98.00%"),
        ("top5", "99.90%", ""),
        ("drop", "0.50", "-1.00 to 2.00"),
        ("mcnemar_p", "0.00123", ""),
        ("agreement", "98.76%", ""),
        ("kl", "0.1235", ""),
        ("feature_change", "4.32%", ""),
    ]


def test_a_figure_that_was_not_measured_has_no_row_and_zero_has_one() -> None:
    assert figures(Measured(data="digits", n=1)) == ()
    assert [figure.name for figure in figures(replace(Measured(data="digits", n=1), drop=0.0, kl=0.0))] == [
        "drop",
        "kl",
    ]
