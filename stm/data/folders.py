"""Read folders of images and their labels."""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from stm.data.formats import SUFFIXES, check_file, is_image
from stm.data.images import ImageFile, Sample
from stm.data.labels import SPLITS, NoLabels, class_indices, names_in_order
from stm.data.tables import LABELS, TABLES, TINY, read_table, with_suffix
from stm.errors import DataError, listed

KAGGLE = "LOC_val_solution.csv"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
META = "meta.mat"
SEEN = (*TABLES, KAGGLE, GROUND_TRUTH, META)  # beside images, and no images that were left out
COMMON = (".jpg", ".png", ".webp", ".tif")  # of the suffixes, for a hint
# Where the development kit's files may be, seen from the folder or a parent of it.
KIT = ("", "data", "ILSVRC2012_devkit_t12/data")
PARENTS = 4  # from ILSVRC/Data/CLS-LOC/val, where Kaggle's archive has the images, up to where it has their labels
# Files that often lie beside images and are no part of a set. Reports do not list them, nor hidden files.
LITTER = frozenset({"thumbs.db", "desktop.ini", "icon\r", "readme", "license", "licence"})
VALIDATION = re.compile(r"ILSVRC2012_val_([0-9]{8})\.JPEG", re.IGNORECASE)


class Found(NamedTuple):
    """What a folder or a shard holds.

    Args:
        samples: its images.
        skipped: the names of files that were not taken for images. An image that a table leaves out is listed too, with
            a note beside its name.
        names: the classes by index, if their sorted names decided the indices; see `names_in_order`.
    """

    samples: list[Sample]
    skipped: list[str]
    names: tuple[str, ...] | None = None


class _Files(NamedTuple):
    """The files in a folder and below it, in no order: those that look like images, and the others."""

    images: list[Path]
    others: list[Path]


def labelled_folder(folder: Path, classes: int, label_names: Sequence[str] | None) -> Found:
    """Return the images of a folder with their labels, sorted by name.

    The labels are those of the folder's table, such as `labels.csv` (`stm.data.tables`). For ImageNet's validation
    images they are those of Kaggle's `LOC_val_solution.csv`, or of the development kit, in the folder or above it. Else
    each subfolder is a class. `stm.data.labels.class_indices` reads the names of classes, and
    `stm.data.formats.is_image` tells which files are images.

    Raises:
        DataError: the folder cannot be read, has no images or no labels, or labels that are not classes of the model.
    """
    # A link to nowhere is a table too, which cannot be read.
    table = next((folder / name for name in TABLES if os.path.lexists(folder / name)), None)
    if table is not None:
        try:
            return _from_table(folder, table, classes, label_names)
        except NoLabels:  # captions and the like, beside folders that may be classes
            if not table.name.startswith("metadata"):
                raise
    files, folders, others = _contents(folder)
    if any(VALIDATION.fullmatch(file.name) for file in files):
        # Only the images in subfolders are reported: the other files there may be the development kit's.
        strays = [image for path in folders for image in _below(path, strict=False).images]
        return Found(_validation_set(folder, files, classes), _names(folder, [*others, *strays]))
    below = {path.name: _below(path) for path in folders}
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
        f"name one part: --data {shlex.quote(str(folder / best))}",
    )


def unlabelled_folder(folder: Path) -> Found:
    """Return all images in a folder and below it, sorted by name, without labels."""
    files = _below(folder)
    skipped = _names(folder, files.others)
    if not files.images:
        raise DataError(
            f"{folder} holds no images{only(skipped)}", f"files that end in {', '.join(COMMON)} and the like are images"
        )
    return Found(_sorted(_sample(folder, path, None) for path in files.images), skipped)


def _sample(folder: Path, path: Path, label: int | None) -> Sample:
    return Sample(path.relative_to(folder).as_posix(), label, ImageFile(path))


def _sorted(samples: Iterable[Sample]) -> list[Sample]:
    return sorted(samples, key=lambda sample: sample.file)


def _contents(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Return the images, the folders and the other files in a folder, each sorted, without hidden ones."""
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        folders = [path for path in entries if path.is_dir()]
        files = [path for path in entries if not path.is_dir()]
        images = [path for path in files if is_image(path)]
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from error
    return images, folders, sorted({*files} - {*images})


def _below(folder: Path, *, strict: bool = True) -> _Files:
    """Return all files in a folder and below it.

    Links to folders are not followed, because they may lead back. They count as other files.

    Args:
        strict: refuse folders that cannot be read; if False, they are left out.
    """

    def refuse(error: OSError) -> None:
        if strict:
            raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error

    images, others = list[Path](), list[Path]()
    for parent, folders, names in os.walk(folder, onerror=refuse):
        for path in (Path(parent, name) for name in names if not name.startswith(".")):
            (images if is_image(path) else others).append(path)
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


# labels.csv


def _from_table(folder: Path, table: Path, classes: int, label_names: Sequence[str] | None) -> Found:
    rows = read_table(table)
    if not rows:
        raise DataError(f"{table} labels no images")
    # Tiny-ImageNet keeps the images of its table in a folder of their own.
    inside = "images/" if table.name == TINY and (folder / "images").is_dir() else ""
    lines: dict[str, int] = {}
    where: dict[str, str] = {}
    files: list[tuple[str, str]] = []
    for line, named, label in rows:
        file = f"{inside}{named}"
        # A table from elsewhere must not name files outside its folder.
        if not named or PurePosixPath(named).is_absolute() or ".." in PurePosixPath(named).parts:
            raise DataError(f"{table} line {line}: {named!r} is not the name of a file in this folder")
        file = with_suffix(folder, file)
        if file in lines:
            raise DataError(f"{table} line {line}: {file} was labelled on line {lines[file]} already")
        lines[file] = line
        files.append((file, label))
        where.setdefault(label.strip(), f"{table} line {line} ({file})")
    names = names_in_order(where, classes, label_names)
    indices = _indices(where, classes, label_names, names)
    samples = _sorted(Sample(file, indices[label.strip()], ImageFile(folder / file)) for file, label in files)
    listed_here = {os.path.normpath(file) for file in lines}  # `./a.png` is a.png
    left = [
        name
        for name in _names(folder, _below(folder, strict=False).images)
        if os.path.normpath(name) not in listed_here
    ]
    return Found(samples, [f"{name} (not in {table.name})" for name in left], names)


def _read_csv(table: Path, header: list[str]) -> dict[int, list[str]]:
    """Return the rows of a table by line number, without empty lines and the byte order mark that Excel writes."""
    rows: dict[int, list[str]] = {}
    try:
        check_file(table)
        with table.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            first = next(reader, [])
            if first != header:
                raise DataError(f"{table} begins with {','.join(first)!r}, expected the header {','.join(header)}")
            for row in reader:
                if row and len(row) != len(header):
                    raise DataError(
                        f"{table} line {reader.line_num}: {len(row)} columns, expected {len(header)}:"
                        f" {','.join(header)}"
                    )
                if row:
                    rows[reader.line_num] = row
    except OSError as error:
        raise DataError(f"{table} cannot be read: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{table} is not a table of comma-separated values in UTF-8: {error}") from error
    return rows


# ImageNet's validation images


def _validation_set(folder: Path, files: list[Path], classes: int) -> list[Sample]:
    stray = next((file for file in files if not VALIDATION.fullmatch(file.name)), None)
    if stray is not None:
        raise _no_labels(folder, f"{stray} is not one of ImageNet's validation images, which are beside it")
    table, kit = _above(folder, [KAGGLE]), _above(folder, [os.path.join(path, GROUND_TRUTH) for path in KIT])
    if table is not None:
        wnids = _from_kaggle(table)
    elif kit is not None:
        wnids = _from_kit(kit)
    else:
        sentence = f"{folder} holds {len(files)} of ImageNet's validation images and no labels"
        raise NoLabels(
            sentence, f"put Kaggle's {KAGGLE} or the development kit's {KIT[-1]} into {folder} or a folder above it"
        )
    source = table or kit
    for file in files:
        if file.stem not in wnids:
            raise DataError(f"{source} has no label for {file.name}")
    where = {wnids[file.stem]: f"{source} ({file.name})" for file in files}
    indices = class_indices(where, classes)
    return [Sample(file.name, indices[wnids[file.stem]], ImageFile(file)) for file in files]


def _above(folder: Path, names: list[str]) -> Path | None:
    """Return the first path with one of these names, in the folder or above it; it need not be a file."""
    nearest = Path(os.path.abspath(folder))
    paths = (parent / name for parent in [nearest, *nearest.parents][: PARENTS + 1] for name in names)
    return next((path for path in paths if os.path.lexists(path)), None)


def _from_kaggle(table: Path) -> dict[str, str]:
    """Return WordNet ids by image. A row is `ILSVRC2012_val_00048981,n03995372 85 1 499 272`: class, then boxes."""
    rows = _read_csv(table, ["ImageId", "PredictionString"])
    return {image: (prediction.split() or [""])[0] for image, prediction in rows.values()}


# In a process of its own: a damaged file makes scipy raise anything at all, and some end the process (SIGSEGV in its
# _mio5_utils).
_READ_META = """
import json, sys, scipy.io
synsets = scipy.io.loadmat(sys.argv[1], squeeze_me=True, variable_names=["synsets"])["synsets"]
pairs = zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)
print(json.dumps({int(number): str(wnid) for number, wnid in pairs}))
"""


def _from_kit(ground_truth: Path) -> dict[str, str]:
    """Return WordNet ids by image. Line n holds the ILSVRC2012_ID of image n, which is no index of the sorted ids."""
    meta = ground_truth.with_name(META)
    try:
        for file in (meta, ground_truth):
            check_file(file)
        numbers = ground_truth.read_text(encoding="ascii", errors="replace").split()
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
    # -P: a json.py in the current folder, which may be the data's, is not run.
    command = [sys.executable, "-P", "-c", _READ_META, str(meta)]
    run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if run.returncode:
        raise DataError(f"{meta} is not the development kit's table of classes", "unpack the kit again")
    wnid_of = {int(number): wnid for number, wnid in json.loads(run.stdout).items()}
    wnids = {}
    for line, text in enumerate(numbers, start=1):
        if not re.fullmatch("[0-9]{1,9}", text) or int(text) not in wnid_of:
            raise DataError(f"{ground_truth} line {line}: {text!r} is not an ILSVRC2012_ID of {meta.name}")
        wnids[f"ILSVRC2012_val_{line:08}"] = wnid_of[int(text)]
    return wnids
