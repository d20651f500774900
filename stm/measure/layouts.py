"""Folders of images, and where their labels come from."""

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from stm.errors import DataError
from stm.labels import class_indices
from stm.measure.images import ImageFile, Sample

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
LABELS = "labels.csv"
KAGGLE = "LOC_val_solution.csv"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
KIT = ("", "data", "ILSVRC2012_devkit_t12/data")  # where the development kit's files are, seen from the folder or a parent of it
PARENTS = 4  # from ILSVRC/Data/CLS-LOC/val, where Kaggle's archive has the images, up to where it has their labels
VALIDATION = re.compile(r"ILSVRC2012_val_([0-9]{8})\.JPEG", re.IGNORECASE)


def labelled_folder(folder: Path, classes: int, label_names: Sequence[str] | None) -> list[Sample]:
    """The images of a folder with their labels, sorted by name.

    The labels are those of `labels.csv` (header `filename,label`); of ImageNet's validation images, Kaggle's
    `LOC_val_solution.csv` or the development kit in the folder or above it; else of subfolders, one a class. How
    classes may be named: `stm.labels.class_indices`.

    Raises:
        DataError: the folder cannot be read, has no images or no labels, or labels that are not classes of the model.
    """
    if (folder / LABELS).is_file():
        return _from_csv(folder, classes, label_names)
    files, folders = _contents(folder)
    if any(VALIDATION.fullmatch(file.name) for file in files):
        return _validation_set(folder, files, classes)
    below = {path.name: images for path in folders if (images := _images_below(path))}
    if files and below:
        sentence = f"{folder} holds images such as {files[0].name} beside folders of images such as {min(below)}"
        raise _no_labels(folder, sentence)
    if files:
        raise _no_labels(folder, f"{folder} holds {len(files)} images and no labels")
    if not below:
        raise _no_labels(folder, f"{folder} holds no images")
    indices = class_indices({name: str(folder / name) for name in sorted(below)}, classes, label_names)
    return _sorted(_sample(folder, path, indices[name]) for name, images in below.items() for path in images)


def unlabelled_folder(folder: Path) -> list[Sample]:
    """All images in a folder and below it, sorted by name, without labels."""
    samples = _sorted(_sample(folder, path, None) for path in _images_below(folder))
    if not samples:
        raise DataError(f"{folder} holds no images", f"files that end in {', '.join(SUFFIXES)} are images")
    return samples


def _sample(folder: Path, path: Path, label: int | None) -> Sample:
    return Sample(path.relative_to(folder).as_posix(), label, ImageFile(path))


def _sorted(samples: Iterable[Sample]) -> list[Sample]:
    return sorted(samples, key=lambda sample: sample.file)


def _contents(folder: Path) -> tuple[list[Path], list[Path]]:
    """The images and the folders in a folder, sorted; hidden ones are left out."""
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        return [path for path in entries if _is_image(path)], [path for path in entries if path.is_dir()]
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from error


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not path.is_dir()


def _images_below(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error

    return [Path(here, name) for here, _, names in os.walk(folder, onerror=refuse) for name in names if _is_image(Path(here, name))]


def _no_labels(folder: Path, sentence: str) -> DataError:
    return DataError(sentence, f"add {folder / LABELS} with the header filename,label, or sort the images into one subfolder a class")


# labels.csv


def _from_csv(folder: Path, classes: int, label_names: Sequence[str] | None) -> list[Sample]:
    table = folder / LABELS
    rows = _read_csv(table, ["filename", "label"])
    if not rows:
        raise DataError(f"{table} labels no images")
    lines: dict[str, int] = {}
    where: dict[str, str] = {}
    for line, (file, label) in rows.items():
        if not file or PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
            raise DataError(f"{table} line {line}: {file!r} is not the name of a file in this folder")
        if file in lines:
            raise DataError(f"{table} line {line}: {file} was labelled on line {lines[file]} already")
        lines[file] = line
        where.setdefault(label.strip(), f"{table} line {line} ({file})")
    indices = class_indices(where, classes, label_names)
    return _sorted(Sample(file, indices[label.strip()], ImageFile(folder / file)) for file, label in rows.values())


def _read_csv(table: Path, header: list[str]) -> dict[int, list[str]]:
    """The rows of a table by their line numbers; empty lines, and the mark that Excel writes at the beginning, are left out."""
    rows: dict[int, list[str]] = {}
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            found = next(reader, [])
            if found != header:
                raise DataError(f"{table} begins with {','.join(found)!r}, expected the header {','.join(header)}")
            for row in reader:
                if row and len(row) != len(header):
                    raise DataError(f"{table} line {reader.line_num}: {len(row)} columns, expected {len(header)}: {','.join(header)}")
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
    table, kit = _above(folder, [KAGGLE]), _above(folder, [f"{place}/{GROUND_TRUTH}" for place in KIT])
    if table is not None:
        wnids = _from_kaggle(table)
    elif kit is not None:
        wnids = _from_kit(kit)
    else:
        sentence = f"{folder} holds {len(files)} of ImageNet's validation images and no labels"
        raise DataError(sentence, f"put Kaggle's {KAGGLE} or the development kit's {KIT[-1]} into {folder} or a folder above it")
    source = table or kit
    for file in files:
        if file.stem not in wnids:
            raise DataError(f"{source} has no label for {file.name}")
    where = {wnids[file.stem]: f"{source} ({file.name})" for file in files}
    indices = class_indices(where, classes)
    return [Sample(file.name, indices[wnids[file.stem]], ImageFile(file)) for file in files]


def _above(folder: Path, names: list[str]) -> Path | None:
    """The first of these files in the folder or the next ones above it."""
    here = Path(os.path.abspath(folder))
    return next((path for place in [here, *here.parents][: PARENTS + 1] for name in names if (path := place / name).is_file()), None)


def _from_kaggle(table: Path) -> dict[str, str]:
    """WordNet ids by image, of rows such as `ILSVRC2012_val_00048981,n03995372 85 1 499 272`: the class, then boxes."""
    rows = _read_csv(table, ["ImageId", "PredictionString"])
    return {image: (prediction.split() or [""])[0] for image, prediction in rows.values()}


# In a process of its own: a damaged file makes scipy raise anything at all, and some end the process (SIGSEGV in its _mio5_utils).
_READ_META = """
import json, sys, scipy.io
synsets = scipy.io.loadmat(sys.argv[1], squeeze_me=True, variable_names=["synsets"])["synsets"]
print(json.dumps({int(number): str(wnid) for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}))
"""


def _from_kit(ground_truth: Path) -> dict[str, str]:
    """WordNet ids by image. Line n is the ILSVRC2012_ID of image n; those ids are not in the order of the WordNet ids."""
    meta = ground_truth.with_name("meta.mat")
    run = subprocess.run([sys.executable, "-c", _READ_META, meta], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if run.returncode:
        raise DataError(f"{meta} is not the development kit's table of classes", "unpack the kit again")
    wnid_of = {int(number): wnid for number, wnid in json.loads(run.stdout).items()}
    try:
        numbers = ground_truth.read_text(encoding="ascii", errors="replace").split()
    except OSError as error:
        raise DataError(f"{ground_truth} cannot be read: {error.strerror}") from error
    wnids = {}
    for line, text in enumerate(numbers, start=1):
        if not re.fullmatch("[0-9]{1,9}", text) or int(text) not in wnid_of:
            raise DataError(f"{ground_truth} line {line}: {text!r} is not an ILSVRC2012_ID of {meta.name}")
        wnids[f"ILSVRC2012_val_{line:08}"] = wnid_of[int(text)]
    return wnids
