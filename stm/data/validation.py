"""Find the labels of ImageNet's validation images, which lie in one flat folder: in a list beside them or above them.

A list is Kaggle's table, the development kit's numbers, caffe's `val.txt` of names and classes, or one class per line,
the line of an image being the number in its name.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from stm.data.formats import SUFFIXES, check_file
from stm.data.labels import imagenet
from stm.data.tables import read_text, rows_under
from stm.errors import DataError

VALIDATION = re.compile(r"ILSVRC2012_val_([0-9]{8})\.JPEG", re.IGNORECASE)
KAGGLE = "LOC_val_solution.csv"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
META = "meta.mat"
# Where the development kit's files may be, seen from the folder or a parent of it.
KIT = ("", "data", "ILSVRC2012_devkit_t12/data")
PARENTS = 4  # from ILSVRC/Data/CLS-LOC/val, where Kaggle's archive has the images, up to where it has their labels
_LISTS = ("val.txt", "validation.txt", "val_labels.txt", "imagenet_2012_validation_synset_labels.txt")
# Lists of the classes themselves, in the order of their indices; a list of numbers refers to the one beside it.
SYNSETS = ("synsets.txt", "synset_words.txt", "LOC_synset_mapping.txt", "imagenet_lsvrc_2015_synsets.txt")
_LARGEST, _MOST = 16 << 20, 20  # bytes of a list, and files of text that are tried
_CLASS = re.compile(r"n[0-9]{8}|[0-9]{1,4}")


def labels_of(folder: Path, numbers: Sequence[int]) -> tuple[Path, dict[int, str]] | None:
    """Return the list that labels a folder's images, and the class of each image by its number; None without a list.

    Args:
        numbers: of the images.

    Raises:
        DataError: a list cannot be read.
    """
    table, kit = _above(folder, [KAGGLE]), _above(folder, [os.path.join(path, GROUND_TRUTH) for path in KIT])
    if table is not None:
        return table, _from_kaggle(table)
    if kit is not None:
        return kit, _from_kit(kit)
    for path in _lists(folder):
        if (classes := _from_list(path, max(numbers))) is not None:
            return path, classes
    return None


def pairs_in(folder: Path) -> tuple[Path, dict[str, str]] | None:
    """Return a list in a folder, each line of which names a file there and its class, as caffe's; None without one."""
    for path in _texts(folder):
        pairs = _pairs(path)
        if pairs and all(os.path.exists(folder / name) and Path(name).suffix.lower() in SUFFIXES for name in pairs):
            return path, pairs
    return None


def _lists(folder: Path) -> list[Path]:
    """Return the files that may be lists: texts beside the images and just above, and those of usual names above."""
    named = _above(folder, list(_LISTS))
    near = [*_texts(folder), *_texts(Path(os.path.abspath(folder)).parent)]
    return list(dict.fromkeys([*near, *([] if named is None else [named])]))


def _texts(folder: Path) -> list[Path]:
    """Return the files of text in a folder that are small enough to be lists, those that say `val` first."""
    try:
        texts = sorted(path for path in folder.iterdir() if path.suffix == ".txt" and not path.name.startswith("."))
        texts = [path for path in texts if path.is_file() and path.stat().st_size <= _LARGEST]
    except OSError:
        return []
    return sorted(texts, key=lambda path: "val" not in path.stem.lower())[:_MOST]


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in read_text(path).splitlines() if line.strip()]
    except DataError:  # not a list of ours
        return []


def _pairs(path: Path) -> dict[str, str]:
    """Return the class of each file in a list of `NAME CLASS`; empty if the file is no such list."""
    parts = [line.rsplit(maxsplit=1) for line in _lines(path)]
    pairs = {part[0].removeprefix("./"): part[1] for part in parts if len(part) == 2}
    return pairs if len(pairs) == len(parts) else {}


def _from_list(path: Path, last: int) -> dict[int, str] | None:
    """Return the class of each image by number, from a list of `NAME CLASS` or of one class per line; None if the file
    is neither."""
    if pairs := _pairs(path):
        named = {VALIDATION.search(name if "." in name else f"{name}.JPEG"): label for name, label in pairs.items()}
        if None in named or not all(map(_CLASS.fullmatch, pairs.values())):
            return None
        classes = {int(match[1]): label for match, label in named.items() if match is not None}
    else:
        lines = _lines(path)
        # A list of the classes themselves has one line per class; a list of labels has one per image.
        if len(lines) < last or not all(map(_CLASS.fullmatch, lines)) or tuple(lines) == imagenet().wnids:
            return None
        classes = dict(enumerate(lines, start=1))
    order = _order_of_classes(path.parent)
    if order is None or not all(label.isdecimal() and int(label) < len(order) for label in classes.values()):
        return classes
    return {number: order[int(label)] for number, label in classes.items()}


def _order_of_classes(folder: Path) -> list[str] | None:
    """Return the WordNet ids in the list of classes in a folder, by index; None without one."""
    for name in SYNSETS:
        if (folder / name).is_file():
            wnids = [line.split(maxsplit=1)[0] for line in _lines(folder / name)]
            if sorted(wnids) == list(imagenet().wnids):
                return wnids
    return None


def _above(folder: Path, names: list[str]) -> Path | None:
    """Return the first path with one of these names, in the folder or above it; it need not be a file."""
    nearest = Path(os.path.abspath(folder))
    paths = (parent / name for parent in [nearest, *nearest.parents][: PARENTS + 1] for name in names)
    return next((path for path in paths if os.path.lexists(path)), None)


def _by_number(classes: dict[str, str]) -> dict[int, str]:
    names = ((VALIDATION.fullmatch(f"{name}.JPEG"), label) for name, label in classes.items())
    return {int(match[1]): label for match, label in names if match is not None}


def _from_kaggle(table: Path) -> dict[int, str]:
    """Return WordNet ids by image. A row is `ILSVRC2012_val_00048981,n03995372 85 1 499 272`: class, then boxes."""
    rows = rows_under(table, ["ImageId", "PredictionString"])
    return _by_number({image: (prediction.split() or [""])[0] for image, prediction in rows})


# In a process of its own: a damaged file makes scipy raise anything at all, and some end the process (SIGSEGV in its
# _mio5_utils). The file is compressed, so a small one may ask for all memory: after the imports the process may take a
# gigabyte, and half a minute of the processor. The kit's own file takes 20 MB, and a second.
_READ_META = """
import json, re, sys, scipy.io
try:
    import resource
    held = re.search(r"VmSize:\\s+(\\d+) kB", open("/proc/self/status").read())
    resource.setrlimit(resource.RLIMIT_AS, ((int(held[1]) << 10) + (1 << 30),) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
except (ImportError, OSError):  # no Linux
    pass
synsets = scipy.io.loadmat(sys.argv[1], squeeze_me=True, variable_names=["synsets"])["synsets"]
pairs = zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)
print(json.dumps({int(number): str(wnid) for number, wnid in pairs}))
"""


def _from_kit(ground_truth: Path) -> dict[int, str]:
    """Return WordNet ids by image. Line n holds the ILSVRC2012_ID of image n, which is no index of the sorted ids."""
    meta = ground_truth.with_name(META)
    try:
        for file in (meta, ground_truth):
            check_file(file)
        numbers = ground_truth.read_text(encoding="ascii", errors="replace").split()
    except OSError as error:
        hint = f"copy the development kit's {META} beside {ground_truth.name}: its numbers are in another order"
        raise DataError(f"{error.filename} cannot be read: {error.strerror}", hint) from error
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
        wnids[line] = wnid_of[int(text)]
    return wnids
