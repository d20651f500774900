"""Find and read the table that labels a folder's images, under whatever header and separator it has."""

import codecs
import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
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
_EXCELS = re.compile(r"sep=(.)\r?")  # a first line that tells Excel the separator
_SOME = 20  # rows whose values tell which column holds the images
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
    if path.name == TINY:
        at, header, rows = (0, 1), None, list(split_rows(path, text))
    else:
        at, header, rows = _under_header(path, list(split_rows(path, text)), how)
    return [(line, row[at[0]], row[at[1]]) for line, row in _checked(path, rows, header)]


_Numbered = list[tuple[int, list[str]]]


def _under_header(path: Path, rows: _Numbered, how: SetOptions) -> tuple[tuple[int, int], list[str] | None, _Numbered]:
    """Return the columns of image and label, the header, if there is one, and the rows below it."""
    header = [name.strip() for name in rows[0][1]] if rows else []
    try:
        file, label = _columns(path, header, how)
        return (header.index(file), header.index(label)), header, rows[1:]
    except NoLabels:
        by_values = None if path.name.startswith("metadata") else _by_values(path.parent, header, rows, how)
        if by_values is None:  # captions have two columns too, and metadata.csv may hold them
            raise
    at = by_values
    without = _is_file(path.parent, header[at[0]])
    return (at, None, rows) if without else (at, header, rows[1:])


def _by_values(folder: Path, header: list[str], rows: _Numbered, how: SetOptions) -> tuple[int, int] | None:
    """Return the columns of image and label whose names tell nothing, if the values do; else None.

    The images are in the only column whose values are files of the folder, and the only other column has the labels.
    """
    known = [header.index(name) for name in (how.image_column, how.label_column) if name is not None]
    if how.label_column is None:
        known += [header.index(name) for name in header if _plain(name) in CLASSES][:1]
    some = [row for _, row in rows[1 : 1 + _SOME] if len(row) == len(header)]
    if how.image_column is not None:
        images = [header.index(how.image_column)]
    else:
        columns = [at for at in range(len(header)) if at not in known]
        # Numbers of classes may be names of files too (0: 0.png), but no image is labelled twice.
        columns = [at for at in columns if some and len({row[at] for row in some}) == len(some)]
        images = [at for at in columns if all(_is_file(folder, row[at]) for row in some)]
    others = known if len(known) > (how.image_column is not None) else [*range(len(header))]
    labels = [at for at in others if at not in images]
    return (images[0], labels[0]) if len(images) == len(labels) == 1 else None


def _is_file(folder: Path, named: str) -> bool:
    return bool(named) and os.path.isfile(folder / as_here(folder, named))


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace(" ", "").replace("-", "")


def read_text(path: Path, most: int = MOST) -> str:
    """Return the text of a table of at most so many bytes, without the byte order mark that Excel writes.

    It is UTF-8, or UTF-16 under such a mark, which is Excel's "Unicode text".

    Raises:
        DataError: it cannot be read, or is no such text.
    """
    try:
        check_file(path)
        if (size := path.stat().st_size) > most:
            raise DataError(f"{path} has {size:,} bytes, expected a table of at most {most:,}")
        with path.open("rb") as file:
            wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        text = path.read_text(encoding="utf-16" if wide else "utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not text in UTF-8: {said(error)}", "save it as UTF-8; a spreadsheet calls it CSV UTF-8"
        ) from error
    if "\0" in text:
        raise DataError(f"{path} holds a NUL character, expected text in UTF-8")
    return text


def split_rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the values of each row that is not empty, the header first.

    Raises:
        DataError: a row has quotes that do not end.
    """
    first = text.partition("\n")[0]
    told = _EXCELS.fullmatch(first)
    # The header tells the separator: the one that it holds most of. Values may hold the others.
    separator = told[1] if told else max(",\t;", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for row in reader:
            if row and not (told and reader.line_num == 1):
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
    path: Path, rows: Iterable[tuple[int, list[str]]], header: Sequence[str] | None
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
    plain = {_plain(name): name for name in reversed(header)}
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


def as_here(folder: Path, file: str) -> str:
    """Return a file's name as it is in the folder, if it is: with the suffix that a table left out, and not by Windows'
    separators."""
    # os.path, because Path.exists raises for a name that is too long.
    if "\\" in file and not os.path.lexists(folder / file):
        file = file.replace("\\", "/")
    if Path(file).suffix.lower() in SUFFIXES or os.path.exists(folder / file):
        return file
    return next(
        (file + s for s in (".jpg", ".jpeg", ".png", ".JPEG", ".tif", ".npy") if os.path.exists(folder / (file + s))),
        file,
    )
