"""Which images a command fits a schedule on, and what it says about the outcome."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import fmean

from stm.config import Config
from stm.data.fit_images import FEWEST, FitImages, check_apart, pictures, whole
from stm.data.fit_images import split as cut_in_two
from stm.data.open import open_samples, photograph_crops
from stm.data.sets import SampleSet
from stm.errors import UsageError
from stm.fitting import Fitting
from stm.fitting import fit as fitted
from stm.measure.stats import clearly_below
from stm.model.vim import ViM
from stm.options import FitOptions, SetOptions
from stm.progress import OnProgress
from stm.recipe import DRAWN
from stm.verdicts import OWN_IMAGES, unsure

# Crops of the photographs on which a schedule is set beside the presets. Losses differ by factors there, so half of the
# crops tell as much, and on ViM-S the whole set would take longer than the rest of a second budget.
CROPS = 24


def fit_set(
    fit: FitOptions,
    config: Config,
    samples: SampleSet | None = None,
    *,
    split: bool = False,
    labels: bool = False,
    limit: int | None = None,
    seed: int = 0,
    how: SetOptions = SetOptions(),
    token: str | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[FitImages, SampleSet | None]:
    """Return the images of a fit, and what is left of `samples` to measure on.

    Args:
        config: of the dense model.
        samples: what is measured on.
        split: whether a part of it is for the fit, if it is large enough and `fit` names no other images.
        labels: whether the judges keep a promise about accuracy, for which they need labels.
        limit: measure on so many images.
        how: how the images that `fit` names are read.

    Raises:
        UsageError: more images than there are, images that would be measured on too, or too few for a promise.
        DataError, HubError: see `open_samples`.
    """
    if fit.fit_on is not None:
        own = open_samples(
            fit.fit_on, config=config, seed=seed, need_labels=labels, how=how, token=token, on_progress=on_progress
        )
        images = whole(own, n=fit.fit_images, seed=seed, promise=labels)
        if samples is not None:
            check_apart(images, samples)
        return images, samples
    parts = None if samples is None or not split else cut_in_two(samples, n=fit.fit_images, seed=seed, promise=labels)
    if parts is not None:
        return parts[0], parts[1].take(limit, seed)
    if labels and samples is not None and split:
        raise UsageError(
            f"{samples.name} has {len(samples)} images, expected at least {FEWEST}: one part chooses the saving, the"
            " rest says what is true",
            "give more labelled images, or a --rate or --saving",
        )
    left = None if samples is None else samples.take(limit, seed)
    return pictures(config, n=fit.fit_images, seed=seed), left


def fit_once(
    fit: FitOptions,
    dense: ViM,
    *,
    seed: int = 0,
    how: SetOptions = SetOptions(),
    token: str | None = None,
    on_progress: OnProgress | None = None,
) -> Callable[[], Fitting]:
    """Return what fits a model at the first call, and gives the same fit at every later one.

    This is for a table of methods: all of them are measured on all images of a set, so no part of it is for the fit.
    """

    @cache
    def fitting() -> Fitting:
        images, _ = fit_set(fit, dense.config, seed=seed, how=how, token=token, on_progress=on_progress)
        return fitted(dense, images, keep=not fit.no_cache, on_progress=on_progress)

    return fitting


def check_different(data: str | Path | None, other: str | Path | None, purpose: str, hint: str | None = None) -> None:
    """Raise UsageError if the images to measure on are also named for something that decides the model.

    Args:
        purpose: completes the sentence "DATA cannot both ... and measure".
    """
    if data is not None and other is not None and os.path.realpath(other) == os.path.realpath(data):
        raise UsageError(
            f"{data} cannot both {purpose} and measure: the accuracy would be of images that the model was tuned on",
            hint,
        )


def check_fit_on(data: str | Path | None, fit: FitOptions) -> None:
    """Raise UsageError if the images to fit on are those to measure on."""
    hint = "leave --fit-on out: a part of the set is then fitted on, and in no number"
    check_different(data, fit.fit_on, "be fitted on", hint)


def set_notes(images: FitImages, given: SampleSet | None) -> tuple[str, ...]:
    """Return what a reader should know of the images of a fit.

    Args:
        given: the set of the user's that the command was to measure on, before a part of it was taken for the fit.
    """
    if given is None or images.data != DRAWN:
        return ()
    return (
        f"{given.name} has {len(given)} images, fewer than {FEWEST}: all of them measure, and the schedule was fitted"
        f" on {DRAWN}",
    )


def fit_notes(
    fitting: Fitting,
    small: ViM,
    given: SampleSet | None = None,
    *,
    checked: bool = True,
    on_progress: OnProgress | None = None,
) -> tuple[str, ...]:
    """Return what a reader should know of a fitted schedule.

    Args:
        small: the compressed model.
        given: the set of the user's that the command was to measure on, before a part of it was taken for the fit.
        checked: whether a schedule of drawn pictures is compared with the other presets, on crops of the photographs.
    """
    recipe, images = small.config.recipe, fitting.images
    if recipe is None or recipe.fit is None:
        return ()
    notes = list(set_notes(images, given))
    if images.data != DRAWN:
        return tuple(notes)
    if doubt := unsure(recipe.fit, small.schedule.saving(small.config.model.depth)):
        notes.append(doubt)
    if not checked:
        return tuple(notes)
    ours, *others = fitting.beside_presets(small, photograph_crops().take(CROPS), on_progress)
    for name, kl in others:
        if not clearly_below(ours[1], kl):
            notes.append(
                f"on crops of the photographs the fitted schedule is not clearly nearer to the dense model than {name}:"
                f" KL {fmean(ours[1]):.4f} against {fmean(kl):.4f}; {OWN_IMAGES}"
            )
    return tuple(notes)
