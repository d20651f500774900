"""One record per image, and the file that holds the records of a run.

Every statistic is a pure function of records. So resuming a run, joining the work of several processes and comparing
two models on the same images are all concatenation. Floats are written so that they read back unchanged. The unit of
work is a whole batch: a resumed run computes the same batches as an uninterrupted one, and so writes the same bytes.
"""

import csv
import hashlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stm.artifact import atomic
from stm.artifact.written import tell
from stm.codec import brief_json, decode, encode, parse
from stm.config import Preprocess
from stm.config_file import to_json
from stm.errors import DataError, UsageError, brief, no_room, said
from stm.measure.hold import Hold, check_free
from stm.model.vim import ViM

# A row ends at a line break that is not inside quotes. The quantifiers are possessive: on a torn row, which never ends,
# a backtracking match would try every split of the rest of the file.
_ROW = re.compile(rb'(?:[^"\n]++|"[^"]*+")*+\n')
# How long records may wait to be written to the disk itself, which takes a few milliseconds each time. So a failure of
# power takes the work of so many seconds, and the waiting takes no part of a run that anybody could measure.
SYNC_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)  # a run holds one for each image
class Record:
    """The result of the model and of its dense reference on one image.

    Args:
        file: the image's name in its sample set.
        label: the class, or None if it is not known.
        pred, dense_pred: the most likely class.
        top5, dense_top5: the five most likely classes, best first; fewer if there are fewer classes.
        margin: the largest logit minus the second; None with a single class.
        kl: KL(dense || this) of the class probabilities, in nats.
        error: a sentence that names the image and says why it was not scored. Such a record holds only file, label and
            error.
    """

    file: str
    label: int | None = None
    pred: int | None = None
    top5: tuple[int, ...] = ()
    dense_pred: int | None = None
    dense_top5: tuple[int, ...] = ()
    margin: float | None = None
    kl: float | None = None
    error: str | None = None


HEADER = ",".join(field.name for field in fields(Record)) + "\n"


def records_of(
    files: Sequence[str], labels: Sequence[int | None], logits: Tensor, dense_logits: Tensor | None = None
) -> list[Record]:
    """Return the records of a batch, computed in float64. Equal logits rank by class index.

    Args:
        files, labels: B of each.
        logits, dense_logits: (B, classes), finite.
    """
    # A stable sort ranks equal logits the same on every device; half precision produces many.
    values, order = logits.double().sort(dim=-1, descending=True, stable=True)  # (B, classes)
    top5 = order[:, :5].tolist()
    margins = (values[:, 0] - values[:, 1]).tolist() if values.shape[1] > 1 else [None] * len(files)
    dense_top5: list[list[int]] = [[]] * len(files)
    divergences: list[float | None] = [None] * len(files)
    if dense_logits is not None:
        dense_top5 = dense_logits.double().argsort(dim=-1, descending=True, stable=True)[:, :5].tolist()
        divergences = kl_divergence(dense_logits, logits).tolist()
    return [
        Record(
            file=file,
            label=label,
            pred=top[0],
            top5=tuple(top),
            dense_pred=dense[0] if dense else None,
            dense_top5=tuple(dense),
            margin=margin,
            kl=kl,
        )
        for file, label, top, dense, margin, kl in zip(
            files, labels, top5, dense_top5, margins, divergences, strict=True
        )
    ]


def kl_divergence(dense_logits: Tensor, logits: Tensor) -> Tensor:
    """Return KL(dense || this) of each row in nats, in float64: (B, classes), (B, classes) -> (B,)."""
    p, q = dense_logits.double().log_softmax(-1), logits.double().log_softmax(-1)
    # KL is never negative, but its rounded sum can be.
    return (p.exp() * (p - q)).sum(-1).clamp(min=0)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a run's records were measured on. Two runs may share a file if all of it is equal.

    The batch size is not part of it: it changes the last digits of a record, not its meaning.

    Args:
        model, reference: `fingerprint` of the model and of its dense reference.
        data: the sample set's fingerprint.
    """

    model: str
    reference: str | None
    data: str
    preprocessing: Preprocess
    limit: int | None
    seed: int


def fingerprint(model: ViM) -> str:
    """Return the sha256 of what decides a ViM's logits: shape, dtype, schedule, protection, and every tensor's
    bytes."""
    document = to_json(model.config)
    decisive = {key: document[key] for key in ("dtype", "model", "num_classes", "protection", "schedule")}
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode())
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()], key=lambda item: item[0]):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_path(path: str | Path) -> Path:
    """Raise an error if a records file cannot be written, before any work is done.

    Raises:
        UsageError: the path is a folder or a device, or its folder does not exist or cannot be written.
        DataError: another process is writing to it.
    """
    path, another = Path(path), "choose another file for the records"
    with atomic.refusing(path, another):
        if path.exists() and not path.is_file():
            raise UsageError(
                f"{path} is {'a folder' if path.is_dir() else 'no plain file'}, expected a CSV file for the records",
                another,
            )
        # The longest name that will be needed is that of the draft of FILE.json.
        atomic.check_writable(path, another, longest=path.with_name(path.name + ".json"), append=True)
        check_free(path)
    return path


def read_records(path: str | Path) -> list[Record]:
    """Return the records in a file, without the torn last line that a killed run may leave.

    Raises:
        DataError: the file cannot be read or does not hold records.
    """
    return _parse(Path(path), _whole_rows(Path(path)))


class RecordFile:
    """The records of one run on disk, appended batch by batch. A run continues where a killed one stopped.

    `FILE` is CSV; `FILE.json` beside it holds the run's identity. `done` are the records that the file held at the
    start. One run at a time has the file, until `close`.

    Args:
        path: FILE. If it is absent it is created. If an equal run left it, it is continued from a multiple of
            `batch_size`, so that the batches that follow are those of an uninterrupted run.
        identity: what this run measures.
        files: the names of the run's images, in order.
        batch_size: images per batch, broken ones included.

    Raises:
        UsageError: the file's folder does not exist or cannot be written.
        DataError: the file belongs to another run, is being written by one, does not hold records, or the disk is full.
    """

    def __init__(self, path: str | Path, identity: Identity, files: Sequence[str], batch_size: int) -> None:
        self.path = check_path(path)
        self._beside = self.path.with_name(self.path.name + ".json")
        self._hint = f"give the records another file, or delete {self.path} and {self._beside} to start again"
        self._waiting = False  # whether records are not on the disk yet
        self._synced = time.monotonic()  # when all were
        try:
            self._hold = Hold(self.path)
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        try:
            self._continue(identity, files, batch_size)
        except BaseException:  # an interrupt too must not leave the lock, or an empty file that was not there before
            self._hold.discard()
            raise

    def close(self) -> None:
        """Let other runs have the file, all of which is on the disk then.

        Raises:
            DataError: the disk failed.
        """
        try:
            self._sync(0.0)
        finally:
            self._hold.close()

    def _sync(self, after: float) -> None:
        if self._waiting and time.monotonic() - self._synced >= after:
            try:
                atomic.sync(self.path)
            except OSError as error:
                raise _cannot_write(self.path, error) from error
            self._waiting, self._synced = False, time.monotonic()

    def _continue(self, identity: Identity, files: Sequence[str], batch_size: int) -> None:
        """Read the records of an equal run, and cut off those that do not fill a batch."""
        self._claim(identity)
        rows = _whole_rows(self.path) if self.path.exists() else []
        done = _parse(self.path, rows)
        for number, (record, file) in enumerate(zip(done, files, strict=False), start=1):
            if record.file != file:
                raise DataError(f"{self.path}: record {number} is of {record.file}, expected {file}", self._hint)
        if len(done) > len(files):
            raise DataError(
                f"{self.path} holds {len(done)} records, expected at most the {len(files)} of this run", self._hint
            )
        # The last batch of a finished run may be short; anywhere else a short batch was torn, and runs again as a
        # whole.
        keep = len(done) if len(done) == len(files) else len(done) // batch_size * batch_size
        self.done = done[:keep]
        self._write(b"" if rows else HEADER.encode(), after=sum(map(len, rows[: keep + 1])))

    def append(self, records: Sequence[Record]) -> None:
        """Hand the records of a batch to the operating system: a kill after this call loses none of them. A failure of
        power takes at most `SYNC_SECONDS` of measuring: a batch that took longer is written to the disk at once."""
        # Python reads file names that are not UTF-8 as surrogates; this writes them back as the original bytes.
        self._write("".join(map(_line, records)).encode("utf-8", "surrogateescape"))
        tell(self.path, grows=True)
        self._waiting = True
        self._sync(SYNC_SECONDS)

    def _write(self, data: bytes, after: int | None = None) -> None:
        """Append to the file, or replace its bytes from `after` on."""
        try:
            with self.path.open("ab") as stream:
                if after is not None:
                    stream.truncate(after)
                stream.write(data)
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def _claim(self, identity: Identity) -> None:
        """Write the identity beside a new file; raise DataError for another run's file, and name what differs."""
        if self._beside.exists():
            try:
                recorded: Identity = decode(Identity, parse(self._beside.read_text(encoding="utf-8")), "")
            except (OSError, ValueError, RecursionError) as error:
                raise DataError(
                    f"{self._beside} does not say what {self.path} was measured on: {said(error)}", self._hint
                ) from error
            if differences := _differences(encode(recorded), encode(identity)):
                raise DataError(f"{self.path} holds the records of another run: {'; '.join(differences)}", self._hint)
        elif self.path.exists() and self.path.stat().st_size:
            raise DataError(
                f"{self.path} exists, but {self._beside}, which says what it was measured on, does not", self._hint
            )
        else:
            try:
                with atomic.drafted(self._beside) as draft:
                    draft.write_text(json.dumps(encode(identity), indent=2, sort_keys=True) + "\n", encoding="utf-8")
            except OSError as error:
                raise _cannot_write(self._beside, error) from error


def _differences(recorded: dict[str, Any], current: dict[str, Any], prefix: str = "") -> list[str]:
    out = []
    for key in current:
        if isinstance(current[key], dict):
            out += _differences(recorded[key], current[key], f"{prefix}{key}.")
        elif recorded[key] != current[key]:
            out.append(f"{prefix}{key} was {brief_json(recorded[key])} and is now {brief_json(current[key])}")
    return out


def _whole_rows(path: Path) -> list[bytes]:
    """Return the rows that end in a line break, header first. A torn row behind them, as a kill leaves, is left out."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    rows, end = [], 0
    while match := _ROW.match(data, end):
        rows.append(match[0])
        end = match.end()
    return rows


def _parse(path: Path, rows: Sequence[bytes]) -> list[Record]:
    if rows and rows[0] != HEADER.encode():
        raise DataError(f"{path} does not begin with {HEADER.strip()}: these are not records of stm")
    records = []
    for number, row in enumerate(rows[1:], start=1):
        try:
            text = row.decode("utf-8", "surrogateescape")
            records.append(_record(next(csv.reader([text], strict=True))))
            _check_written(records[-1], text)
        except (ValueError, csv.Error) as error:
            raise DataError(f"{path}: record {number} cannot be read: {said(error)}") from error
    return records


def _record(row: list[str]) -> Record:
    if len(row) != len(fields(Record)):
        raise ValueError(f"{len(row)} columns, expected {len(fields(Record))}")
    file, label, pred, top5, dense_pred, dense_top5, margin, kl, error = row
    return Record(
        file=file,
        label=_maybe(int, label),
        pred=_maybe(int, pred),
        top5=tuple(map(int, top5.split())),
        dense_pred=_maybe(int, dense_pred),
        dense_top5=tuple(map(int, dense_top5.split())),
        margin=_maybe(_difference, margin),
        kl=_maybe(_difference, kl),
        error=error or None,
    )


def _check_written(record: Record, text: str) -> None:
    """Raise ValueError for a row that `_line` would not write, or for a record that `records_of` would not make.

    Python reads more as a number than was ever written: `1_0`, ` 7`, `+7`, the digits of other scripts. A row that
    somebody edited, or that a disk damaged, must not become a number.
    """
    if (written := _line(record)) != text or "\0" in text:
        raise ValueError(f"it is {brief(text.rstrip())!r}, and not as stm writes it: {brief(written.rstrip())!r}")
    classes = [each for each in (record.label, record.pred, record.dense_pred) if each is not None]
    if min((*classes, *record.top5, *record.dense_top5), default=0) < 0:
        raise ValueError("a class is negative")
    for first, best in ((record.pred, record.top5), (record.dense_pred, record.dense_top5)):
        if len(best) > 5 or len({*best}) != len(best) or best[:1] != (() if first is None else (first,)):
            raise ValueError(f"its five best classes are {best}, and its best is {first}")
    if (record.error is None) != (record.pred is not None):
        raise ValueError("it has neither a class nor an error, or both")


def _difference(text: str) -> float:
    """Return a margin or a KL from its text, or raise ValueError."""
    # Float32 ends at 3.4e38, so no two logits are further apart. NaN fails the comparison too.
    if not 0 <= (value := float(text)) < 1e39:
        raise ValueError(f"{text} is not a difference of logits, expected 0 to 1e39")
    return value


def _maybe(kind: Any, text: str) -> Any:
    return kind(text) if text else None


def _line(record: Record) -> str:
    return ",".join(_cell(getattr(record, field.name)) for field in fields(record)) + "\n"


def _cell(value: Any) -> str:
    """Return one field of a row."""
    # Not `csv.writer`: on Python 3.11 it leaves a carriage return unquoted, which its own reader refuses.
    text = "" if value is None else " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\r\n') else text


def _cannot_write(path: Path, error: OSError) -> DataError:
    go_on = "make room on the disk, then run the same command again: it goes on where this one stopped"
    return DataError(
        f"{path} cannot be written: {error.strerror}",
        go_on if no_room(error) else "choose another file for the records",
    )
