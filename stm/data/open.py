"""Open the sample set that a user names."""

import operator
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from stm.assets import EMBEDDED_MODEL, FOLDER
from stm.config import Config
from stm.data.folders import as_set, labelled_folder, part_of, unlabelled_folder
from stm.data.formats import open_image
from stm.data.images import Crop, Pixels, Sample
from stm.data.labels import NoLabels
from stm.data.sets import SampleSet, evenly
from stm.data.tables import TABLE_SUFFIXES
from stm.distributed import ALONE, World
from stm.errors import DataError, check_local, check_name, said
from stm.options import EvalOptions, SetOptions
from stm.progress import OnProgress

DIGITS = FOLDER / f"{EMBEDDED_MODEL}.samples.safetensors"  # beside the folder, which holds a model and nothing else
PHOTOGRAPHS = FOLDER / "photographs"
CROPS = "photograph-crops"  # the name of the set of their crops


def open_samples(
    spec: str | Path | None,
    *,
    config: Config,
    limit: int | None = None,
    seed: int = 0,
    need_labels: bool = True,
    how: SetOptions = SetOptions(),
    token: str | None = None,
    world: World = ALONE,
    on_progress: OnProgress | None = None,
) -> SampleSet:
    """Return the sample set that a user names.

    Args:
        spec: a folder (`labelled_folder` lists the layouts) or a table of the images beside it, a set on the Hub
            (`stm.data.hub_sets`), shards that are read in place (`stm.data.streams`), or None for a set of the package.
            For vim-digits and models made of it that set is the held-out digits; for any other model it is unlabelled
            crops of three photographs.
        config: of the model that will see the images.
        limit, seed: see `SampleSet.take`.
        need_labels: if False, every image in the folder or below it is taken, and none has a label. Nor has one that a
            backbone sees.
        how: which part of the set is read, and which columns.
        token, on_progress: of a download.
        world: the processes that all open this set.

    Raises:
        DataError: the folder does not exist or cannot be read, or its labels are missing or not the model's classes.
        HubError: the Hub does not give the set.
        UsageError: a limit below 1.
    """
    need_labels = need_labels and config.num_classes > 0  # a backbone has no classes
    # From the form that only one reader takes to the folder, which may have any name.
    if spec is None:
        how.refuse_reading(", and what is embedded has neither parts nor columns", "name the set: --data DATA")
        return (embedded_digits() if is_embedded(config) else photograph_crops()).take(limit, seed)
    from stm.data.hub_sets import LABEL_QUERY, open_hub_set
    from stm.data.streams import is_stream, open_stream
    from stm.hub.aliases import is_set_name  # below this module

    # A folder may have any name. Of shards and sets on the Hub, what follows `?label=` is a column.
    named, query, column = (str(spec), "", "") if Path(spec).is_dir() else str(spec).partition(LABEL_QUERY)
    reader = open_stream if is_stream(named) else open_hub_set if is_set_name(named) else None
    if reader is not None:
        of_shards = reader(
            named,
            config=config,
            need_labels=need_labels,
            how=replace(how, label_column=column) if query else how,
            token=token,
            world=world,
            on_progress=on_progress,
        )
        return of_shards.take(limit, seed)
    check_local(spec, DataError)
    folder, table = Path(spec), None
    if folder.suffix.lower() in TABLE_SUFFIXES and folder.is_file():
        folder, table = folder.parent, folder
    if not folder.is_dir():
        raise DataError(
            f"{folder} {'is not a folder' if folder.exists() else 'does not exist'}, expected a folder of images"
        )
    if how.split is not None:
        folder = part_of(folder, how.split)
    name = Path(os.path.abspath(folder)).name
    check_name(name, DataError)  # reports and config.json record this name; names of images need not be text
    if need_labels:
        files = labelled_folder(
            folder, config.num_classes, config.label_names, how, table, channels=config.model.in_chans
        )
    else:
        files = unlabelled_folder(folder, how, table, channels=config.model.in_chans)
    return as_set(name, [files]).take(limit, seed)


def open_chosen(
    images: EvalOptions,
    config: Config,
    *,
    need_labels: bool = True,
    token: str | None = None,
    world: World = ALONE,
    on_progress: OnProgress | None = None,
) -> SampleSet:
    """Return the set that `images` names, cut to the images that its limit and seed choose.

    Images that decided the schedule of the model are left out. Arguments and errors are those of `open_samples`.

    Args:
        config: of the model that is measured.
        need_labels: if False, a set that holds no labels at all is welcome too. Labels that do not fit the model are
            an error all the same: a figure without them would hide a wrong set.
    """

    def opened(labels: bool) -> SampleSet:
        return open_samples(
            images.data,
            config=config,
            need_labels=labels,
            how=images,
            token=token,
            world=world,
            on_progress=on_progress,
        )

    try:
        samples = opened(True)
    except NoLabels:
        if need_labels:
            raise
        samples = opened(False)
    from stm.data.fit_images import unseen  # below this module

    return unseen(samples, config).take(images.limit, images.draws_by)


def as_samples(
    data: Any, config: Config, *, limit: int | None = None, seed: int = 0, need_labels: bool = True
) -> SampleSet:
    """Return the sample set of whatever `stm.evaluate` takes as data.

    Args:
        data: a `SampleSet`, anything that `open_samples` takes, or any iterable of pairs (image, label). The image is
            (C, H, W), normalised for the model; the label is an index or None. Pairs are held in memory.
        config: of the model that will see the images.

    Raises:
        DataError: see `open_samples`; or an item is no such pair, or a label is not a class of the model.
    """
    if data is None or isinstance(data, str | Path):
        return open_samples(data, config=config, limit=limit, seed=seed, need_labels=need_labels)
    samples = data if isinstance(data, SampleSet) else _from_pairs(data, config)
    if not config.num_classes:
        return samples.take(limit, seed)
    # A set may have been opened for another model, so its labels are checked against this one.
    for sample in samples.samples:
        if sample.label is not None and not 0 <= sample.label < config.num_classes:
            raise DataError(f"{sample.file}: class {sample.label}, expected 0 to {config.num_classes - 1}")
        if sample.label is None and need_labels:
            raise DataError(f"{sample.file} has no label")
    return samples.take(limit, seed)


def is_embedded(config: Config) -> bool:
    """Return whether the model is vim-digits or was made of it."""
    return EMBEDDED_MODEL in (config.source.repo, config.source.file)


def embedded_digits(path: Path = DIGITS) -> SampleSet:
    """Return the third of the UCI digits that vim-digits was not trained on."""
    # images (n, S, S) uint8, labels (n,) int64
    tensors = load_file(path)
    images, labels = tensors["images"].contiguous(), tensors["labels"].tolist()
    sources = [Pixels(image.numpy().tobytes(), image.shape[-1]) for image in images]
    rows = enumerate(zip(labels, sources, strict=True))
    return SampleSet(
        "digits-heldout", tuple(Sample(f"digit-{index:04}.png", label, source) for index, (label, source) in rows)
    )


def photographs(folder: Path = PHOTOGRAPHS) -> SampleSet:
    """Return the three photographs, without labels."""
    samples = []
    for path in sorted(folder.glob("*.jpg")):
        with open_image(path) as image:
            samples.append(Sample(path.name, None, Crop(path, (0, 0, *image.size))))
    return SampleSet("photographs", tuple(samples))


def photograph_crops(folder: Path = PHOTOGRAPHS) -> SampleSet:
    """Return 48 square crops of the three photographs, without labels.

    Of each photograph there are 4 crops of the full height and 12 of two thirds of the height, evenly spread.
    """
    samples = []
    for path in sorted(folder.glob("*.jpg")):
        with open_image(path) as image:
            width, height = image.size
        for rows, columns, side in ((1, 4, height), (2, 6, height * 2 // 3)):
            # Rounded down: to the nearest pixel, crops and the weights averaged over them would differ from those of
            # folders that earlier versions made.
            for top in map(int, evenly(rows, height - side)):
                for left in map(int, evenly(columns, width - side)):
                    name = f"{path.name}[{side}x{side}+{left}+{top}]"
                    samples.append(Sample(name, None, Crop(path, (left, top, left + side, top + side))))
    return SampleSet(CROPS, tuple(samples))


def _from_pairs(pairs: Iterable[Any], config: Config) -> SampleSet:
    shape = config.model.input_shape
    samples = []
    for number, pair in enumerate(pairs):
        try:
            image, label = pair
            label = None if label is None else operator.index(label)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"item {number} of the data is not a pair of an image and its class: {said(error)}"
            ) from error
        if not isinstance(image, Tensor) or not image.is_floating_point():
            kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise DataError(
                f"item {number} of the data: the image is {kind}, expected a normalised tensor of floats {shape}"
            )
        if image.shape != shape:
            raise DataError(f"item {number} of the data: the image is {tuple(image.shape)}, expected {shape}")
        samples.append(Sample(f"item-{number}", label, image.detach().float()))
    if not samples:
        raise DataError("the data holds no images")
    return SampleSet("pairs", tuple(samples))
