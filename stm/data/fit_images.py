"""Which images a fitted schedule comes from, and which are left to measure it.

An image that decided a schedule says nothing about how good it is. So a set is cut in two by a seed before anything is
computed, and a later run can find the same part again, by its hash.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from stm.config import Config, ModelConfig, Preprocess
from stm.data.images import Sample
from stm.data.open import as_samples
from stm.data.pictures import drawn
from stm.data.sets import SampleSet, iterate
from stm.errors import DataError, UsageError
from stm.recipe import DRAWN

COSTS, JUDGES = 256, 96  # the most images of a set for the costs, and for the choice among candidates
FEWEST = 64  # a smaller set is left whole, to measure on
# Pictures per source. More are worth their time on small models only, and the outcome must not depend on the clock.
_FEW, _MANY, _WORK = 64, 192, 1.92e10


@dataclass(frozen=True)
class FitImages:
    """The images of a fit.

    Args:
        data: the name of the set.
        sources: the images that the costs come from, by kind; kinds count the same, however large their effects are.
        judges: the images that choose among the candidates; None: nothing is chosen.
        seed: what drew them; it draws the probes too.
    """

    data: str
    sources: Mapping[str, SampleSet]
    judges: SampleSet | None = None
    seed: int = 0

    @property
    def n(self) -> int:
        """The number of images that the costs come from."""
        return sum(map(len, self.sources.values()))

    def sha256(self, prep: Preprocess) -> str:
        """Return the hash of all images, as the model takes them.

        Raises:
            DataError: none of them can be read.
        """
        digest, read = hashlib.sha256(), 0
        for samples in (*self.sources.values(), *([] if self.judges is None else [self.judges])):
            for batch in iterate(samples, prep, batch_size=16):
                digest.update(batch.images.numpy().tobytes())
                read += len(batch.indices)
        if not read:
            raise DataError(f"{self.data}: none of the images for the fit could be read", "choose other images")
        return digest.hexdigest()


def pictures(config: Config, *, n: int | None = None, seed: int = 0) -> FitImages:
    """Return pictures that need no data of the user's; see `stm.data.pictures`.

    Args:
        n: how many, of all kinds together; None: 64 to 192 per kind, by the size of the model alone.

    Raises:
        UsageError: fewer than one per kind.
    """
    kinds = 3
    if n is not None and n < kinds:
        raise UsageError(f"fit images is {n}, expected at least {kinds}, one per kind of picture")
    sets = drawn(config, pictures_per_source(config.model) if n is None else -(-n // kinds), seed)
    return FitImages(
        DRAWN, MappingProxyType({kind: in_memory(kind, images) for kind, images in sets.items()}), seed=seed
    )


def pictures_per_source(model: ModelConfig) -> int:
    """Return 192 for a small model, 64 for one of ViM-Ti's size or more."""
    work = model.tokens * model.depth * model.d_model * model.d_inner
    return max(_FEW, min(_MANY, round(_WORK / work)))


def whole(samples: SampleSet, *, n: int | None = None, seed: int = 0, promise: bool = False) -> FitImages:
    """Return images of a set that is there to be fitted on.

    Args:
        n: the images that the costs come from; None: `COSTS`, or their share of a smaller set.
        promise: whether the judges are to keep a promise about accuracy: then all others judge, as few images can
            promise little.

    Raises:
        UsageError: `n` is below 1, or leaves no image to judge by.
        DataError: fewer than two images.
    """
    if len(samples) < 2:
        raise DataError(
            f"{samples.name} has {len(samples)} image{'' if len(samples) == 1 else 's'}, expected at least 2 to fit on:"
            " some give the costs, the others judge the candidates",
            f"name a larger set; {COSTS + JUDGES} images decide best",
        )
    costs = max(1, _for_costs(len(samples), promise)) if n is None else n
    if not 1 <= costs < len(samples):
        raise UsageError(
            f"fit images is {costs}, expected 1 to {len(samples) - 1} of the {len(samples)} images of {samples.name}:"
            " the others judge the candidates"
        )
    return _drawn_from(samples, costs, _for_judges(len(samples) - costs, promise), seed)


def split(
    samples: SampleSet, *, n: int | None = None, seed: int = 0, promise: bool = False
) -> tuple[FitImages, SampleSet] | None:
    """Return a part of a set for the fit, and the rest for measuring: at most half of the set is for the fit.

    Arguments are those of `whole`.

    Returns:
        None if the set has fewer than `FEWEST` images.

    Raises:
        UsageError: `n` asks for more than fits into a half.
    """
    half = len(samples) // 2
    if len(samples) < FEWEST:
        return None
    costs = _for_costs(half, promise) if n is None else n
    if not 1 <= costs < half:
        raise UsageError(
            f"fit images is {n}, expected 1 to {half - 1}: at most half of the {len(samples)} images of {samples.name}"
            " are for the fit",
            "name other images for it: --fit-on",
        )
    chosen = _for_judges(half - costs, promise)
    return _drawn_from(samples, costs, chosen, seed), rest(samples, costs + chosen, seed)


def _for_costs(images: int, promise: bool) -> int:
    return min(COSTS, images // 4 if promise else images * COSTS // (COSTS + JUDGES))


def _for_judges(images: int, promise: bool) -> int:
    return images if promise else min(JUDGES, images)


def check_apart(images: FitImages, samples: SampleSet) -> None:
    """Raise UsageError if an image of a fit is among those to measure on, under whatever name of its folder."""
    measured = set(map(_place, samples.samples))
    fitted = [sample for part in (*images.sources.values(), images.judges) if part for sample in part.samples]
    both = [sample.file for sample in fitted if _place(sample) in measured]
    if both:
        raise UsageError(
            f"{len(both)} of the images of {images.data} to fit on are among those of {samples.name} to measure on,"
            f" such as {both[0]}: the accuracy would be of images that the model was tuned on",
            "leave --fit-on out: a part of the set is then fitted on, and in no number",
        )


def _place(sample: Sample) -> object:
    """Return where an image lies, the same for every path that leads to it."""
    source = sample.source
    if isinstance(source, Tensor):
        return id(source)
    return tuple(os.path.realpath(value) if isinstance(value, Path) else value for value in vars(source).values())


def rest(samples: SampleSet, used: int, seed: int) -> SampleSet:
    """Return the images of a set, in its order, that are not among the first `used` of `shuffled(seed)`."""
    gone = {id(sample) for sample in samples.shuffled(seed).samples[:used]}
    left = tuple(sample for sample in samples.samples if id(sample) not in gone)
    return replace(samples, samples=left, fitted_on=len(samples) - len(left))


def unseen(samples: SampleSet, config: Config) -> SampleSet:
    """Return the images of a set that did not decide a model's schedule.

    If the name of the set is that of the fit's, the fit's part is drawn again, and known by the hash of its images.

    Raises:
        DataError: the fit used all of them.
    """
    fit = None if config.recipe is None else config.recipe.fit
    if fit is None:
        return samples
    used = fit.n + fit.judges
    if fit.data != samples.name or used > len(samples):
        return samples
    again = _drawn_from(samples, fit.n, fit.judges, fit.seed)
    if again.sha256(config.preprocessing) != fit.sha256:
        return samples
    if used == len(samples):
        raise DataError(
            f"the schedule was fitted on all {used} images of {samples.name}, which therefore measure nothing",
            "measure on other images: --data DIR",
        )
    return rest(samples, used, fit.seed)


def as_set(images: Any, config: Config, *, labels: bool = False) -> SampleSet:
    """Return the set of whatever `stm.compress` takes to fit on: a tensor of images, or what `as_samples` takes.

    Args:
        labels: whether they are needed.

    Raises:
        DataError: images of another shape than the model's, or what `as_samples` raises.
    """
    if not isinstance(images, Tensor):
        return as_samples(images, config, need_labels=labels)
    shape = config.model.input_shape
    if images.dim() != 4 or images.shape[1:] != shape or not images.is_floating_point():
        raise DataError(
            f"the images to fit on are {images.dtype} {tuple(images.shape)}, expected normalised floats (n, "
            f"{', '.join(map(str, shape))})"
        )
    return in_memory("images", images.detach().float().cpu())


def in_memory(name: str, images: Tensor) -> SampleSet:
    """Return images as a set without labels: (n, C, H, W) float32, normalised, or (n, 3, H, W) uint8."""
    return SampleSet(name, tuple(Sample(f"{name}-{number}", None, image) for number, image in enumerate(images)))


def _drawn_from(samples: SampleSet, costs: int, judges: int, seed: int) -> FitImages:
    # Labels decide nothing here, so a later run that reads the set with other labels, or none, finds the same part.
    order = samples.shuffled(seed).samples
    return FitImages(
        samples.name,
        MappingProxyType({samples.name: replace(samples, samples=order[:costs])}),
        replace(samples, samples=order[costs : costs + judges]) if judges else None,
        seed,
    )
