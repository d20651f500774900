"""Statistics of an evaluation: pure functions of its records, whatever their order.

All intervals are at 95%. An accuracy has Wilson's score interval. The drop is the difference of two accuracies on the
same images, so it has an interval for paired proportions, Newcombe's square-and-add. That interval stays sensible on a
few hundred images. If the two models never disagree, the usual normal interval would shrink to a point, and Newcombe's
does not. McNemar's exact test tells whether the two models differ at all.

Distributions come from scipy.special. `scipy.stats` has these intervals and tests by name, but its import takes a
second of every command that measures; tests/unit/test_stats.py holds the ones here to it.
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from scipy.special import bdtr, ndtri, stdtr, stdtrit

from stm.config import Measured
from stm.errors import DataError
from stm.measure.records import Record

Interval = tuple[float, float]

# What a figure needs: labels, a dense model, or both.
LABEL_FIGURES = ("top1", "top1_ci", "top5", "top5_ci")
DENSE_FIGURES = ("agreement", "kl")
PAIRED_FIGURES = ("dense_top1", "drop", "drop_ci", "mcnemar_p")


def wilson(successes: int, n: int) -> Interval:
    """Return Wilson's 95% score interval for a proportion (Wilson 1927)."""
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} successes of {n}, expected 0 to {n} of at least 1")
    z, p = float(ndtri(0.975)), successes / n
    center = (2 * n * p + z * z) / (2 * (n + z * z))
    half = z * math.sqrt(4 * n * p * (1 - p) + z * z) / (2 * (n + z * z))
    # Both ends are exact where rounding would leave them beside 0 and 1.
    return center - half if successes else 0.0, center + half if successes < n else 1.0


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Return Student's 95% interval of the mean of values that are never negative, such as KL; None for fewer than
    two."""
    if len(values) < 2:
        return None
    # The mean of values that are never negative is not negative either, so the interval ends at 0.
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    half = error * float(stdtrit(len(values) - 1, 0.975))
    return max(mean - half, 0.0), mean + half


def median_interval(values: Sequence[float]) -> Interval | None:
    """Return the interval of the median that the sign test gives: two of the values, whatever their distribution.

    It covers the median with at least 95%. None for fewer than six values: their whole range covers less.
    """
    # So many values lie outside on each side: the 2.5% point of a fair coin's heads.
    low = next(k for k in range(len(values) + 1) if bdtr(k, len(values), 0.5) >= 0.025)
    if low < 1:
        return None
    ordered = sorted(values)
    return ordered[low - 1], ordered[len(values) - low]


def clearly_below(values: Sequence[float], others: Sequence[float]) -> bool:
    """Return whether the mean of values is below that of others on the same images, beyond chance.

    The paired t test, one-sided at 2.5%: the same as whether the 95% interval of the difference excludes 0.
    """
    differences = [a - b for a, b in zip(values, others, strict=True)]
    if len(differences) < 2 or not any(differences):
        return False
    mean, spread = statistics.fmean(differences), statistics.stdev(differences)
    if spread == 0:  # every image says the same
        return mean < 0
    return bool(stdtr(len(differences) - 1, mean / spread * math.sqrt(len(differences))) < 0.025)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the p-value of the exact two-sided McNemar test.

    It is the chance of discordant pairs as uneven as these, or more uneven, if neither model is better.
    """
    discordant = only_first + only_second
    # A fair coin is symmetric, so both tails weigh the same.
    return min(1.0, 2 * float(bdtr(min(only_first, only_second), discordant, 0.5))) if discordant else 1.0


def paired_difference(both: int, only_first: int, only_second: int, neither: int) -> Interval:
    """Return the 95% interval of (first accuracy - second accuracy) on the same images.

    Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired data",
    Statistics in Medicine 17 (1998) 2635-2650, method 10: the two Wilson intervals, joined with the correlation phi of
    the two outcomes, continuity-corrected as in that paper.
    """
    n = both + only_first + only_second + neither
    first, second = both + only_first, both + only_second
    p1, p2 = first / n, second / n
    (low1, high1), (low2, high2) = wilson(first, n), wilson(second, n)

    # Newcombe corrects for continuity only a positive correlation, and never past 0.
    excess: float = both * neither - only_first * only_second
    if excess > 0:
        excess = max(excess - n / 2, 0)
    spread = first * (n - first) * second * (n - second)
    phi = excess / math.sqrt(spread) if spread else 0.0  # without spread one model is always right or always wrong

    below, above = (p1 - low1, high2 - p2), (high1 - p1, p2 - low2)
    difference = (only_first - only_second) / n
    return difference - _add(*below, phi), difference + _add(*above, phi)


class Comparison(NamedTuple):
    """Two models on the same images.

    Args:
        difference: of their accuracies, first minus second.
        ci: the 95% interval of the difference.
        p: of McNemar's test.
    """

    difference: float
    ci: Interval
    p: float


def compared(first: Sequence[Record], second: Sequence[Record]) -> Comparison | None:
    """Compare the records of two models, in the same order; None if an image has no label or none was scored."""
    pairs: Counter[tuple[bool, bool]] = Counter()
    for one, other in zip(first, second, strict=True):
        if one.error is None:
            if one.label is None:
                return None
            pairs[one.pred == one.label, other.pred == other.label] += 1
    both, won, lost, neither = (pairs[key] for key in ((True, True), (True, False), (False, True), (False, False)))
    if not pairs:
        return None
    difference = (won - lost) / pairs.total()
    return Comparison(difference, paired_difference(both, won, lost, neither), mcnemar(won, lost))


def _add(a: float, b: float, phi: float) -> float:
    """Return the length of the difference of two half-widths with correlation phi."""
    # Rounding can make the square of a vanishing length negative.
    return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))


def summarize(records: Iterable[Record], *, data: str, seed: int = 0) -> Measured:
    """Return all the figures of an evaluation.

    Broken images are counted as `failed` and are in no other figure. A figure that needs labels or a dense model needs
    them for every image: a figure over some of the images would look like one over all of them. A figure that cannot be
    computed is None, and `reasons` says why.

    Args:
        records: of one or several runs, in any order.
        data: the sample set's name.
        seed: the run's seed, for the record only.

    Raises:
        DataError: no image was scored.
    """
    records = list(records)
    scored = [record for record in records if record.error is None]
    n, failed = len(scored), len(records) - len(scored)
    if not scored:
        raise DataError(_nothing_scored(records, data))
    no_label = _reason([record.label for record in scored], "have no label")
    no_dense = _reason([record.dense_pred for record in scored], "were not compared with a dense model")
    right = [record.pred == record.label for record in scored]
    dense_right = [record.dense_pred == record.label for record in scored]

    figures: dict[str, Any] = {}
    reasons = dict.fromkeys(LABEL_FIGURES, no_label) | dict.fromkeys(DENSE_FIGURES, no_dense)
    reasons |= dict.fromkeys(PAIRED_FIGURES, no_label or no_dense)
    if not no_label:
        top1, top5 = sum(right), sum(record.label in record.top5 for record in scored)
        figures |= {"top1": top1 / n, "top1_ci": wilson(top1, n), "top5": top5 / n, "top5_ci": wilson(top5, n)}
    if not no_dense:
        figures["agreement"] = sum(record.pred == record.dense_pred for record in scored) / n
        # `fsum` is exact, so the figure does not depend on the order of the records.
        figures["kl"] = math.fsum(record.kl for record in scored if record.kl is not None) / n
    if not no_label and not no_dense:
        pairs = Counter(zip(dense_right, right, strict=True))
        lost, won = pairs[True, False], pairs[False, True]
        figures |= {
            "dense_top1": sum(dense_right) / n,
            "drop": (lost - won) / n,
            "drop_ci": paired_difference(pairs[True, True], lost, won, pairs[False, False]),
            "mcnemar_p": mcnemar(lost, won),
        }
    why = {key: reason for key, reason in reasons.items() if reason is not None}
    return Measured(data=data, n=n, failed=failed, seed=seed, reasons=why, **figures)


def _reason(values: Sequence[int | None], what: str) -> str | None:
    """Return why a figure that needs these values of every image cannot be computed, or None if it can."""
    missing = sum(value is None for value in values)
    who = "the images" if missing == len(values) else f"{missing} of the {len(values)} images"
    return f"{who} {what}" if missing else None


def _nothing_scored(records: Sequence[Record], data: str) -> str:
    if not records:
        return f"{data} holds no images"
    return f"{data}: none of the {len(records)} images could be read; the first: {records[0].error}"
