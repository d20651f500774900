"""Accuracy, agreement and speed of a model on a sample set.

The model and the dense one beside it see the same batches in one pass, so that every image is decoded once. Whole
batches are the unit: on the same machine, backend and threads the same images in the same batches give the same floats,
and a run that is resumed makes the batches that an uninterrupted one would have made.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stm.config import Config
from stm.data.open import as_samples
from stm.data.sets import Batch, SampleSet, batches_of, iterate, workers_for
from stm.distributed import ALONE, World
from stm.errors import NAMES_SHOWN, StmError, UsageError
from stm.measure.environment import environment_of
from stm.measure.records import Identity, Record, RecordFile, check_path, fingerprint, records_of
from stm.measure.stats import summarize
from stm.model.serving import IMAGES_AT_ONCE
from stm.model.vim import ViM
from stm.progress import OnProgress, Progress
from stm.reports import Assessment, EvalReport

Timing = tuple[int, float]  # images, and the seconds that the model took for them


class Run(NamedTuple):
    """What `run` found.

    Args:
        records: one an image, in the set's order.
        images, seconds: the images whose forward was timed, and how long the model took for them; see `timed`.
    """

    records: list[Record]
    images: int
    seconds: float


def evaluate(
    model: ViM,
    data: Any,
    *,
    reference: ViM | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    records: str | Path | None = None,
    workers: int | None = 0,
    on_progress: OnProgress | None = None,
) -> EvalReport:
    """Measure a model: accuracy, and where a dense model is given what compressing cost.

    Args:
        model: a ViM, on the device and in the dtype that it is to be measured in.
        data: a folder of labelled images, a set on the Hub (imagenet-v2, hf:USER/SET:SPLIT), a sample set, pairs
            (image, label), or None for what comes with the package. Without labels there is no accuracy, but agreement
            and KL to the dense model.
        reference: the dense model.
        limit: the most images, drawn at random by `seed`; None: all.
        batch_size: images a batch.
        records: a CSV file for one record an image, which a run that was stopped resumes from.
        workers: processes that decode images; None: as many as suit the set, for scripts with an
            `if __name__ == "__main__":`.
        on_progress: called after every batch.

    Raises:
        UsageError: an option that cannot be, or a reference of another shape.
        DataError: the data cannot be used, no image could be read, or `records` holds another run's.
        StmError: the model's logits are not finite.
    """
    samples = as_samples(data, model.config, limit=limit, seed=seed, need_labels=isinstance(data, str | Path))
    figures = assess(
        model,
        samples,
        reference=reference,
        limit=limit,
        batch_size=batch_size,
        seed=seed,
        records=records,
        workers=workers,
        on_progress=on_progress,
    )
    return EvalReport(command="eval", model=_name(model.config), environment=environment_of(model), **vars(figures))


def assess(
    model: ViM,
    samples: SampleSet,
    *,
    reference: ViM | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    records: str | Path | None = None,
    workers: int | None = None,
    world: World = ALONE,
    on_progress: OnProgress | None = None,
) -> Assessment:
    """The figures of `evaluate`, for a set from which `limit` and `seed` have already drawn.

    Args:
        world: the processes that all call this, and share the work. The first one has the records' file.
    """
    return assess_each(
        model,
        samples,
        reference=reference,
        limit=limit,
        batch_size=batch_size,
        seed=seed,
        records=records,
        workers=workers,
        world=world,
        on_progress=on_progress,
    )[0]


def assess_each(
    model: ViM,
    samples: SampleSet,
    *,
    reference: ViM | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    records: str | Path | None = None,
    workers: int | None = None,
    world: World = ALONE,
    on_progress: OnProgress | None = None,
) -> tuple[Assessment, list[Record]]:
    """As `assess`, with the records that its figures are made of."""
    if batch_size < 1:
        raise UsageError(f"batch size is {batch_size}, expected at least 1")
    if reference is not None:
        _check_pair(model.config, reference.config)
    same_work(world, model, samples)
    file = None
    if records is not None and world.first:
        check_path(records)
        identity = Identity(
            model=fingerprint(model),
            reference=None if reference is None else fingerprint(reference),
            data=samples.fingerprint,
            preprocessing=model.config.preprocessing,
            limit=limit,
            seed=seed,
        )
        file = RecordFile(records, identity, [sample.file for sample in samples.samples], batch_size)
    with nullcontext() if file is None else closing(file):
        found = run(
            model,
            samples,
            reference=reference,
            batch_size=batch_size,
            workers=workers,
            file=file,
            world=world,
            on_progress=on_progress,
        )
    measured = vars(summarize(found.records, data=samples.name, seed=seed))
    broken = tuple(record.error for record in found.records if record.error is not None)[:NAMES_SHOWN]
    if found.images:
        return Assessment(
            **measured, **samples.of_set, broken=broken, images_per_second=found.images / found.seconds
        ), found.records
    reason = {"images_per_second": f"every image was already in {records}"}
    return Assessment(
        **samples.of_set, **measured | {"broken": broken, "reasons": measured["reasons"] | reason}
    ), found.records


def run(
    model: ViM,
    samples: SampleSet,
    *,
    reference: ViM | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    file: RecordFile | None = None,
    world: World = ALONE,
    on_progress: OnProgress | None = None,
) -> Run:
    """The records of a sample set, and the time that the model's forward took.

    Only the model is timed: not decoding, not copying images to the device, not the dense model.

    Args:
        file: where the records go, batch by batch; those that are in it already are not computed again. The first
            process's.
        world: the processes that share the batches; all of them find the same.
    """
    records = world.broadcast(list(file.done) if file is not None else [])
    timings: list[list[Timing]] = [[] for _ in range(world.size)]
    report = on_progress or (lambda progress: None)
    report(Progress("evaluate", len(records), len(samples), "images"))
    batches = iterate(
        samples,
        model.config.preprocessing,
        batch_size=batch_size,
        workers=workers_for(samples, world) if workers is None else workers,
        start=len(records),
        world=world,
    )
    with torch.inference_mode(), evaluating(model, reference):
        for batch in world.in_rounds(batches, batches_of(len(samples) - len(records), batch_size)):
            scored = None if batch is None else _score(model, reference, samples, batch)
            del batch  # its images would be in memory beside those of the next
            for theirs, (done, timing) in zip(timings, filter(None, world.gather(scored)), strict=False):
                if timing[0]:
                    theirs.append(timing)
                if file is not None:
                    file.append(done)
                records += done
                report(Progress("evaluate", len(records), len(samples), "images"))
    return Run(records, *timed(timings))


def timed(timings: Sequence[Sequence[Timing]]) -> Timing:
    """What processes did beside each other: all images, and the seconds of the one that took longest.

    Of each, the first batch, which warms caches up, does not count if there is another.

    Args:
        timings: of each process, its batches.
    """
    warm = [each[1:] or each for each in timings]
    return sum(images for each in warm for images, _ in each), max(sum(seconds for _, seconds in each) for each in warm)


def forward(model: ViM, images: Tensor) -> Tensor:
    """Logits (B, classes) of a batch (B, C, H, W) of any size: a processor takes `IMAGES_AT_ONCE` images after the
    other."""
    parts = images.split(IMAGES_AT_ONCE) if images.device.type == "cpu" else (images,)
    return torch.cat([model(part) for part in parts])


def _score(model: ViM, reference: ViM | None, samples: SampleSet, batch: Batch) -> tuple[list[Record], Timing]:
    """A batch's records in the set's order, and the model's time."""
    logits, dense_logits, seconds = None, None, 0.0
    if batch.indices:
        files = [samples.samples[place].file for place in batch.indices]
        # The larger one first: what it frees holds all that the smaller one needs.
        dense_logits = None if reference is None else logits_of(reference, batch.images, files, "the dense model")[0]
        logits, seconds = logits_of(model, batch.images, files, "the model")
    return recorded(samples, batch, logits, dense_logits), (len(batch.indices), seconds)


def recorded(samples: SampleSet, batch: Batch, logits: Tensor | None, dense_logits: Tensor | None) -> list[Record]:
    """A batch's records in the set's order, the images that could not be read among them; logits (b, classes), None
    where none could."""
    chosen = samples.samples
    records = {
        place: Record(file=chosen[place].file, label=chosen[place].label, error=error)
        for place, error in batch.errors.items()
    }
    if logits is not None:
        files, labels = zip(*((chosen[place].file, chosen[place].label) for place in batch.indices), strict=True)
        records |= zip(batch.indices, records_of(files, labels, logits, dense_logits), strict=True)
    return [records[place] for place in sorted(records)]


def logits_of(model: ViM, images: Tensor, files: Sequence[str], who: str) -> tuple[Tensor, float]:
    """Logits (B, classes) on the CPU, finite, and the seconds until they were there."""
    images = images.to(next(model.parameters()).device)
    start = perf_counter()
    logits = forward(model, images).cpu()  # the copy waits for the device to finish
    seconds = perf_counter() - start
    if not (finite := logits.isfinite().all(-1)).all():
        file = files[int(finite.logical_not().nonzero()[0])]
        half = model.config.dtype != "float32"
        hint = (
            "run it in float32: --dtype float32"
            if half
            else "the weights that the model was made of are at fault: see stm info"
        )
        raise StmError(f"{who}'s logits for {file} are not finite, expected numbers", hint)
    return logits, seconds


@contextmanager
def evaluating(*models: ViM | None) -> Iterator[None]:
    """Evaluation mode for the models that are in training mode."""
    training = [model for model in models if model is not None and model.training]
    for model in training:
        model.eval()
    try:
        yield
    finally:
        for model in training:
            model.train()


def same_work(world: World, model: ViM, samples: SampleSet) -> None:
    """Refuse (DataError) to share work among processes that have other models or other images."""
    if world.size > 1:
        world.check_same(model=fingerprint(model), sample_set=samples.fingerprint)


def _check_pair(config: Config, reference: Config) -> None:
    for what, this, dense in (
        ("classes", config.num_classes, reference.num_classes),
        ("pixels a side", config.model.image_size, reference.model.image_size),
        ("channels", config.model.in_chans, reference.model.in_chans),
    ):
        if this != dense:
            raise UsageError(f"the reference has {dense} {what}, expected the model's {this}")


def _name(config: Config) -> str:
    return config.source.repo or config.source.file or "vim"
