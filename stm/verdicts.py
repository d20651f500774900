"""Decide what a reader must know of a compressed model, and say it in words: whether it is accepted, whether its loss
is beyond chance, what to try then, and which images decided its schedule.

Screens, cards and pages all ask here, so that they never disagree.
"""

from stm.config import Measured, Protection
from stm.options import MergeOptions
from stm.recipe import DRAWN, Fit, Recipe, Tried
from stm.reports import Criterion, Gate, KlGate, ServedSpeed
from stm.units import interval

UNSURE_ABOVE = 0.3  # of the saving: from here on a fit without images depends on the pictures that were drawn
ACCEPTED, REGRESSION, INFEASIBLE, NOT_MEASURED = "accepted", "regression", "infeasible", "not_measured"
BACKBONE = "a backbone has no logits: only its features can be compared"
OWN_IMAGES = "unlabelled images of the model's kind decide better: --fit-on DIR"


def judged(
    measured: Measured | None, gate: Gate | None = None, kl_gate: KlGate | None = None
) -> tuple[str, tuple[Criterion, ...]]:
    """Return the verdict on a compressed model, and the numbers that decided it. Scripts act on it.

    The rule, in this order:

    - regression: a gate that was given is not met; or, without `max_drop`, top-1 is lost beyond chance (`proven_loss`).
    - not_measured: top-1 was compared with the dense model's on no labelled image, so nobody knows what merging costs.
      `max_kl` alone does not change that: it bounds what int8 adds.
    - accepted: every gate that was given is met, and without `max_drop` no loss is proven.

    `infeasible` is a verdict on the request (`stm.errors.Infeasible`), for which there is no model to judge.

    Args:
        measured: of the compressed model beside the dense one; None if nothing was compared.
        gate, kl_gate: those that were given.
    """
    n = None if measured is None else measured.n
    decided = []
    if gate is not None:
        decided.append(Criterion(name="max_drop", bound=gate.max_drop, measured=gate.drop, met=gate.passed, n=n))
    elif measured is not None and measured.drop_ci is not None:
        low = measured.drop_ci[0]
        decided.append(Criterion(name="drop_ci", bound=0.0, measured=low, met=not proven_loss(measured), n=n))
    known = bool(decided)
    if kl_gate is not None:
        decided.append(Criterion(name="max_kl", bound=kl_gate.max_kl, measured=kl_gate.kl, met=kl_gate.passed, n=n))
    if not all(criterion.met for criterion in decided):
        return REGRESSION, tuple(decided)
    return ACCEPTED if known else NOT_MEASURED, tuple(decided)


def proven_loss(measured: Measured) -> bool:
    """Return whether top-1 is lost beyond chance: the 95% interval of the drop lies above 0."""
    return measured.drop_ci is not None and measured.drop_ci[0] > 0


def warning(measured: Measured, recipe: Recipe | None) -> str | None:
    """Return the sentence about a loss beyond chance and what to try, or None if there is none.

    Args:
        recipe: of the compressed model; None if it is not known.
    """
    if not proven_loss(measured) or measured.drop is None or measured.drop_ci is None:
        return None
    drop = f"{100 * measured.drop:.2f} points (95%: {interval(measured.drop_ci, 2)})"
    remedy = "" if recipe is None else f"; {_remedy(recipe)}"
    return f"top-1 drops by {drop}, more than chance explains{remedy}"


def milder(recipe: Recipe | None, saving: float) -> MergeOptions | None:
    """Return the options of a model that loses less: half of the saving, or the fitted schedule if that was not tried.

    Args:
        recipe: of the model that loses.
        saving: that it reached, a share of the token-layers.

    Returns:
        None if the recipe is not known, or nothing is left to save.
    """
    # Tolerance: 0.22 of the token-layers may be 0.21999 in floats.
    percents = int(100 * saving + 1e-6)
    if recipe is not None and recipe.schedule == "fitted":
        percents //= 2
    if recipe is None or not percents:
        return None
    return MergeOptions(saving=percents / 100, sides=None if recipe.sides == "both" else recipe.sides)


def fitted_on(fit: Fit) -> str:
    """Return the images that decided a schedule: how many of which set, the seed that drew them, and their hash."""
    hashed = f"seed {fit.seed}, sha256 {fit.sha256[:12]}"
    if fit.data == DRAWN:
        return f"{fit.n:,} {DRAWN}, {hashed}; no data was needed"
    return f"{fit.n:,} images of {fit.data}, {hashed}"


def chosen(fit: Fit) -> str | None:
    """Return the candidate that was taken and those that it beat, or None if there was nothing to choose."""
    if not fit.tried:
        return None
    best, *others = map(_candidate, fit.tried)
    beaten = f", before {', '.join(others[:3])}" if others else ""
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    return f"{best} on {fit.judges:,} other images{beaten}{more}"


def unsure(fit: Fit | None, saving: float) -> str | None:
    """Return why the choice of a schedule is less certain than others, or None.

    Args:
        saving: that the schedule reached, a share of the token-layers.
    """
    if fit is None or fit.data != DRAWN or saving <= UNSURE_ABOVE:
        return None
    return f"above {UNSURE_ABOVE:.0%} saved without images the choice is less certain; {OWN_IMAGES}"


def _remedy(recipe: Recipe) -> str:
    if recipe.schedule != "fitted":
        return "try the schedule that is fitted to the model: --method stm"
    if recipe.fit is not None and recipe.fit.data == DRAWN:
        return "try a smaller --saving, or fit on images of your own: --fit-on DIR"
    return "try a smaller --saving"


def _candidate(tried: Tried) -> str:
    return f"{tried.cut} p={tried.step_scale:g} (KL {tried.kl:.4f})"


def goal_text(fit: Fit | None) -> str | None:
    """Return the outcome that was asked for instead of a budget, in words; None if there was none."""
    if fit is None or (fit.speedup is None and fit.max_drop is None):
        return None
    if fit.speedup is not None:
        return f"{fit.speedup:g}x the dense model's speed"
    return f"at most {100 * (fit.max_drop or 0):g} points lost"


def no_gain(served: ServedSpeed, protection: Protection) -> str:
    """Say that a served model gains nothing on this machine, and what to try."""
    text = f"after optimize() it runs at {served.gain:.2f}x the dense model's speed here: "
    if protection.mode == "dynamic":
        return text + "its hsp weights are computed from every image; --hsp static bakes them"
    return text + "a larger --rate or --saving gains more"
