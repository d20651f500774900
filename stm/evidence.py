"""What `stm explain` does: measure what merging changes in a model, and write pictures and data."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stm import atomic
from stm.bake import bake
from stm.config import Config
from stm.errors import DataError, UsageError
from stm.measure import explanation, plots
from stm.measure.data import SampleSet, from_files, is_embedded, iterate, open_samples, photographs
from stm.measure.environment import environment_of
from stm.measure.explain import RULES
from stm.measure.images import enlarged
from stm.model import ViM
from stm.recipe import Wish
from stm.reports import ExplainReport, OnProgress
from stm.resolve import From, name_of, open_model

DEFAULT_IMAGES = 3
PLACES = 98  # of each side: every distance at 197 tokens
SHOWN = 448  # pixels of a side that a picture has at least


def explain(
    model: str,
    images: Sequence[str | Path] = (),
    *,
    block: int | None = None,
    places: int = PLACES,
    out: str | Path | None = None,
    force: bool = False,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    **options: Any,
) -> ExplainReport:
    """`stm explain`: the paper's figures and tables of states, for this model and these images, as pictures and data.

    Args:
        model: a MODEL as `stm.resolve.open_model` takes it; a dense one is compressed here, by the wish.
        images: files; none: some of what is embedded.
        block: whose maps are shown, and before which single tokens are merged; the first one after a merge by default.
        places: the most distances of a side that are measured.
        out: the folder to write, named after the model by default.
        force: replace a folder that holds nothing but what this wrote.
        seed: chooses among the embedded images.
        options: the fields of `Wish` and of `stm.resolve.From`.

    Raises:
        UsageError: options that exclude each other or cannot be had, or an output that cannot be written.
        DataError: an image that cannot be read.
        StmError: matplotlib is not installed; what reading the model raises.
    """
    plots.require()
    if len(images) > explanation.MOST_IMAGES:
        raise UsageError(f"{len(images)} images, expected at most {explanation.MOST_IMAGES}: each gets figures of its own")
    source = From(**{name: options.pop(name) for name in list(options) if name in From.__dataclass_fields__})
    wish = Wish(**options)
    output = Path(out) if out is not None else Path(f"{name_of(model)}-explained")
    atomic.check(output, explanation.file_names(), force=force)
    small = _compressed(open_model(model, source), model, wish, seed)
    depth = small.config.model.depth
    if block is None:
        block = 1 + small.schedule.steps[0].after if small.schedule.steps else depth // 2
    if not 1 <= block < depth:
        raise UsageError(f"block is {block}, expected 1 to {depth - 1}: a single token is merged before it")
    samples = _samples(images, small.config, seed)
    (batch,) = iterate(samples, small.config.preprocessing, batch_size=len(samples))
    for error in batch.errors.values():
        raise DataError(error)
    pictures = [(sample.file, enlarged(sample, small.config.preprocessing, SHOWN)) for sample in samples.samples]
    found = explanation.measure(small, batch.images, pictures, block=block, places=places, on_progress=on_progress)
    with atomic.replacing(output, explanation.file_names(), force=force) as folder:
        with plots.style():
            files = explanation.write(folder, found, small, _title(small))
        report = ExplainReport(
            command="explain",
            model=model,
            environment=environment_of(small),
            output=str(output),
            data=samples.name,
            images=tuple(sample.file for sample in samples.samples),
            block=block,
            tokens_per_block=small.schedule.tokens_per_block(depth),
            fading=found.fits,
            losses={rule: _mean([row.cls for row in found.losses if row.rule == rule]) for rule in RULES},
            plan_change=tuple(_mean(changes) for changes in found.plan),
            files=(*files, explanation.SUMMARY),
        )
        (folder / explanation.SUMMARY).write_text(report.to_json() + "\n", encoding="utf-8")
    return report


def _compressed(model: ViM, name: str, wish: Wish, seed: int) -> ViM:
    """The model as it is where it is compressed, else compressed as wished."""
    if model.plan is None:
        return bake(model, **wish.options(), calibration=None, seed=seed, on_progress=None)
    if wish != Wish():
        given = next(f.name for f in dataclasses.fields(Wish) if getattr(wish, f.name) != f.default)
        raise UsageError(f"{given} was given, but {name} is already compressed", "explain its dense source instead, or leave it out")
    return model


def _samples(images: Sequence[str | Path], config: Config, seed: int) -> SampleSet:
    if images:
        return from_files(images)
    return open_samples(None, config=config, limit=DEFAULT_IMAGES, seed=seed) if is_embedded(config) else photographs()


def _title(model: ViM) -> str:
    recipe, shape = model.config.recipe, model.config.model
    method = "no method" if recipe is None else f"{recipe.method}, {recipe.schedule} order"
    return f"{method}, {model.schedule.saving(shape.depth):.1%} of the token-layers saved"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
