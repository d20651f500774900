"""Which saving `stm plan` recommends: the largest whose loss is not proven, and is bounded by what the images can tell.

Three bounds, from the one that a user cares for to the one that needs the fewest images. The first that so many images
can decide is taken, and the dense model beside itself says which that is: it loses nothing, so where its own interval
is wider than a bound, no model can be shown to keep it.

1. The drop: the upper end of its interval is at most `MOST_DROP`. That takes labels, and a thousand images or more.
2. The agreement with the dense model's top-1: the lower end is at least `LEAST_AGREEMENT`. That takes 189 images.
3. KL to the dense model: the upper end is at most `MOST_KL`. It tells models apart on tens of images, because it weighs
   every logit and not only the largest. On the trained models of docs/study.md, nothing below it lost more than half a
   point.

With labels, a drop whose interval excludes 0 is proven, and its saving is never recommended. All intervals are at 95%.
The saving is chosen on the images that measure it, so it is a suggestion. A promise is `stm compress --max-drop`.
"""

from collections.abc import Sequence
from typing import NamedTuple

from stm.findings import PlanRow, Recommended
from stm.units import percent

MOST_DROP = 0.005
LEAST_AGREEMENT = 0.98
MOST_KL = 0.01


class Advice(NamedTuple):
    """A recommendation, or None and the reason."""

    recommended: Recommended | None
    reason: str | None = None


def advise(rows: Sequence[PlanRow], n: int) -> Advice:
    """Return the recommendation by the rule of this module.

    Args:
        rows: the dense model's first; measured on images.
        n: the number of images.
    """
    dense, *others = rows
    if dense.kl is None:
        return Advice(None, "no image was measured")
    figure, bound, short = _bound(dense, n)
    labelled = dense.drop_ci is not None
    terms = " and ".join([*(["whose drop is not proven"] if labelled else []), f"whose {bound}"])
    fit = [row for row in others if row.reason is None and _is_unproven(row) and _keeps(row, figure)]
    if not fit:
        more = "; more may show one: --data DIR, or more --seconds" if short else ""
        return Advice(None, f"there is no saving {terms}{short}{more}")
    best = max(fit, key=lambda row: row.asked_saving)
    assert best.saving is not None and best.gain is not None and best.compress is not None  # it was measured
    return Advice(
        Recommended(
            saving=best.asked_saving,
            gain=best.gain,
            gain_ci=best.gain_ci,
            drop=best.drop,
            drop_ci=best.drop_ci,
            agreement=best.agreement,
            agreement_ci=best.agreement_ci,
            kl=best.kl,
            kl_ci=best.kl_ci,
            by=figure,
            command=best.compress,
            why=f"the largest of these savings {terms}{short}",
        )
    )


def _bound(dense: PlanRow, n: int) -> tuple[str, str, str]:
    """Return the figure that is bounded, the bound in words, and what the images are too few for."""
    assert dense.agreement_ci is not None  # of the dense model beside itself
    if dense.drop_ci is not None and dense.drop_ci[1] <= MOST_DROP:
        return "drop", f"drop is at most {100 * MOST_DROP:g} points", ""
    few = f"; too few images ({n:,}) to bound "
    drop = f"a drop by {100 * MOST_DROP:g} points"
    short = "" if dense.drop_ci is None else few + drop
    if dense.agreement_ci[0] >= LEAST_AGREEMENT:
        return "agreement", f"agreement is at least {percent(LEAST_AGREEMENT, 0)}", short
    agreement = f"the agreement by {percent(LEAST_AGREEMENT, 0)}"
    short = few + (agreement if dense.drop_ci is None else f"{drop} or {agreement}")
    return "kl", f"KL is at most {MOST_KL:g}", short


def _keeps(row: PlanRow, figure: str) -> bool:
    """Return whether the interval of a figure lies within its bound; one that is unknown does not."""
    ends = {"drop": row.drop_ci, "agreement": row.agreement_ci, "kl": row.kl_ci}[figure]
    if ends is None:
        return False
    return (
        ends[0] >= LEAST_AGREEMENT if figure == "agreement" else ends[1] <= {"drop": MOST_DROP, "kl": MOST_KL}[figure]
    )


def _is_unproven(row: PlanRow) -> bool:
    """Return whether nothing shows a loss of accuracy: there are no labels, or the drop's interval reaches 0."""
    return row.drop_ci is None or row.drop_ci[0] <= 0
