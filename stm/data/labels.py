"""Classes by name: ImageNet's table of facts, and from what people call a class to its index."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import NamedTuple

from stm.assets import FOLDER
from stm.errors import DataError, brief


class ImageNet(NamedTuple):
    """The 1000 classes of ImageNet-1k by index: WordNet ids, which are in sorted order, and labels, which are
    unique."""

    wnids: tuple[str, ...]
    labels: tuple[str, ...]


@cache
def imagenet() -> ImageNet:
    """The table that tools/imagenet_labels.py made."""
    lines = (FOLDER / "imagenet1k.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    return ImageNet(tuple(wnid for _, wnid, _ in rows), tuple(label for _, _, label in rows))


def class_indices(names: Mapping[str, str], classes: int, label_names: Collection[str] | None = None) -> dict[str, int]:
    """The class index that each name stands for.

    All names are of one kind: labels of the model (case and underscores for spaces aside), indices, or the WordNet ids
    of ImageNet-1k, which only a model of 1000 classes takes. They are tried in this order, so that a model whose labels
    are numbers is read by its labels.

    Args:
        names: each name, and where it stands, as an error will say.
        classes: how many the model has.
        label_names: its labels by index; ImageNet's where they are not known and there are 1000 classes.

    Raises:
        DataError: a name that is none of these, an index out of range, or names of different kinds.
    """
    kinds = _kinds(classes, label_names)
    for read in kinds.values():
        indices = {name: index for name in names if (index := read(name)) is not None}
        if len(indices) == len(names):
            return indices
    kind_of = {name: next((kind for kind, read in kinds.items() if read(name) is not None), None) for name in names}
    for name, where in names.items():
        if kind_of[name] is None and re.fullmatch(r"[+-]?[0-9]+", name):
            raise DataError(
                f"{where}: class {brief(name)}, expected 0 to {classes - 1}: the model has {classes} classes"
            )
        if kind_of[name] is None:
            raise DataError(
                f"{where}: {brief(name)!r} is not a class of the model: expected {_either(kinds)}", _hint(classes)
            )
    first = next(iter(names))
    name = next(name for name in names if kind_of[name] != kind_of[first])
    raise DataError(
        f"{names[name]}: {name!r} is {kind_of[name]} and {first!r} is {kind_of[first]}: expected one kind for all"
        " classes"
    )


Reader = Callable[[str], int | None]


def _kinds(classes: int, label_names: Collection[str] | None) -> dict[str, Reader]:
    """The kinds of names, and for each the function that reads one."""
    if label_names is None and classes == len(imagenet().labels):
        label_names = imagenet().labels
    times = Counter(map(_plain, label_names or ()))
    labels = {_plain(label): index for index, label in enumerate(label_names or ()) if times[_plain(label)] == 1}
    kinds: dict[str, Reader] = {}
    if labels:
        kinds["a label"] = lambda name: labels.get(_plain(name))
    kinds["a class index"] = lambda name: (
        int(name) if re.fullmatch(r"[0-9]{1,9}", name) and int(name) < classes else None
    )
    if classes == len(imagenet().wnids):
        wnids = {wnid: index for index, wnid in enumerate(imagenet().wnids)}
        kinds["a WordNet id"] = wnids.get
    return kinds


def _plain(label: str) -> str:
    return label.replace("_", " ").strip().casefold()


def _either(kinds: Collection[str]) -> str:
    *most, last = kinds
    return f"{', '.join(most)} or {last}" if most else last


def _hint(classes: int) -> str:
    return f"class indices, 0 to {classes - 1}, always work"
