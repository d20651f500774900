"""Which saving `stm plan` recommends: the largest whose loss is not proven, and is bounded by what images can tell."""

import pytest

from stm.bench.recommend import LEAST_AGREEMENT, MOST_DROP, MOST_KL, advise
from stm.findings import PlanRow
from stm.measure.stats import paired_difference, wilson


def row(n: int, saving: float, *, lost: int = 0, kl: float = 0.0, right: int | None = None) -> PlanRow:
    """A measured saving.

    Args:
        lost: of `n` images, those on which the dense model was right and this one is not.
        kl: the mean, with an interval of a tenth on both sides.
        right: the images on which the dense model is right; None: there are no labels.
    """
    labels = {}
    if right is not None:
        ends = paired_difference(right - lost, lost, 0, n - right)
        labels = {"top1": (right - lost) / n, "drop": lost / n, "drop_ci": ends}
    return PlanRow(
        asked_saving=saving,
        saving=saving,
        gain=1 + saving,
        agreement=1 - lost / n,
        agreement_ci=wilson(n - lost, n),
        kl=kl,
        kl_ci=(0.9 * kl, 1.1 * kl),
        compress=f"stm compress m --saving {saving}",
        **labels,
    )


def test_many_labels_bound_the_drop() -> None:
    """KL and agreement do not matter then: they stand for a drop that nobody can measure."""
    n, right = 5000, 4000
    rows = [row(n, 0, right=right), row(n, 0.1, right=right, kl=1.0), row(n, 0.2, right=right, lost=1, kl=1.0)]
    rows += [row(n, 0.3, right=right, lost=200)]
    assert rows[0].drop_ci is not None and rows[0].drop_ci[1] <= MOST_DROP
    best, reason = advise(rows, n)
    assert best is not None and reason is None
    assert (best.saving, best.by, best.command) == (0.2, "drop", "stm compress m --saving 0.2")
    assert best.why == "the largest of these savings whose drop is not proven and whose drop is at most 0.5 points"


def test_a_proven_loss_is_never_recommended() -> None:
    """However small it is: 12 of 20,000 images lost and none won are within the bound, and no chance."""
    n, right = 20_000, 19_990
    small, proven = row(n, 0.1, right=right), row(n, 0.2, right=right, lost=12)
    assert proven.drop_ci is not None and proven.drop_ci[0] > 0 and proven.drop_ci[1] <= MOST_DROP
    best, _ = advise([row(n, 0, right=right), small, proven], n)
    assert best is not None and best.saving == 0.1


def test_some_hundreds_of_images_bound_the_agreement() -> None:
    n = 400
    rows = [row(n, 0), row(n, 0.1, lost=1), row(n, 0.2, lost=2), row(n, 0.3, lost=8)]
    best, _ = advise(rows, n)
    assert best is not None and (best.saving, best.by) == (0.2, "agreement")
    assert best.why == "the largest of these savings whose agreement is at least 98%"
    labelled = [row(n, 0, right=390), row(n, 0.1, lost=1, right=390), row(n, 0.3, lost=8, right=390)]
    best, _ = advise(labelled, n)
    assert best is not None and (best.saving, best.by) == (0.1, "agreement")
    assert best.why.endswith("agreement is at least 98%; too few images (400) to bound a drop by 0.5 points")


@pytest.mark.parametrize(("n", "by"), [(188, "kl"), (189, "agreement")])
def test_how_many_images_bound_the_agreement(n: int, by: str) -> None:
    """As docs/cli.md says: the dense model beside itself agrees on all of them, and no model can do better."""
    best, _ = advise([row(n, 0), row(n, 0.1)], n)
    assert best is not None and best.by == by
    assert (wilson(n, n)[0] >= LEAST_AGREEMENT) == (by == "agreement")


def test_few_images_bound_the_divergence() -> None:
    n = 48
    rows = [row(n, 0), row(n, 0.1, kl=0.001), row(n, 0.2, kl=MOST_KL / 1.2, lost=2), row(n, 0.3, kl=MOST_KL)]
    best, _ = advise(rows, n)
    assert best is not None and (best.saving, best.by) == (0.2, "kl")
    assert best.why.endswith("KL is at most 0.01; too few images (48) to bound the agreement by 98%")
    labelled = [row(n, 0, right=40), row(n, 0.1, kl=0.001, right=40), row(n, 0.2, kl=0.001, lost=9, right=40)]
    best, _ = advise(labelled, n)
    assert best is not None and best.saving == 0.1, "the drop of the other is proven"
    assert best.why.endswith("to bound a drop by 0.5 points or the agreement by 98%")


def test_nothing_is_recommended_without_a_reason() -> None:
    none, reason = advise([row(48, 0), row(48, 0.1, kl=0.5)], 48)
    assert none is None and reason is not None
    assert reason.startswith("there is no saving whose KL is at most 0.01; too few images (48)")
    assert reason.endswith("more may show one: --data DIR, or more --seconds")
    none, reason = advise([row(400, 0), row(400, 0.1, lost=40)], 400)
    assert none is None and reason == "there is no saving whose agreement is at least 98%"
    out_of_reach = PlanRow(asked_saving=0.45, reason="too much")
    best, _ = advise([row(400, 0), row(400, 0.1), out_of_reach], 400)
    assert best is not None and best.saving == 0.1
    assert advise([PlanRow(asked_saving=0), PlanRow(asked_saving=0.1)], 0) == (None, "no image was measured")


def test_one_image_has_no_interval_of_its_divergence() -> None:
    alone = [
        PlanRow(asked_saving=s, agreement=1, agreement_ci=wilson(1, 1), kl=0.0, gain=1, saving=s) for s in (0, 0.1)
    ]
    assert advise(alone, 1).recommended is None
