"""Intervals and tests against published and hand-computed values, and the figures as pure functions of records."""

import math
from dataclasses import replace
from itertools import product
from random import Random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stm.errors import DataError
from stm.measure.records import Record
from stm.measure.stats import (
    DENSE_FIGURES,
    LABEL_FIGURES,
    PAIRED_FIGURES,
    clearly_below,
    mcnemar,
    mean_interval,
    median_interval,
    paired_difference,
    summarize,
    wilson,
)

Z = 1.959963984540054  # the normal distribution's 97.5% point


def test_wilson_by_hand() -> None:
    # Wilson's formula, written out: centre (k + z^2/2) / (n + z^2), half-width z sqrt(k (n-k) / n + z^2/4) / (n + z^2).
    k, n = 81, 100
    centre, half = (k + Z**2 / 2) / (n + Z**2), Z * math.sqrt(k * (n - k) / n + Z**2 / 4) / (n + Z**2)
    assert wilson(k, n) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert wilson(k, n) == pytest.approx((0.7222, 0.8749), abs=5e-5)
    # Newcombe (Statistics in Medicine 17, 1998, 857-872), Table I, method 3.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_the_interval_of_a_mean_by_hand() -> None:
    # Student's t at 97.5% with 4 degrees of freedom is 2.776445 (any table); the values have mean 3 and standard error
    # sqrt(2.5 / 5).
    half = 2.776445 * math.sqrt(0.5)
    assert mean_interval([1, 2, 3, 4, 5]) == pytest.approx((3 - half, 3 + half), abs=1e-5)
    assert mean_interval([0.0, 0.0, 0.3]) == pytest.approx((0.0, 0.1 + 4.302653 * 0.1), abs=1e-5), (
        "a KL is never below 0"
    )
    assert mean_interval([0.25, 0.25]) == (0.25, 0.25)
    assert mean_interval([0.25]) is None and mean_interval([]) is None


def test_mcnemar_by_hand() -> None:
    # 2 * (C(12,0) + C(12,1) + C(12,2) + C(12,3)) / 2^12 = 2 * 299 / 4096.
    assert mcnemar(3, 9) == pytest.approx(598 / 4096, rel=1e-12)
    assert mcnemar(9, 3) == mcnemar(3, 9)
    assert mcnemar(0, 6) == pytest.approx(2 / 64, rel=1e-12)
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(0, 0) == 1.0


@pytest.mark.parametrize(
    ("table", "expected", "rounding"),
    [
        # Fagerland, Lydersen and Laake, "Statistical Analysis of Contingency Tables" (2017), chapter 8: airway
        # hyper-responsiveness (Bentur et al. 2009) and complete response (Cavo et al. 2012), Newcombe square-and-add.
        ((1, 1, 7, 12), (-0.507, -0.026), 5e-4),
        ((59, 6, 16, 80), (-0.1186, -0.0046), 5e-5),
    ],
)
def test_paired_difference_as_published(
    table: tuple[int, int, int, int], expected: tuple[float, float], rounding: float
) -> None:
    assert paired_difference(*table) == pytest.approx(expected, abs=rounding)


def test_paired_difference_without_disagreement_is_no_point() -> None:
    low, high = paired_difference(90, 0, 0, 10)
    assert low < -0.005 and high > 0.005


counts = st.integers(0, 60)


@given(counts, counts, counts, counts)
def test_paired_difference_properties(both: int, lost: int, won: int, neither: int) -> None:
    n = both + lost + won + neither
    assume(n > 0)
    low, high = paired_difference(both, lost, won, neither)
    assert -1 - 1e-12 <= low <= (lost - won) / n <= high <= 1 + 1e-12
    # Naming the models the other way round turns the interval over; counting errors instead, twice.
    assert paired_difference(both, won, lost, neither) == pytest.approx((-high, -low), abs=1e-12)
    assert paired_difference(neither, lost, won, both) == pytest.approx((low, high), abs=1e-9)


def record(i: int, label: int | None, pred: int, dense: int | None, kl: float | None = 0.5) -> Record:
    others = tuple(c for c in range(6) if c != pred)[:4]
    dense_top5 = () if dense is None else (dense,)
    return Record(
        file=f"{i}.png",
        label=label,
        pred=pred,
        top5=(pred, *others),
        dense_pred=dense,
        dense_top5=dense_top5,
        margin=1.0,
        kl=kl,
    )


def test_summary_by_hand() -> None:
    # Ten images of class 0: both right 5, only dense right 3, only this right 1, both wrong 1 (and both say 5).
    pairs = [(0, 0)] * 5 + [(0, 1)] * 3 + [(1, 0)] + [(5, 5)]
    records = [record(i, 0, pred, dense, kl=i / 10) for i, (dense, pred) in enumerate(pairs)]
    records[-1] = replace(records[-1], top5=(5, 4, 3, 2, 1))
    records.append(Record(file="broken.png", label=0, error="broken.png is not an image"))
    found = summarize(records, data="ten", seed=7)
    assert (found.data, found.n, found.failed, found.seed, found.reasons) == ("ten", 10, 1, 7, {})
    assert (found.top1, found.dense_top1, found.agreement) == (0.6, 0.8, 0.6)
    assert found.top5 == 0.9
    assert found.kl == pytest.approx(0.45)
    assert found.drop == pytest.approx(0.2)
    assert found.top1_ci == wilson(6, 10)
    assert found.top5_ci == wilson(9, 10)
    assert found.drop_ci == paired_difference(5, 3, 1, 1)
    assert found.mcnemar_p == pytest.approx(2 * (1 + 4) / 16)


@pytest.mark.parametrize(("labelled", "compared"), list(product([True, False], repeat=2)))
def test_what_cannot_be_computed_is_none_with_a_reason(labelled: bool, compared: bool) -> None:
    records = [
        record(i, 0 if labelled else None, 0, 0 if compared else None, 0.1 if compared else None) for i in range(3)
    ]
    found = summarize(records, data="set")
    absent = set() if labelled else {*LABEL_FIGURES, *PAIRED_FIGURES}
    absent |= set() if compared else {*DENSE_FIGURES, *PAIRED_FIGURES}
    assert found.reasons.keys() == absent
    for key in (*LABEL_FIGURES, *DENSE_FIGURES, *PAIRED_FIGURES):
        assert (getattr(found, key) is None) == (key in absent), key
    if not labelled:
        assert found.reasons["drop"] == "the images have no label"
    if not compared:
        assert found.reasons["kl"] == "the images were not compared with a dense model"


def test_some_labels_are_not_enough() -> None:
    found = summarize([record(0, 0, 0, 0), record(1, None, 0, 0)], data="set")
    assert found.top1 is None and found.agreement == 1.0
    assert found.reasons["top1"] == "1 of the 2 images have no label"


def test_nothing_scored_is_an_error() -> None:
    with pytest.raises(DataError, match=r"pets: none of the 2 images could be read; the first: a\.png: it is empty"):
        summarize([Record(file="a.png", error="a.png: it is empty"), Record(file="b.png", error="too")], data="pets")
    with pytest.raises(DataError, match="pets holds no images"):
        summarize([], data="pets")


classes = st.integers(0, 5)
scored = st.builds(record, st.integers(0, 9), classes, classes, classes, st.floats(0, 1e6))
broken = st.builds(Record, file=st.just("x"), label=classes, error=st.just("broken"))


@given(st.lists(scored, min_size=1, max_size=20), st.lists(broken, max_size=3), st.randoms(use_true_random=False))
def test_order_does_not_matter(good: list[Record], bad: list[Record], random: Random) -> None:
    shuffled = good + bad
    random.shuffle(shuffled)
    assert summarize(shuffled, data="set") == summarize(good + bad, data="set")
    assert summarize(good, data="set") == replace(summarize(good + bad, data="set"), failed=0)


def test_the_interval_of_a_median_by_hand() -> None:
    """Six values lie all on one side of the median with a chance of 2 / 64; seventeen: the fifth from each end."""
    assert median_interval([1.0] * 5) is None
    assert median_interval([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]) == (1.0, 6.0)
    assert median_interval([float(value) for value in range(17)]) == (4.0, 12.0)
    outside = sum(math.comb(17, k) for k in range(5)) / 2**17
    assert outside < 0.025 < outside + math.comb(17, 5) / 2**17


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_proportions_are_those_of_scipy(a: int, b: int) -> None:
    assume(a + b > 0)
    from scipy.stats import binomtest  # not above: every process of the tests collects this file

    interval = binomtest(a, a + b).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson(a, a + b) == pytest.approx((interval.low, interval.high), rel=1e-12, abs=1e-15)
    assert mcnemar(a, b) == pytest.approx(binomtest(a, a + b).pvalue, rel=1e-9)


VALUES = st.lists(st.floats(0, 1, allow_subnormal=False).map(lambda x: round(x, 6)), min_size=2, max_size=40)


@given(VALUES, st.randoms(use_true_random=False))
def test_means_and_medians_are_those_of_scipy(values: list[float], random: Random) -> None:
    from scipy.stats import binom, ttest_rel
    from scipy.stats import t as student

    low = int(binom.ppf(0.025, len(values), 0.5))
    expected = None if low < 1 else (sorted(values)[low - 1], sorted(values)[len(values) - low])
    assert median_interval(values) == expected
    interval = mean_interval(values)
    assert interval is not None
    mean = math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
    half = float(student.ppf(0.975, len(values) - 1)) * spread
    assert interval == pytest.approx((max(mean - half, 0.0), mean + half), rel=1e-9, abs=1e-12)
    others = [round(value + random.uniform(-0.5, 0.6), 6) for value in values]
    differences = {round(a - b, 6) for a, b in zip(values, others, strict=True)}
    if len(differences) > 1:  # scipy warns of differences that are all the same
        p = ttest_rel(values, others, alternative="less").pvalue
        assume(abs(p - 0.025) > 1e-9)
        assert clearly_below(values, others) == (p < 0.025)


def test_differences_that_are_all_the_same() -> None:
    assert clearly_below([0.1, 0.2], [0.6, 0.7]) and not clearly_below([0.6, 0.7], [0.1, 0.2])
    assert not clearly_below([0.1, 0.2], [0.1, 0.2]) and not clearly_below([0.1], [0.9])
