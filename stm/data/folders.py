"""Read folders of images and their labels."""

import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from stm.data.arrays import ARRAY
from stm.data.formats import SUFFIXES, is_image
from stm.data.images import MODES, ImageFile, Sample
from stm.data.labels import SPLITS, NoLabels, class_indices, names_in_order, spelled
from stm.data.sets import SampleSet
from stm.data.tables import LABELS, TABLES, TINY, Row, as_here, read_table
from stm.data.validation import GROUND_TRUTH, KAGGLE, KIT, META, SYNSETS, VALIDATION, labels_of, pairs_in
from stm.errors import DataError, UsageError, listed
from stm.options import SetOptions

SEEN = (*TABLES, KAGGLE, GROUND_TRUTH, META, *SYNSETS)  # beside images, and no images that were left out
COMMON = (".jpg", ".png", ".webp", ".tif")  # of the suffixes, for a hint
# Files that often lie beside images and are no part of a set. Reports do not list them, nor hidden files.
LITTER = frozenset({"thumbs.db", "desktop.ini", "icon\r", "readme", "license", "licence"})


class Found(NamedTuple):
    """What a folder or a shard holds.

    Args:
        samples: its images.
        skipped: the names of files that were not taken for images. An image that a table leaves out is listed too, with
            a note beside its name.
        names: the classes by index, if their sorted names decided the indices; see `names_in_order`.
        own_names: the classes by index, if the set's own metadata name them and the model has no names.
        unlabelled: how many images were left out because they alone have no label.
    """

    samples: list[Sample]
    skipped: list[str]
    names: tuple[str, ...] | None = None
    own_names: tuple[str, ...] | None = None
    unlabelled: int = 0


class _Files(NamedTuple):
    """The files in a folder and below it, in no order: those that look like images, and the others."""

    images: list[Path]
    others: list[Path]


def as_set(name: str, contents: Sequence[Found]) -> SampleSet:
    """Return what a folder or shards hold as one set.

    Raises:
        NoLabels: no image has a label, and some should have one.
        DataError: there are no images.
    """
    samples = [sample for content in contents for sample in content.samples]
    skipped = [file for content in contents for file in content.skipped]
    unlabelled = sum(content.unlabelled for content in contents)
    if not samples and unlabelled:
        raise NoLabels(
            f"{name} holds {unlabelled:,} image{'' if unlabelled == 1 else 's'} and no labels",
            "a split without labels measures no accuracy: choose another",
        )
    if not samples:
        raise DataError(f"{name} holds no images{only(skipped)}")
    # Each shard has its own names. Were they not the same, one index would mean two classes.
    orders = {content.names for content in contents if content.samples}
    if len(orders) > 1:
        raise DataError(
            f"{name}: its shards do not name the same classes, and the model names none",
            "name the model's classes: --labels FILE",
        )
    return SampleSet(
        name,
        tuple(samples),
        tuple(skipped),
        sorted_names=next((content.names for content in contents if content.names), ()),
        own_names=next((content.own_names for content in contents if content.own_names), ()),
        unlabelled=unlabelled,
    )


def labelled_folder(
    folder: Path,
    classes: int,
    label_names: Sequence[str] | None,
    how: SetOptions = SetOptions(),
    table: Path | None = None,
    channels: int = 3,
) -> Found:
    """Return the images of a folder with their labels, sorted by name.

    The labels are those of the folder's table, such as `labels.csv` (`stm.data.tables`). For ImageNet's validation
    images they are those of a list in the folder or above it (`stm.data.validation`). Else each subfolder is a class.
    `stm.data.labels.class_indices` reads the names of classes, and `stm.data.formats.is_image` tells which files are
    images.

    Args:
        how: the columns of the table.
        table: the table, if its name is not a usual one.
        channels: of the model; see `_arrays_too`.

    Raises:
        DataError: the folder cannot be read, has no images or no labels, or labels that are not classes of the model.
    """
    arrays = _arrays_too(folder, channels)
    # A link to nowhere is a table too, which cannot be read.
    path = table or next((folder / name for name in TABLES if os.path.lexists(folder / name)), None)
    columns = how.image_column or how.label_column
    if path is not None:
        try:
            return _from_table(folder, path, read_table(path, how), classes, label_names, arrays)
        except NoLabels:  # captions and the like, beside folders that may be classes
            if columns or table is not None or not path.name.startswith("metadata"):
                raise
    elif columns is not None:
        raise DataError(f"{folder} has no table with a column {columns!r}", f"name the table: --data {folder}/FILE.csv")
    files, folders, others = _contents(folder, arrays)
    if any(VALIDATION.fullmatch(file.name) for file in files):
        # Only the images in subfolders are reported: the other files there may be the development kit's.
        strays = [image for path in folders for image in _below(path, arrays, strict=False).images]
        samples, source = _validation_set(folder, files, classes)
        return Found(samples, _names(folder, [*(path for path in others if path != source), *strays]))
    if files and (listed_in := pairs_in(folder)) is not None:
        path, pairs = listed_in
        rows = [(line, file, label) for line, (file, label) in enumerate(pairs.items(), start=1)]
        return _from_table(folder, path, rows, classes, label_names, arrays)
    below = {path.name: _below(path, arrays) for path in folders}
    labelled = {name: files_of.images for name, files_of in below.items() if files_of.images}
    skipped = _names(folder, [*others, *(path for files_of in below.values() for path in files_of.others)])
    # Images beside folders of images fit two layouts. Either reading would leave some out without a word.
    if files and labelled:
        sentence = f"{folder} holds images such as {files[0].name} beside folders of images such as {min(labelled)}"
        raise _no_labels(folder, sentence)
    if files:
        raise _no_labels(folder, f"{folder} holds {len(files)} images and no labels", NoLabels)
    if not labelled:
        raise _no_labels(folder, f"{folder} holds no images{only(skipped)}")
    names = names_in_order(labelled, classes, label_names)
    try:
        indices = _indices({name: str(folder / name) for name in sorted(labelled)}, classes, label_names, names)
    except DataError as error:
        raise _split_root(folder, sorted(labelled)) or error from error
    samples = _sorted(_sample(folder, path, indices[name]) for name, images in labelled.items() for path in images)
    return Found(samples, skipped, names)


def _indices(
    where: dict[str, str], classes: int, label_names: Sequence[str] | None, names: tuple[str, ...] | None
) -> dict[str, int]:
    """Return the class of each name: its place among `names`, if their order decides."""
    if names is not None:
        return {name: index for index, name in enumerate(names)}
    return class_indices(where, classes, label_names)


def _split_root(folder: Path, names: list[str]) -> DataError | None:
    """Return the error of a folder whose subfolders are parts of a set (train, val) and not classes."""
    parts = [name for name in names if name.casefold() in SPLITS]
    if not parts:
        return None
    best = min(parts, key=lambda name: (name.casefold().startswith("tr"), not name.casefold().startswith("val"), name))
    return DataError(
        f"{folder} holds the parts of a set, {listed(parts)}, expected one folder per class",
        f"name one part: --data {shlex.quote(str(folder / best))}, or --split {shlex.quote(best)}",
    )


def part_of(folder: Path, split: str) -> Path:
    """Return the part of a set's root that is called `split`, in any usual spelling of it.

    Raises:
        UsageError: the root has no such part.
    """
    parts = {path.name: path for path in _contents(folder)[1]}
    part = parts.get(spelled(split, parts))
    if part is None:
        raise UsageError(f"{folder} has no part {split}, only {listed(parts) or 'files'}")
    return part


def unlabelled_folder(
    folder: Path, how: SetOptions = SetOptions(), table: Path | None = None, channels: int = 3
) -> Found:
    """Return all images in a folder and below it, sorted by name, without labels; of a table, those that it names."""
    if table is not None:
        files = _named(folder, table, read_table(table, how))
        return Found(_sorted(Sample(file, None, ImageFile(folder / file)) for _, file, _ in files), [])
    below = _below(folder, _arrays_too(folder, channels))
    skipped = _names(folder, below.others)
    if not below.images:
        raise DataError(
            f"{folder} holds no images{only(skipped)}", f"files that end in {', '.join(COMMON)} and the like are images"
        )
    return Found(_sorted(_sample(folder, path, None) for path in below.images), skipped)


def _sample(folder: Path, path: Path, label: int | None) -> Sample:
    return Sample(path.relative_to(folder).as_posix(), label, ImageFile(path))


def _sorted(samples: Iterable[Sample]) -> list[Sample]:
    return sorted(samples, key=lambda sample: sample.file)


def _arrays_too(folder: Path, channels: int) -> bool:
    """Return whether arrays (.npy) in a folder are images: for a model of neither one nor three channels, or if the
    folder has no others. Beside pictures they are masks or features."""
    if channels not in MODES:
        return True
    has_arrays = False
    for _, _, names in os.walk(folder):
        suffixes = {PurePosixPath(name).suffix.lower() for name in names}
        if suffixes & SUFFIXES:
            return False
        has_arrays |= ARRAY in suffixes
    return has_arrays


def _contents(folder: Path, arrays: bool = False) -> tuple[list[Path], list[Path], list[Path]]:
    """Return the images, the folders and the other files in a folder, each sorted, without hidden ones."""
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        folders = [path for path in entries if path.is_dir()]
        files = [path for path in entries if not path.is_dir()]
        images = [path for path in files if is_image(path) or (arrays and path.suffix.lower() == ARRAY)]
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from error
    return images, folders, sorted({*files} - {*images})


def _below(folder: Path, arrays: bool, *, strict: bool = True) -> _Files:
    """Return all files in a folder and below it.

    Links to folders are not followed, because they may lead back. They count as other files.

    Args:
        arrays: whether arrays are images.
        strict: refuse folders that cannot be read; if False, they are left out.
    """

    def refuse(error: OSError) -> None:
        if strict:
            raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error

    images, others = list[Path](), list[Path]()
    for parent, folders, names in os.walk(folder, onerror=refuse):
        for path in (Path(parent, name) for name in names if not name.startswith(".")):
            taken = is_image(path) or (arrays and path.suffix.lower() == ARRAY)
            (images if taken else others).append(path)
        others += [path for name in folders if (path := Path(parent, name)).is_symlink()]
    return _Files(images, others)


def _names(folder: Path, paths: Iterable[Path]) -> list[str]:
    """Return the sorted names of files as reports list them: without litter, tables and hidden files."""
    names = (path.relative_to(folder) for path in paths if not _is_litter(path))
    return sorted(path.as_posix() for path in names if not any(part.startswith(".") for part in path.parts))


def _is_litter(path: Path) -> bool:
    named = {path.name.lower(), path.stem.lower()} & LITTER
    return path.name in SEEN or (bool(named) and path.suffix.lower() not in SUFFIXES)


def only(skipped: Sequence[str]) -> str:
    """Return the end of a sentence about missing images: the files that are there instead."""
    return f", only {listed(skipped)}" if skipped else ""


def _no_labels(folder: Path, sentence: str, kind: type[DataError] = DataError) -> DataError:
    return kind(
        sentence,
        f"add {folder / LABELS} with the header filename,label, or sort the images into one subfolder per class",
    )


# Tables and lists


def _from_table(
    folder: Path, table: Path, rows: list[Row], classes: int, label_names: Sequence[str] | None, arrays: bool
) -> Found:
    files = _named(folder, table, rows)
    where: dict[str, str] = {}
    for line, file, label in files:
        where.setdefault(label.strip(), f"{table} line {line} ({file})")
    names = names_in_order(where, classes, label_names)
    indices = _indices(where, classes, label_names, names)
    samples = _sorted(Sample(file, indices[label.strip()], ImageFile(folder / file)) for _, file, label in files)
    listed_here = {os.path.normpath(file) for _, file, _ in files}  # `./a.png` is a.png
    left = [
        name
        for name in _names(folder, _below(folder, arrays, strict=False).images)
        if os.path.normpath(name) not in listed_here
    ]
    return Found(samples, [f"{name} (not in {table.name})" for name in left], names)


def _named(folder: Path, table: Path, rows: list[Row]) -> list[Row]:
    """Return a table's rows with the names of the files as they are in the folder."""
    if not rows:
        raise DataError(f"{table} labels no images")
    # Tiny-ImageNet keeps the images of its table in a folder of their own.
    inside = "images/" if table.name == TINY and (folder / "images").is_dir() else ""
    lines: dict[str, int] = {}
    files = []
    for line, named, label in rows:
        # A table from elsewhere must not name files outside its folder.
        for path in (PurePosixPath(named), PurePosixPath(named.replace("\\", "/"))):
            if not named or path.is_absolute() or ".." in path.parts:
                raise DataError(f"{table} line {line}: {named!r} is not the name of a file in this folder")
        file = as_here(folder, f"{inside}{named}")
        if file in lines:
            raise DataError(f"{table} line {line}: {file} was labelled on line {lines[file]} already")
        lines[file] = line
        files.append((line, file, label))
    return files


def _validation_set(folder: Path, files: list[Path], classes: int) -> tuple[list[Sample], Path]:
    """Return ImageNet's validation images, and the list of their labels."""
    numbers = {}
    for file in files:
        if (match := VALIDATION.fullmatch(file.name)) is None:
            raise _no_labels(folder, f"{file} is not one of ImageNet's validation images, which are beside it")
        numbers[file] = int(match[1])
    labels = labels_of(folder, list(numbers.values()))
    if labels is None:
        sentence = f"{folder} holds {len(files)} of ImageNet's validation images and no labels"
        raise NoLabels(
            sentence,
            f"put Kaggle's {KAGGLE}, the development kit's {KIT[-1]}, or caffe's val.txt into {folder} or a folder"
            " above it",
        )
    source, class_of = labels
    for file, number in numbers.items():
        if number not in class_of:
            raise DataError(f"{source} has no label for {file.name}")
    where = {class_of[number]: f"{source} ({file.name})" for file, number in numbers.items()}
    indices = class_indices(where, classes)
    return [Sample(file.name, indices[class_of[number]], ImageFile(file)) for file, number in numbers.items()], source
