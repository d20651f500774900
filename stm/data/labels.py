"""Turn what people call a class into its index, and hold ImageNet's table of classes."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import NamedTuple

from stm.assets import FOLDER
from stm.errors import DataError, brief

# What people call the parts of a set, as folders and as files: the spellings of each.
SPELLINGS = (
    ("train", "training"),
    ("validation", "valid", "val", "dev"),
    ("test", "testing"),
    ("eval", "evaluation"),
)
SPLITS = tuple(name for names in SPELLINGS for name in names)


def spelled(split: str, names: Collection[str]) -> str:
    """Return the one of `names` that a split means, in any case and usual spelling (`val`: `validation`); else it."""
    if split in names:
        return split
    meant = next((each for each in SPELLINGS if split.casefold() in each), (split.casefold(),))
    return next((name for name in sorted(names) if name.casefold() in meant), split)


class NoLabels(DataError):
    """A set that holds no labels at all. Whoever can do without them takes it without."""


class ImageNet(NamedTuple):
    """The 1000 classes of ImageNet-1k by index: WordNet ids, which are in sorted order, and labels, which are
    unique."""

    wnids: tuple[str, ...]
    labels: tuple[str, ...]


@cache
def imagenet() -> ImageNet:
    """Return the table that tools/imagenet_labels.py made."""
    lines = (FOLDER / "imagenet1k.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    return ImageNet(tuple(wnid for _, wnid, _ in rows), tuple(label for _, _, label in rows))


def class_indices(names: Mapping[str, str], classes: int, label_names: Collection[str] | None = None) -> dict[str, int]:
    """Return the class index of each name.

    All names must be of one kind: labels of the model, indices, or the WordNet ids of ImageNet-1k, which only a model
    of 1000 classes takes. Labels are compared without regard to case, and an underscore counts as a space.

    Args:
        names: from each name to its source, such as a line of a table, for messages.
        classes: how many the model has.
        label_names: its labels by index. If they are not known and there are 1000 classes, ImageNet's are taken.

    Raises:
        DataError: a name is of no kind, an index is out of range, or names are of different kinds.
    """
    kinds = _kinds(classes, label_names)
    # One kind must read all names. Read one by one, a folder "7" among folders of words would count as an index.
    for read in kinds.values():
        indices = {name: index for name in names if (index := read(name)) is not None}
        if len(indices) == len(names):
            return indices
    from_one = str(classes) in names and "0" not in names
    # No kind reads all. The most telling reason comes first: a name that nothing reads, then a mixture.
    kind_of = {name: next((kind for kind, read in kinds.items() if read(name) is not None), None) for name in names}
    for name, where in names.items():
        if kind_of[name] is None and re.fullmatch(r"[+-]?[0-9]+", name):
            raise DataError(
                f"{where}: class {brief(name)}, expected 0 to {classes - 1}: the model has {classes} classes",
                "stm counts classes from 0, and these seem to count from 1: take one from each" if from_one else None,
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


def names_in_order(names: Collection[str], classes: int, label_names: Collection[str] | None) -> tuple[str, ...] | None:
    """Return the names in sorted order if that order tells the classes, as torchvision's ImageFolder takes them.

    It does if the model has no names for its classes and there is one name for each of them. Numbers stay indices, and
    the names of splits are no classes.
    """
    if label_names is not None or len(names) != classes or classes == len(imagenet().labels):
        return None
    numbers = all(re.fullmatch(r"[+-]?[0-9]+", name) for name in names)
    if numbers or "" in names or any(name.casefold() in SPLITS for name in names):
        return None
    return tuple(sorted(names))


Reader = Callable[[str], int | None]


def _kinds(classes: int, label_names: Collection[str] | None) -> dict[str, Reader]:
    """Return the kinds of names, in the order in which they are tried, each with the function that reads a name."""
    if label_names is None and classes == len(imagenet().labels):
        label_names = imagenet().labels
    # A label that two classes share names neither.
    times = Counter(map(_plain, label_names or ()))
    labels = {_plain(label): index for index, label in enumerate(label_names or ()) if times[_plain(label)] == 1}
    kinds: dict[str, Reader] = {}
    # Labels before indices, so that a model whose labels are numbers is read by its labels.
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
    # `casefold`, not `lower`: it also makes the two spellings of a German sharp s equal.
    return label.replace("_", " ").strip().casefold()


def _either(kinds: Collection[str]) -> str:
    *most, last = kinds
    return f"{', '.join(most)} or {last}" if most else last


def _hint(classes: int) -> str:
    return f"class indices, 0 to {classes - 1}, always work"
