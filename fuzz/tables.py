"""Tables of labels, lists of classes, ImageNet's lists and development kit, records of images, cells of a sweep."""

import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fuzz import mutate as change
from fuzz import small
from fuzz.harness import Fault, check_text, corpus, judge
from stm.config import Preprocess
from stm.data import validation
from stm.data.class_names import given_names
from stm.data.decode import decode
from stm.data.folders import as_set, labelled_folder
from stm.data.tables import read_table
from stm.data.validation import GROUND_TRUTH, KAGGLE, META
from stm.measure import records, sweep_file
from stm.measure.records import Identity, RecordFile, read_records
from stm.measure.sweep_file import CELLS, IDENTITY, CellFile, SweepIdentity

_RUN = subprocess.run  # while it is replaced, too
TABLES = {b"0": "labels.csv", b"1": "labels.tsv", b"2": "metadata.jsonl", b"3": "val_annotations.txt"}
LISTS = {b"8": "names.txt", b"9": "names.json", b"a": "names.csv"}
OF_IMAGENET = {b"b": KAGGLE, b"c": "val.txt", b"d": "synsets.txt", b"e": GROUND_TRUTH, b"f": META}
IMAGES = ("a.png", "b.png", "c.png")
VALIDATION = tuple(f"ILSVRC2012_val_{number:08}.JPEG" for number in (1, 2, 3))
RECORDED = Identity(model="a" * 64, reference=None, data="d" * 64, preprocessing=Preprocess(), limit=None, seed=0)
SWEPT = SweepIdentity(
    model="a" * 64,
    data="d" * 64,
    preprocessing=Preprocess(),
    limit=None,
    seed=0,
    batch_size=2,
    environment={"stm": "1"},
)


def run(data: bytes, folder: Path) -> None:
    kind, content = data[:1], data[1:]
    size = len(content)
    if kind in TABLES:
        place = _images(folder / "set", IMAGES)
        _read_labels(_put(place, TABLES[kind], content), place, size)
    elif kind in LISTS:
        _put(_images(folder / "lists", ()), LISTS[kind], content)
        judge(lambda: given_names(folder / "lists" / LISTS[kind], 10), size)
    elif kind in OF_IMAGENET:
        place = _images(folder / "imagenet", VALIDATION)
        for name, beside in _beside(kind).items():
            _put(place, name, beside)
        _put(place, OF_IMAGENET[kind], content)
        with patch.object(validation.subprocess, "run", _once) if kind == b"e" else nullcontext():
            judge(lambda: labelled_folder(place, 1000, None), size)
        for path in place.iterdir():
            if path.name not in VALIDATION:
                path.unlink()
    elif kind in (b"4", b"5"):
        _records(_images(folder / "records", ()), content, own=kind == b"4")
    else:
        _cells(_images(folder / "sweep", ()), content, own=kind == b"6")


@cache
def _meta() -> Any:
    with tempfile.NamedTemporaryFile(suffix=".mat") as file:
        file.write(_seeds("f")[0])
        file.flush()
        return _RUN(
            [sys.executable, "-P", "-c", validation._READ_META, file.name], capture_output=True, text=True, check=True
        )


def _once(*_: Any, **__: Any) -> Any:
    """Answer for the process that reads the development kit's table: its start takes a second, and the table is always
    the same while the numbers change."""
    return _meta()


def _images(place: Path, names: tuple[str, ...]) -> Path:
    place.mkdir(exist_ok=True)
    for name in names:
        if not (place / name).exists():
            (place / name).write_bytes(small.png())
    return place


def _put(place: Path, name: str, content: bytes) -> Path:
    (place / name).write_bytes(content)
    return place / name


def _read_labels(table: Path, place: Path, size: int) -> None:
    opened = judge(lambda: labelled_folder(place, 10, small.NAMES), size)
    rows = judge(lambda: read_table(table), size)
    table.unlink()
    if opened is None:
        return
    judge(lambda: as_set("set", [opened]).fingerprint, size)
    for sample in opened.samples[:4]:
        for told in judge(lambda sample=sample: decode([sample], small.PREP), size, most=256 << 20):
            if isinstance(told, str):
                check_text(told)
    # The class of an image is what a row says in plain digits, or a name that the model has.
    words = {name.casefold(): index for index, name in enumerate(small.NAMES)}
    meant = {
        image: int(label)
        if re.fullmatch("[0-9]+", label.strip())
        else words.get(label.replace("_", " ").strip().casefold())
        for _, image, label in rows or ()
    }
    for sample in opened.samples:
        if rows is not None and sample.label not in {
            index
            for image, index in meant.items()
            if any(Path(name).stem in sample.file for name in (image, image.replace("\\", "/")))  # Windows' separator
        }:
            raise Fault(f"{sample.file} has class {sample.label}, and its rows say {meant}")


def _records(place: Path, content: bytes, *, own: bool) -> None:
    path = place / "records.csv"
    path.write_bytes(content if own else good_records())
    beside = path.with_name("records.csv.json")
    beside.unlink(missing_ok=True)
    if own:
        held = judge(lambda: read_records(path), len(content))
        # A record that was accepted is written again as the same bytes: nothing else was ever written.
        lines = [records.HEADER, *map(records._line, held or ())]
        if held and not content.startswith("".join(lines).encode("utf-8", "surrogateescape")):
            raise Fault(f"records are written as {lines}")
        return
    beside.write_bytes(content)

    def resume() -> None:
        RecordFile(path, RECORDED, ["0.png", "1.png", "2.png"], 2).close()

    judge(resume, len(content))


def good_records() -> bytes:
    """Return the file of two records."""
    rows = [
        records.Record(
            file=f"{i}.png", label=i, pred=i, top5=(i, 4, 3), dense_pred=i, dense_top5=(i, 3), margin=i / 7, kl=0.5
        )
        for i in range(2)
    ]
    return (records.HEADER + "".join(map(records._line, rows))).encode()


def _cells(place: Path, content: bytes, *, own: bool) -> None:
    (place / CELLS).write_bytes(content if own else good_cells())
    (place / IDENTITY).unlink(missing_ok=True)
    if not own:
        (place / IDENTITY).write_bytes(content)
    else:
        (place / IDENTITY).write_bytes(good_identity())

    def resume() -> None:
        CellFile(place, SWEPT).close()

    judge(resume, len(content))


@cache
def good_cells() -> bytes:
    """Return the seed of a sweep's cells."""
    return next(iter(_seeds("6")))


@cache
def good_identity() -> bytes:
    """Return the seed of what a sweep was measured on."""
    return next(iter(_seeds("7")))


@cache
def _beside(kind: bytes) -> dict[str, bytes]:
    """Return the files without which a list of ImageNet's says nothing."""
    if kind == b"e":
        return {META: next(iter(_seeds("f")))}
    if kind == b"f":
        return {GROUND_TRUTH: b"1\n2\n3\n"}
    return {"val.txt": next(iter(_seeds("c")))} if kind == b"d" else {}


def _seeds(kind: str) -> list[bytes]:
    held = (path.read_bytes() for path in sorted(corpus("tables").iterdir()) if not path.name.startswith("fault-"))
    return [data[1:] for data in held if data[:1] == kind.encode()]


_OWN: dict[bytes, Callable[[bytes, random.Random], bytes]] = {
    b"1": lambda data, draw: change.table(data, draw, "\t"),
    b"3": lambda data, draw: change.table(data, draw, "\t"),
    b"2": change.lines_of_json,
    b"6": change.lines_of_json,
    **dict.fromkeys((b"5", b"7", b"9"), change.json_bytes),
    **dict.fromkeys((b"8", b"c", b"d", b"e"), change.text_lines),
    b"f": change.raw,
}


def mutate(data: bytes, draw: random.Random) -> bytes:
    if data[:1] == b"f" and draw.random() < 0.95:  # each of these starts a process
        return b"e" + change.text_lines(b"1\n2\n3\n", draw)
    return data[:1] + _OWN.get(data[:1], change.table)(data[1:], draw)


__all__ = ["good_records", "mutate", "run", "sweep_file"]
