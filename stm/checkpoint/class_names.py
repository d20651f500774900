"""Read what a trainer says of a model's classes: in the checkpoint, or in the config.json beside it."""

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

# What trainers call the names of classes, the surest first: by name, by index, and in order.
_SURE = ("class_to_idx", "idx_to_class", "id2label", "label2id", "class_names", "classes", "CLASSES", "label_names")
KEYS = (*_SURE, "labels", "categories", "names", "class_index")
LARGEST = 10_000_000  # bytes of a file of names
_DEEPEST, _MOST = 3, 10_000  # dicts in dicts that are searched for names, and the values of all of them


class Named(NamedTuple):
    """Names of classes that a file holds: the key that they are under, and as many as there are, by index."""

    key: str
    names: tuple[str, ...]


def names_in(document: Any, classes: int | None = None) -> Named | None:
    """Return the names of classes in a document of dicts, the nearest to its top; None if it holds none.

    Args:
        classes: how many there should be. Another number is returned only if the key leaves no doubt.
    """
    lists = [
        Named(key, names)
        for holder in _holders(document)
        for key in KEYS
        if (names := in_order(holder.get(key))) is not None
    ]
    right = (each for each in lists if classes in (None, len(each.names)))
    return next(right, next((each for each in lists if each.key in _SURE), None))


def in_order(value: Any) -> tuple[str, ...] | None:
    """Return the names in a list, a dict by index or a dict from name to index; None for anything else.

    Keras's lists of WordNet id and name count as the name. Every index from 0 must be there once.
    """
    if isinstance(value, Mapping):
        if value and all(type(number) is int for number in value.values()):
            value = {number: name for name, number in value.items()} if len({*value.values()}) == len(value) else {}
        given = len(value)
        by_index = {_index(key): name for key, name in value.items()}
        value = [by_index[i] for i in range(len(value)) if i in by_index]
        value = value if len(value) == len(by_index) == given else []  # "1" and "01" are one index
    if not isinstance(value, list | tuple) or not value:
        return None
    names = [each[-1] if isinstance(each, list | tuple) and len(each) == 2 else each for each in value]
    return tuple(names) if all(map(_is_name, names)) else None


def labels_beside(weights: Path, classes: int) -> tuple[str, ...] | None:
    """Return the class names of the `id2label` in the config.json beside the weights, in order.

    None without one, or if it does not name exactly this model's classes: a config may be of another model.
    """
    config = weights.with_name("config.json")
    try:
        if config.stat().st_size > LARGEST:
            return None
        document = json.loads(config.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    held = document.get("id2label") if isinstance(document, dict) else None
    names = in_order(held) if isinstance(held, dict) and all(isinstance(name, str) for name in held.values()) else None
    # transformers writes LABEL_0 and so on if nobody named the classes
    return names if names is not None and len(names) == classes and names[0] != "LABEL_0" else None


def _holders(document: Any) -> Iterator[Mapping[Any, Any]]:
    """Yield a document's dicts, level by level."""
    looked_at, level = 0, [document]
    for _ in range(_DEEPEST):
        dicts = [vars(each) if isinstance(each, argparse.Namespace) else each for each in level]
        dicts = [each for each in dicts if isinstance(each, dict)]
        yield from dicts
        level = [value for each in dicts for value in each.values() if isinstance(value, dict | argparse.Namespace)]
        looked_at += len(level)
        if looked_at > _MOST:
            return


def _index(key: Any) -> int | None:
    return int(key) if type(key) is int or (isinstance(key, str) and is_index(key)) else None


def is_index(text: str) -> bool:
    """Return whether a text is an index: plain digits, as no other script's are what a trainer wrote."""
    return re.fullmatch("[0-9]{1,9}", text) is not None


def _is_name(name: Any) -> bool:
    """Return whether a value can be a class's name: text that can be written down."""
    return isinstance(name, str) and bool(name.strip()) and name.encode(errors="replace").decode() == name
