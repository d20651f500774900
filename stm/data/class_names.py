"""Read the names of a model's classes that a user gives: in a file of any usual form, a list or a dict."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stm.checkpoint.class_names import LARGEST, in_order, is_index, names_in
from stm.data.labels import imagenet
from stm.errors import DataError, UsageError, said

# Columns of a table, in lower case and without separators.
_INDICES = ("index", "idx", "id", "classid", "classindex", "classidx", "labelid", "labelindex", "target", "number", "")
_NAMES = ("name", "classname", "labelname", "class", "label", "category", "labels", "classes", "names", "description")
_FORMS = "one name per line, a list or dict in JSON, or a CSV with a column of indices"
_NUMBERED = re.compile(r"([0-9]{1,7})(?:\s*[:,;\t)]\s*|\.\s+|\s+)(\S.*)")
_SYNSET = re.compile(r"n[0-9]{8}[\s,:]+(\S.*)")


def given_names(labels: str | os.PathLike[str] | Sequence[str] | Mapping[Any, Any], classes: int) -> tuple[str, ...]:
    """Return the names of a model's classes, by index.

    Args:
        labels: a file with one name per line, a list or dict in JSON, or a CSV with a column of indices; or the list or
            dict itself. A dict is by index or by name.
        classes: how many the model has.

    Raises:
        DataError: the file cannot be read, or does not name each class once.
        UsageError: a list or dict that does not.
    """
    if not isinstance(labels, str | os.PathLike):
        names = in_order(dict(labels) if isinstance(labels, Mapping) else list(labels))
        if names is None or len(names) != classes:
            held = "no names by index from 0" if names is None else f"{len(names)} names"
            raise UsageError(f"labels has {held}, expected one for each of the {classes} classes of the model")
        return plain_names(names)
    path = Path(labels)
    names = _from_file(path)
    if len(names) != classes:
        raise DataError(
            f"{path} has {len(names)} name{'' if len(names) == 1 else 's'}, expected one for each of the {classes}"
            " classes of the model",
            f"its forms are {_FORMS}",
        )
    return plain_names(names)


def plain_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return names of classes for people: of ImageNet's WordNet ids, all 1000 in order, the labels."""
    return imagenet().labels if names == imagenet().wnids else names


def _from_file(path: Path) -> tuple[str, ...]:
    from stm.data.tables import read_text  # it imports Pillow, and `stm info` needs no table

    text = read_text(path, LARGEST)
    if path.suffix.lower() == ".json" or text.lstrip()[:1] in ("{", "["):
        names = _from_json(path, text)
    elif path.suffix.lower() in (".csv", ".tsv"):
        names = _from_columns(path, text)
    else:
        names = _from_lines([line.strip() for line in text.splitlines() if line.strip()])
    if names is None:
        raise DataError(f"{path} names no classes by index from 0: expected {_FORMS}")
    return names


def _from_json(path: Path, text: str) -> tuple[str, ...] | None:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {said(error)}") from error
    if (names := in_order(document)) is not None:
        return names
    held = names_in(document)  # such as the config.json of a model, or a list under a key
    return None if held is None else held.names


def _from_columns(path: Path, text: str) -> tuple[str, ...] | None:
    from stm.data.tables import split_rows  # as above

    rows = [[cell.strip() for cell in row] for _, row in split_rows(path, text)]
    header = ["".join(re.findall("[a-z]+", name.lower())) for name in rows[0]] if rows else []
    index = next((header.index(name) for name in _INDICES if name in header), None)
    name = next((header.index(name) for name in _NAMES if name in header and header.index(name) != index), None)
    if name is None:  # no header: the column of numbers from 0 is that of the indices
        width = len(rows[0]) if rows else 0
        index = next((at for at in range(width) if all(row[at : at + 1] and is_index(row[at]) for row in rows)), None)
        name, first = next((at for at in range(width) if at != index), 0), 0
    else:
        first = 1
    if any(len(row) <= max(name, index or 0) for row in rows):
        return None
    if index is None:
        return in_order([row[name] for row in rows[first:]])
    by_index = {row[index]: row[name] for row in rows[first:]}
    return in_order(by_index) if len(by_index) == len(rows) - first else None


def _from_lines(lines: list[str]) -> tuple[str, ...] | None:
    """Return one name per line. Numbers before all names, from 0 or 1, are indices; WordNet ids before them go."""
    numbered = [match for line in lines if (match := _NUMBERED.fullmatch(line))]
    if len(numbered) == len(lines):
        by_index = {int(match[1]): match[2] for match in numbered}
        for first in (0, 1):
            if sorted(by_index) == list(range(first, first + len(lines))):
                lines = [by_index[i] for i in range(first, first + len(lines))]
                break
    synsets = [match[1] for line in lines if (match := _SYNSET.fullmatch(line))]
    return in_order(synsets if len(synsets) == len(lines) else lines)
