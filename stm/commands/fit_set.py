"""Which images a command fits a schedule on, and what it says about the outcome."""

from statistics import fmean

from stm.config import DRAWN, Config
from stm.data.fit_images import FEWEST, JUDGES, FitImages, pictures, whole
from stm.data.fit_images import split as cut_in_two
from stm.data.open import open_samples, photograph_crops
from stm.data.sets import SampleSet
from stm.fitting import Fitting
from stm.measure.stats import clearly_below
from stm.model.vim import ViM
from stm.options import FitOptions
from stm.progress import OnProgress
from stm.verdicts import OWN_IMAGES, unsure


def fit_set(
    fit: FitOptions,
    config: Config,
    samples: SampleSet | None = None,
    *,
    split: bool = False,
    labels: bool = False,
    limit: int | None = None,
    seed: int = 0,
    token: str | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[FitImages, SampleSet | None]:
    """Return the images of a fit, and what is left of `samples` to measure on.

    Args:
        config: of the dense model.
        samples: what is measured on.
        split: whether a part of it is for the fit, if it is large enough and `fit` names no other images.
        labels: whether the judges need labels; then as many of the set as possible judge.
        limit: measure on so many images.

    Raises:
        UsageError: more images than there are.
        DataError, HubError: see `open_samples`.
    """
    judges = JUDGES if not labels else 10**9
    if fit.fit_on is not None:
        own = open_samples(
            fit.fit_on, config=config, seed=seed, need_labels=labels, token=token, on_progress=on_progress
        )
        return whole(own, n=fit.fit_images, seed=seed, judges=judges), samples
    parts = None if samples is None or not split else cut_in_two(samples, n=fit.fit_images, seed=seed, judges=judges)
    if parts is not None:
        return parts[0], parts[1].take(limit, seed)
    return pictures(config, n=fit.fit_images, seed=seed), samples


def fit_notes(
    fitting: Fitting, small: ViM, given: SampleSet | None = None, on_progress: OnProgress | None = None
) -> tuple[str, ...]:
    """Return what a reader should know of a fitted schedule.

    Args:
        small: the compressed model.
        given: the set of the user's that the command was to measure on, before a part of it was taken for the fit.
    """
    recipe, images = small.config.recipe, fitting.images
    if recipe is None or recipe.fit is None:
        return ()
    if images.data != DRAWN:
        if given is None or given.name != images.data:
            return ()
        used = images.n + recipe.fit.judges
        return (f"{used} of the {len(given)} images of {images.data} decided the schedule, and are in no number",)
    notes = []
    if given is not None:
        notes.append(
            f"{given.name} has {len(given)} images, fewer than {FEWEST}: all of them measure, and the schedule was"
            f" fitted on {DRAWN}"
        )
    if doubt := unsure(recipe.fit, small.schedule.saving(small.config.model.depth)):
        notes.append(doubt)
    ours, *others = fitting.beside_presets(small, photograph_crops(), on_progress)
    for name, kl in others:
        if not clearly_below(ours[1], kl):
            notes.append(
                f"on crops of the photographs the fitted schedule is not clearly nearer to the dense model than {name}:"
                f" KL {fmean(ours[1]):.4f} against {fmean(kl):.4f}; {OWN_IMAGES}"
            )
    return tuple(notes)
