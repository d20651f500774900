"""The cells of a sweep on disk: each is stored when it is finished, and a run that is killed continues where it was.

A folder holds `cells.jsonl`, one line per finished cell, and `sweep-of.json`, which says what they were measured on.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stm.artifact import atomic
from stm.artifact.written import tell
from stm.codec import decode, encode, parse
from stm.config import Preprocess
from stm.errors import DataError, UsageError, said
from stm.findings import SweepRow
from stm.measure.hold import Hold, check_free
from stm.recipe import Fit

CELLS, IDENTITY = "cells.jsonl", "sweep-of.json"
_ANOTHER = "give another folder: --out DIR"
_LATER = "make room on the disk, then run the same command again: it goes on where this one stopped"


@dataclass(frozen=True, kw_only=True)
class SweepIdentity:
    """What cells were measured on. Two runs may share a folder if all of it is equal; their grids may differ.

    Args:
        model: `stm.measure.records.fingerprint` of the dense model.
        data: the sample set's fingerprint.
        environment: the machine and software that computed them, as in the report.
        fit: the images that decided the fitted schedules. None if no cell is fitted yet; a later run may add the first.
    """

    model: str
    data: str
    preprocessing: Preprocess
    limit: int | None
    seed: int
    batch_size: int
    environment: dict[str, Any]
    fit: Fit | None = None


class CellFile:
    """The finished cells of a folder: `done`, by key. One run at a time has it, until `close`.

    Args:
        folder: a new one is made; one that an equal run left is continued.
        identity: what this run measures.
        also: names of other files that may be there.

    Raises:
        UsageError: the folder holds something else, or cannot be written.
        DataError: it holds the cells of another run, or a line that is not a cell; or another process is writing to it.
    """

    def __init__(self, folder: Path, identity: SweepIdentity, also: tuple[str, ...] = ()) -> None:
        self.path, beside = folder / CELLS, folder / IDENTITY
        check_folder(folder, also)
        with atomic.refusing(folder, _ANOTHER):
            folder.mkdir(parents=True, exist_ok=True)
            atomic.sync(folder.absolute().parent)  # the folder's own name; what it holds follows
            self._hold = Hold(self.path)
            try:
                self._continue(identity, beside)
            except BaseException:  # an interrupt too must not leave the lock, or an empty file that was not there
                self._hold.discard()
                raise

    def close(self) -> None:
        """Let other runs have the folder."""
        self._hold.close()

    def _continue(self, identity: SweepIdentity, beside: Path) -> None:
        if beside.exists():
            self._refuse_another(identity, beside)
        else:
            self._identify(identity, beside)
        whole = self.path.read_bytes()
        whole = whole[: whole.rfind(b"\n") + 1]  # a killed run may have torn the last line off
        self.done = self._parse(whole)
        with self.path.open("ab") as stream:
            stream.truncate(len(whole))

    def append(self, key: str, row: SweepRow) -> None:
        """Write a finished cell to the disk: neither a kill after this nor a failure of power loses it."""
        line = json.dumps({"key": key, "row": encode(row)}, sort_keys=True, allow_nan=False) + "\n"
        with atomic.refusing(self.path, _LATER, DataError):
            with self.path.open("ab") as stream:
                stream.write(line.encode())
            atomic.sync(self.path)
        tell(self.path.parent, grows=True)
        self.done[key] = row

    def _parse(self, text: bytes) -> dict[str, SweepRow]:
        done = {}
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                document = parse(line.decode())
                done[document["key"]] = decode(SweepRow, document["row"], "row")
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise DataError(f"{self.path}: line {number} is not a cell: {said(error)}", _ANOTHER) from error
        return done

    def _refuse_another(self, identity: SweepIdentity, beside: Path) -> None:
        try:
            recorded = encode(decode(SweepIdentity, parse(beside.read_text(encoding="utf-8")), ""))
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{beside} does not say what the cells were measured on: {said(error)}", _ANOTHER
            ) from error
        current = encode(identity)
        open_ = ("fit",) if None in (recorded["fit"], current["fit"]) else ()
        if different := [key for key in current if recorded[key] != current[key] and key not in open_]:
            raise DataError(f"{beside.parent} holds the cells of another run: {', '.join(different)} differ", _ANOTHER)
        if recorded["fit"] is None and current["fit"] is not None:
            self._identify(identity, beside)

    def _identify(self, identity: SweepIdentity, beside: Path) -> None:
        write_whole(beside, (json.dumps(encode(identity), indent=2, sort_keys=True) + "\n").encode())


def check_folder(folder: Path, also: tuple[str, ...] = ()) -> None:
    """Refuse a folder that cannot hold a sweep, before any work is done.

    Raises:
        UsageError: it is a file, a folder with other files, or the system would not let us write there.
        DataError: another process is writing to it.
    """
    with atomic.refusing(folder, _ANOTHER):
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is a file, expected a folder for the sweep", "give another one: --out DIR")
        if folder.exists():
            ours = {CELLS, IDENTITY, *also}
            # The draft of one of our files is what a killed run left, and no reason to refuse the folder.
            if foreign := sorted(name for name in os.listdir(folder) if atomic.place_of(name) not in ours):
                raise UsageError(
                    f"{folder} holds {foreign[0]}, expected a new folder or one of a sweep",
                    "give another one: --out DIR",
                )
            atomic.check_writable(folder / CELLS, _ANOTHER, append=True)
            check_free(folder / CELLS)
        # The name of a draft of ours: what a kill leaves of the probe does not make the folder a stranger's.
        atomic.probe((folder / CELLS).absolute())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file of the folder: it is there with all of its content, or as it was before.

    Raises:
        DataError: the disk is full, or the system refused the write.
    """
    with atomic.refusing(path, _LATER, DataError), atomic.drafted(path, kept=False) as draft:
        draft.write_bytes(content)
    tell(path.parent, grows=True)  # the folder is the result, and goes on from its cells
