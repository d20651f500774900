"""Find and read the table that labels a folder's images, under whatever header and separator it has."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from stm.data.formats import SUFFIXES, check_file
from stm.data.labels import NoLabels
from stm.errors import DataError, listed

LABELS = "labels.csv"
TINY = "val_annotations.txt"  # Tiny-ImageNet's: no header; image, WordNet id, and a box
TABLES = (LABELS, "labels.tsv", "metadata.csv", "metadata.jsonl", TINY)
# Column names that mean one thing, in lower case and without separators, the surest first.
FILES = ("filename", "file", "image", "img", "filepath", "imagepath", "path", "imagename", "imagefile", "imageid", "id")
CLASSES = ("label", "labels", "class", "target", "cls", "classlabel", "finelabel", "classname", "labelname", "category")
Row = tuple[int, str, str]  # line number, image and label


def read_table(path: Path) -> list[Row]:
    """Return the rows of a table: line number, image and label.

    Raises:
        NoLabels: no column holds the images, or none their labels.
        DataError: the table cannot be read.
    """
    try:
        check_file(path)
        text = path.read_text(encoding="utf-8-sig")  # without the byte order mark that Excel writes
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a table of comma-separated values in UTF-8: {error}") from error
    if path.suffix == ".jsonl":
        return _from_lines(path, text)
    return _from_text(path, text)


def _from_lines(path: Path, text: str) -> list[Row]:
    rows = []
    for line, part in enumerate(text.splitlines(), start=1):
        if not part.strip():
            continue
        try:
            entry = json.loads(part)
            columns = {str(name): value for name, value in entry.items() if isinstance(value, str | int)}
        except (ValueError, AttributeError, RecursionError) as error:
            raise DataError(f"{path} line {line} is not an object of JSON: {error}") from error
        file, label = _columns(path, list(columns))
        if isinstance(columns[label], bool):
            raise DataError(f"{path} line {line}: {label} is {columns[label]}, expected the class of the image")
        rows.append((line, str(columns[file]), str(columns[label])))
    return rows


def _from_text(path: Path, text: str) -> list[Row]:
    first = text.partition("\n")[0]
    # The header tells the separator: the one that it holds most of. Values may hold the others.
    separator = max(",\t;", key=first.count)
    rows: list[Row] = []
    try:
        reader = csv.reader(text.splitlines(keepends=True), delimiter=separator, strict=True)
        header = None if path.name == TINY else next(reader, [])
        at = (0, 1)
        if header is not None:
            header = [name.strip() for name in header]
            at = (header.index((names := _columns(path, header))[0]), header.index(names[1]))
        for row in reader:
            width = len(row) if header is None else len(header)
            if row and (len(row) != width or width < 2):
                columns = "" if header is None else f": {separator.join(header)}"
                raise DataError(f"{path} line {reader.line_num}: {len(row)} columns, expected {max(width, 2)}{columns}")
            if row:
                rows.append((reader.line_num, row[at[0]], row[at[1]]))
    except csv.Error as error:
        raise DataError(f"{path} is not a table of comma-separated values in UTF-8: {error}") from error
    return rows


def _columns(path: Path, header: Sequence[str]) -> tuple[str, str]:
    """Return the columns of image and label: the surest name of each kind decides."""
    plain = {name.lower().replace("_", "").replace(" ", "").replace("-", ""): name for name in reversed(header)}
    file = next((plain[name] for name in FILES if name in plain), None)
    label = next((plain[name] for name in CLASSES if name in plain and plain[name] != file), None)
    if file is None or label is None:
        lacking = " and ".join([*(["image"] if file is None else []), *(["label"] if label is None else [])])
        raise NoLabels(
            f"{path} begins with {','.join(header)!r}, expected the header filename,label: no column of the {lacking}"
            f" among {listed(header) or 'none'}",
            "name the columns filename and label",
        )
    return file, label


def with_suffix(folder: Path, file: str) -> str:
    """Return a file's name with the suffix that a table left out, if one file of the folder has it."""
    if Path(file).suffix.lower() in SUFFIXES or (folder / file).exists():
        return file
    return next((file + s for s in (".jpg", ".jpeg", ".png", ".JPEG", ".tif") if (folder / (file + s)).exists()), file)
