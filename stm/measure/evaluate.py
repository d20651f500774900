"""Accuracy, agreement and speed of a model on a sample set.

The model and its dense reference see the same batches in one pass, so every image is decoded once. Whole batches are
the unit of work. The last digits of a logit depend on the size of its batch; on the same machine, backend and number of
threads, the same images in the same batches give the same floats. A resumed run therefore makes the batches that an
uninterrupted run would have made, and its records are the same to the byte.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stm.bar import drawn
from stm.config import INT8, Config, in_pixels
from stm.data.fit_images import unseen
from stm.data.labels import NoLabels
from stm.data.open import as_samples
from stm.data.sets import Batch, SampleSet, batches_of, iterate, workers_for
from stm.distributed import ALONE, World
from stm.errors import NAMES_SHOWN, StmError, UsageError
from stm.evaluations import Assessment
from stm.measure.environment import environment_of
from stm.measure.records import Identity, Record, RecordFile, check_path, fingerprint, records_of
from stm.measure.stats import summarize
from stm.model.serving import IMAGES_AT_ONCE, Served
from stm.model.vim import ViM
from stm.options import EvalOptions
from stm.progress import Meter, OnProgress
from stm.reports import EvalReport

Runs = ViM | Served
Timing = tuple[int, float]  # a number of images, and the seconds that the model took for them


class Run(NamedTuple):
    """The result of `run`.

    Args:
        records: one per image, in the set's order.
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
    progress: bool = False,
    on_progress: OnProgress | None = None,
) -> EvalReport:
    """Measure a model: its accuracy and, if a dense model is given, what compressing it cost.

    Args:
        model: a ViM, on the device and in the dtype to measure.
        data: a folder of labelled images, a set on the Hub (imagenet-v2, hf:USER/SET:SPLIT), a sample set, pairs
            (image, label), or None for what comes with the package. Without labels there is no accuracy, but agreement
            and KL to the dense model. Images that decided the model's schedule are left out.
        reference: the dense model. Its images may have another size if the set holds files: each model then gets its
            own input of each image. A backbone needs one of its own size: the distance of their features is measured.
        limit: the most images, drawn at random by `seed`; None: all.
        batch_size: images per batch.
        records: a CSV file for one record per image, from which a stopped run resumes.
        workers: processes that decode images; None: as many as suit the set, in scripts with `if __name__ == ...`.
        progress: draw a bar, in a terminal or a notebook.
        on_progress: called with each `stm.progress.Progress`, at least after every batch.

    Raises:
        UsageError: an option that cannot be, or a reference of another shape.
        DataError: the data cannot be used, no image could be read, or `records` holds another run's.
        StmError: the model's logits are not finite.

    Examples:
        >>> dense = stm.load("vim-digits")
        >>> report = stm.evaluate(stm.compress(dense), None, reference=dense, limit=8)
        >>> report.data, report.n
        ('digits-heldout', 8)
    """
    with drawn(progress, on_progress, stage="evaluate") as tell:
        try:
            samples = as_samples(data, model.config, need_labels=isinstance(data, str | Path))
        except NoLabels:
            if reference is None:
                raise
            samples = as_samples(data, model.config, need_labels=False)
        samples = unseen(samples, model.config).take(limit, seed)
        if not model.config.num_classes:
            from stm.measure.judge import features_report  # below this module

            return features_report(_name(model.config), model, reference, samples, seed, records, tell)
        images = EvalOptions(limit=limit, batch_size=batch_size, seed=seed, workers=workers)
        figures = assess(model, samples, images, reference=reference, records=records, on_progress=tell)
    return EvalReport(command="eval", model=_name(model.config), environment=environment_of(model), **figures.reported)


def assess(
    model: ViM,
    samples: SampleSet,
    images: EvalOptions = EvalOptions(),
    *,
    reference: ViM | None = None,
    records: str | Path | None = None,
    world: World = ALONE,
    on_progress: OnProgress | None = None,
) -> Assessment:
    """Measure as `evaluate` does, on a set that `images` has already opened and drawn from.

    Args:
        world: the processes that all call this function and share the work. The first one has the records' file.
    """
    return assess_each(
        model, samples, images, reference=reference, records=records, world=world, on_progress=on_progress
    )[0]


def assess_each(
    model: ViM,
    samples: SampleSet,
    images: EvalOptions = EvalOptions(),
    *,
    reference: ViM | None = None,
    records: str | Path | None = None,
    world: World = ALONE,
    on_progress: OnProgress | None = None,
) -> tuple[Assessment, list[Record]]:
    """Measure as `assess` does, and return the records behind its figures too."""
    batch_size, seed = images.batch_size, images.draws_by
    if batch_size < 1:
        raise UsageError(f"batch size is {batch_size}, expected at least 1")
    if reference is not None:
        _check_pair(model.config, reference.config, samples)
    same_work(world, model, samples)
    # Before the first batch: a run of an hour must not end at a file that cannot be written.
    file = None
    if records is not None and world.first:
        check_path(records)
        identity = Identity(
            model=fingerprint(model),
            reference=None if reference is None else fingerprint(reference),
            data=samples.fingerprint,
            preprocessing=model.config.preprocessing,
            limit=images.limit,
            seed=seed,
        )
        file = RecordFile(records, identity, [sample.file for sample in samples.samples], batch_size)
    with nullcontext() if file is None else closing(file):
        result = run(
            model,
            samples,
            reference=reference,
            batch_size=batch_size,
            workers=images.workers,
            file=file,
            world=world,
            on_progress=on_progress,
        )
    measured = vars(summarize(result.records, data=samples.name, seed=seed))
    broken = tuple(record.error for record in result.records if record.error is not None)[:NAMES_SHOWN]
    if result.images:
        return Assessment(
            **measured, **samples.of_set, broken=broken, images_per_second=result.images / result.seconds
        ), result.records
    reason = {"images_per_second": f"every image was already in {records}"}
    return Assessment(
        **samples.of_set, **measured | {"broken": broken, "reasons": measured["reasons"] | reason}
    ), result.records


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
    """Return the records of a sample set, and the time that the model's forward took.

    Only the model is timed: not decoding, not copying images to the device, not the dense model.

    Args:
        file: takes the records, batch by batch. Records that it already holds are not computed again. Only the first
            process has one.
        world: the processes that share the batches. All of them return the same.
    """
    # Only the first process knows what an earlier run finished; all must start with the same image.
    records = world.broadcast(list(file.done) if file is not None else [])
    timings: list[list[Timing]] = [[] for _ in range(world.size)]
    passes = 1 if reference is None else 2
    meter = Meter(on_progress, "evaluate", len(samples), passes=passes, done=len(records))
    workers = workers_for(samples, world) if workers is None else workers
    options = {"batch_size": batch_size, "workers": workers, "start": len(records)}
    batches = _inputs(samples, model, reference, world=world, **options)
    with torch.inference_mode(), evaluating(model, reference):
        runs, reference_runs = _runner(model), None if reference is None else _runner(reference)
        for inputs in world.in_rounds(batches, batches_of(len(samples) - len(records), batch_size)):
            # In the last round a process may have no batch left. It still takes part: every process must gather.
            meter.begin(min(world.size * batch_size, len(samples) - len(records)))
            scored = None if inputs is None else _score(runs, reference_runs, samples, *inputs, meter)
            del inputs  # its images would be in memory beside those of the next batch
            # Results arrive in the order of the processes, which is the order of the batches, so records stay sorted.
            for theirs, (done, timing) in zip(timings, filter(None, world.gather(scored)), strict=False):
                if timing[0]:
                    theirs.append(timing)
                if file is not None:
                    file.append(done)
                records += done
                meter.finished(len(records))
    return Run(records, *timed(timings))


def timed(timings: Sequence[Sequence[Timing]]) -> Timing:
    """Return the images of all processes together, and the seconds of the process that took longest.

    The first batch of each process does not count if there is another: it warms caches up.

    Args:
        timings: the batches of each process.
    """
    warm = [batches[1:] or batches for batches in timings]
    images = sum(number for batches in warm for number, _ in batches)
    return images, max(sum(seconds for _, seconds in batches) for batches in warm)


def _runner(model: ViM) -> Runs:
    """Return what runs a model many times: on a processor only a served int8 model has int8 products."""
    serves = model.config.dtype == INT8 and model.cls_token.device.type == "cpu"
    return model.optimize(batch_size=IMAGES_AT_ONCE) if serves else model


def forward(model: Runs, images: Tensor, on_images: Callable[[int], None] | None = None) -> Tensor:
    """Return the logits (B, classes) of a batch (B, C, H, W) of any size.

    Args:
        on_images: called with the number of images of each part but the last.
    """
    # On a processor the activations of few images stay in its caches; a large batch at once is slower and takes more
    # memory. A GPU needs the whole batch to be busy.
    parts = images.split(IMAGES_AT_ONCE) if images.device.type == "cpu" else (images,)
    logits = []
    for number, part in enumerate(parts, start=1):
        logits.append(model(part))
        if on_images is not None and number < len(parts):
            on_images(len(part))
    return torch.cat(logits)


def _inputs(samples: SampleSet, model: ViM, reference: ViM | None, **options: Any) -> Iterator[tuple[Batch, Tensor]]:
    """Return each batch of the model, and the same images as the reference takes them."""
    batches = iterate(samples, model.config.preprocessing, **options)
    # `map` lets go of a batch when it has returned it; a generator would hold it while the next one is decoded.
    if reference is None or reference.config.model.image_size == model.config.model.image_size:
        return map(_of_one, batches)
    return map(_of_both, batches, iterate(samples, reference.config.preprocessing, **options))


def _of_one(batch: Batch) -> tuple[Batch, Tensor]:
    return batch, batch.images


def _of_both(batch: Batch, other: Batch) -> tuple[Batch, Tensor]:
    """Return the images that both sizes take, in the size of each. A narrow image may be one that only one takes."""
    both = [index for index in batch.indices if index in other.indices]
    mine, theirs = ([each.indices.index(index) for index in both] for each in (batch, other))
    return Batch(tuple(both), batch.images[mine], other.errors | batch.errors), other.images[theirs]


def _score(
    model: Runs,
    reference: Runs | None,
    samples: SampleSet,
    batch: Batch,
    for_reference: Tensor,
    meter: Meter,
) -> tuple[list[Record], Timing]:
    """Return a batch's records in the set's order, and the model's time."""
    logits, dense_logits, seconds = None, None, 0.0
    if batch.indices:
        files = [samples.samples[index].file for index in batch.indices]
        # The larger model runs first: the memory that it frees holds all that the smaller one needs.
        if reference is not None:
            dense_logits = logits_of(reference, for_reference, files, "the dense model", meter.passed)[0]
        name = "" if reference is None else "the model"  # alone, it needs no name
        logits, seconds = logits_of(model, batch.images, files, "the model", lambda n, _: meter.passed(n, name))
    return recorded(samples, batch, logits, dense_logits), (len(batch.indices), seconds)


def recorded(samples: SampleSet, batch: Batch, logits: Tensor | None, dense_logits: Tensor | None) -> list[Record]:
    """Return a batch's records in the set's order, including one for each image that could not be read.

    Args:
        logits: (b, classes) of the images that could be read; None if none could.
        dense_logits: the same of the dense model; None if there is none.
    """
    chosen = samples.samples
    records = {
        index: Record(file=chosen[index].file, label=chosen[index].label, error=error)
        for index, error in batch.errors.items()
    }
    if logits is not None:
        files, labels = zip(*((chosen[index].file, chosen[index].label) for index in batch.indices), strict=True)
        records |= zip(batch.indices, records_of(files, labels, logits, dense_logits), strict=True)
    # Batches hold broken images apart from the others: put each record back in its position in the set.
    return [records[index] for index in sorted(records)]


def logits_of(
    model: Runs,
    images: Tensor,
    files: Sequence[str],
    who: str,
    on_images: Callable[[int, str], None] | None = None,
) -> tuple[Tensor, float]:
    """Return finite logits (B, classes) on the CPU, and the seconds until they were there.

    Args:
        on_images: called with a number of images, whenever some have passed, and with `who`. Its time does not count.

    Raises:
        StmError: a logit is not finite. The sentence names `who`, the model, and the file.
    """
    images = images.to(next(model.parameters()).device)
    aside, left = 0.0, len(images)

    def tell(number: int) -> None:
        nonlocal aside, left
        begin = perf_counter()
        left -= number
        if on_images is not None:
            on_images(number, who)
        aside += perf_counter() - begin

    start = perf_counter()
    logits = forward(model, images, tell).cpu()  # the copy waits for the device to finish
    seconds = perf_counter() - start - aside
    if on_images is not None:
        on_images(left, who)
    if not (finite := logits.isfinite().all(-1)).all():
        # Refused, not recorded: NaN compares as false, so such a model would look merely bad.
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
    """Put models that are in training mode into evaluation mode, and back at the end."""
    # Models in evaluation mode are left alone, so that the end of the block does not put them into training mode.
    training = [model for model in models if model is not None and model.training]
    for model in training:
        model.eval()
    try:
        yield
    finally:
        for model in training:
            model.train()


def same_work(world: World, model: ViM, samples: SampleSet) -> None:
    """Raise DataError if the processes that share work have different models or different images."""
    if world.size > 1:
        world.check_same(model=fingerprint(model), sample_set=samples.fingerprint)


def _check_pair(config: Config, reference: Config, samples: SampleSet) -> None:
    # Both models see the same images, and must know the same classes. Tensors have one size, and cannot be resized.
    for what, this, dense in (
        ("classes", config.num_classes, reference.num_classes),
        ("pixels", in_pixels(config.model.image_size), in_pixels(reference.model.image_size)),
        ("channels", config.model.in_chans, reference.model.in_chans),
    ):
        if this != dense and (what != "pixels" or isinstance(samples.samples[0].source, Tensor)):
            raise UsageError(f"the reference has {dense} {what}, expected the model's {this}")


def _name(config: Config) -> str:
    return config.source.repo or config.source.file or "vim"
