"""`stm predict`: the most likely classes of images."""

from collections.abc import Sequence
from pathlib import Path

import torch

from stm.config_file import class_names
from stm.data.folders import unlabelled_folder
from stm.data.sets import from_files, iterate
from stm.errors import DataError, check_local
from stm.loading import open_classifier
from stm.measure.environment import environment_of
from stm.measure.evaluate import logits_of
from stm.options import ModelOptions
from stm.progress import Meter, OnProgress
from stm.reports import Guess, Prediction, PredictReport


def predict(
    model: str,
    images: Sequence[str | Path],
    source: ModelOptions = ModelOptions(),
    *,
    batch_size: int = 32,
    workers: int = 0,
    on_progress: OnProgress | None = None,
) -> PredictReport:
    """Run `stm predict`: return the five most likely classes of each image.

    Args:
        model, source: a MODEL, and how to open it; see `stm.load`.
        images: files, and folders, of which all images in them and below are taken.
        batch_size: images per forward.
        workers: processes that decode images.

    Raises:
        DataError: no image could be read. If only some could not, the prediction of each says why.
    """
    vim = open_classifier(model, source, on_progress)
    labels = class_names(vim.config)
    samples, predictions = from_files(_files(images, vim.config.model.in_chans)), list[Prediction]()
    meter = Meter(on_progress, "predict", len(samples))
    for batch in iterate(samples, vim.config.preprocessing, batch_size=batch_size, workers=workers):
        # An image that cannot be read gets a prediction too, so that every file has exactly one.
        by_index = {
            index: Prediction(file=samples.samples[index].file, error=error) for index, error in batch.errors.items()
        }
        if batch.indices:
            files = [samples.samples[index].file for index in batch.indices]
            # As fractions of all classes, also those beyond the five: the shown ones need not add up to one.
            with torch.inference_mode():
                logits = logits_of(vim, batch.images, files, "the model", lambda n, _: meter.passed(n))[0]
                # (B, 5) each; fewer if the model knows fewer classes
                values, classes = logits.softmax(-1).topk(min(5, len(labels)))
            for index, file, best in zip(
                batch.indices, files, zip(classes.tolist(), values.tolist(), strict=True), strict=True
            ):
                guesses = (
                    Guess(index=label, label=labels[label], probability=p) for label, p in zip(*best, strict=True)
                )
                by_index[index] = Prediction(file=file, top5=tuple(guesses))
        # In the order of the command line, which is how a script pairs answers with its files.
        predictions += [by_index[index] for index in sorted(by_index)]
        meter.finished(len(predictions))
    if all(prediction.error is not None for prediction in predictions):
        raise DataError(f"no image could be read: {predictions[0].error}")
    return PredictReport(
        command="predict", model=model, environment=environment_of(vim), predictions=tuple(predictions)
    )


def _files(images: Sequence[str | Path], channels: int) -> list[Path]:
    """Return the files that were named, with the images of each folder in its place."""
    files = []
    for path in map(Path, images):
        check_local(path, DataError)
        files += (
            [path / sample.file for sample in unlabelled_folder(path, channels=channels).samples]
            if path.is_dir()
            else [path]
        )
    return files
