"""Find and read the table that labels a folder's images, under whatever header and separator it has."""

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from stm.data.formats import SUFFIXES, check_file
from stm.data.labels import NoLabels
from stm.errors import DataError, brief, listed, said
from stm.options import SetOptions

LABELS = "labels.csv"
TINY = "val_annotations.txt"  # Tiny-ImageNet's: no header; image, WordNet id, and a box
TABLES = (LABELS, "labels.tsv", "metadata.csv", "metadata.jsonl", TINY)
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")
# Column names that mean one thing, in lower case and without separators, the surest first.
FILES = ("filename", "file", "image", "img", "filepath", "imagepath", "path", "imagename", "imagefile", "imageid", "id")
CLASSES = ("label", "labels", "class", "target", "cls", "classlabel", "finelabel", "classname", "labelname", "category")
MOST = 256 << 20  # bytes of a table
Row = tuple[int, str, str]  # line number, image and label


def read_table(path: Path, how: SetOptions = SetOptions()) -> list[Row]:
    """Return the rows of a table: line number, image and label.

    Args:
        how: names the columns if the header does not tell which they are.

    Raises:
        NoLabels: no column holds the images, or none their labels.
        DataError: the table cannot be read.
    """
    text = read_text(path)
    if path.suffix == ".jsonl":
        return _from_lines(path, text, how)
    rows = split_rows(path, text)
    if path.name == TINY:
        at, header = (0, 1), None
    else:
        header = [name.strip() for name in next(rows, (0, []))[1]]
        file, label = _columns(path, header, how)
        at = header.index(file), header.index(label)
    return [(line, row[at[0]], row[at[1]]) for line, row in _checked(path, rows, header)]


def read_text(path: Path, most: int = MOST) -> str:
    """Return the text of a table of at most so many bytes, without the byte order mark that Excel writes.

    Raises:
        DataError: it cannot be read, or is no text in UTF-8.
    """
    try:
        check_file(path)
        if (size := path.stat().st_size) > most:
            raise DataError(f"{path} has {size:,} bytes, expected a table of at most {most:,}")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8: {said(error)}") from error
    if "\0" in text:
        raise DataError(f"{path} holds a NUL character, expected text in UTF-8")
    return text


def split_rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the values of each row that is not empty, the header first.

    Raises:
        DataError: a row has quotes that do not end.
    """
    first = text.partition("\n")[0]
    # The header tells the separator: the one that it holds most of. Values may hold the others.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",\t;", key=first.count), strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise _no_table(path, error) from error


def rows_under(path: Path, expected: Sequence[str]) -> list[list[str]]:
    """Return the rows of a table that has exactly this header.

    Raises:
        DataError: it has another header, or a row of another length.
    """
    rows = split_rows(path, read_text(path))
    header = next(rows, (0, []))[1]
    if header != list(expected):
        raise DataError(f"{path} begins with {brief(','.join(header))!r}, expected the header {','.join(expected)}")
    return [row for _, row in _checked(path, rows, header)]


def _checked(
    path: Path, rows: Iterator[tuple[int, list[str]]], header: Sequence[str] | None
) -> Iterator[tuple[int, list[str]]]:
    """Yield rows that are as long as the header; without a header, of two values at least."""
    for line, row in rows:
        width = len(row) if header is None else len(header)
        if len(row) != width or width < 2:
            columns = "" if header is None else f": {brief(','.join(header))}"
            raise DataError(f"{path} line {line}: {len(row)} columns, expected {max(width, 2)}{columns}")
        yield line, row


def _no_table(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is not a table of comma-separated values in UTF-8: {said(error)}")


def _from_lines(path: Path, text: str, how: SetOptions) -> list[Row]:
    rows = []
    for line, part in enumerate(io.StringIO(text), start=1):
        if not part.strip():
            continue
        try:
            entry = json.loads(part)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} line {line} is not an object of JSON: {said(error)}") from error
        if not isinstance(entry, dict):
            raise DataError(f"{path} line {line} is not an object of JSON")
        columns = {name: value for name, value in entry.items() if isinstance(value, str | int)}
        file, label = _columns(path, list(columns), how)
        if isinstance(columns[label], bool):
            raise DataError(f"{path} line {line}: {label} is {columns[label]}, expected the class of the image")
        if "\0" in str(columns[file]):
            raise DataError(f"{path} line {line}: {file} holds a NUL character, expected the name of a file")
        rows.append((line, str(columns[file]), str(columns[label])))
    return rows


def _columns(path: Path, header: Sequence[str], how: SetOptions) -> tuple[str, str]:
    """Return the columns of image and label: those that were named, else the surest name of each kind decides."""
    for named in filter(None, (how.image_column, how.label_column)):
        if named not in header:
            raise DataError(
                f"{path} has no column {named!r}, only {listed(header) or 'none'}", "name one of its columns"
            )
    plain = {name.lower().replace("_", "").replace(" ", "").replace("-", ""): name for name in reversed(header)}
    label = how.label_column
    file = how.image_column or next((plain[name] for name in FILES if name in plain and plain[name] != label), None)
    label = label or next((plain[name] for name in CLASSES if name in plain and plain[name] != file), None)
    if file is None or label is None:
        lacking = " and ".join([*(["image"] if file is None else []), *(["label"] if label is None else [])])
        raise NoLabels(
            f"{path} begins with {brief(','.join(header))!r}, expected the header filename,label: no column of the"
            f" {lacking} among {listed(header) or 'none'}",
            "name the columns: --image-column NAME --label-column NAME, or filename,label in the header",
        )
    return file, label


def with_suffix(folder: Path, file: str) -> str:
    """Return a file's name with the suffix that a table left out, if one file of the folder has it."""
    # os.path, because Path.exists raises for a name that is too long.
    if Path(file).suffix.lower() in SUFFIXES or os.path.exists(folder / file):
        return file
    return next(
        (file + s for s in (".jpg", ".jpeg", ".png", ".JPEG", ".tif", ".npy") if os.path.exists(folder / (file + s))),
        file,
    )
