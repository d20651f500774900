"""Unpack archives from elsewhere without trusting them: files and folders only, none outside, sizes bounded."""

import gzip
import io
import os
import tarfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from filelock import FileLock, Timeout

from stm.artifact import atomic
from stm.artifact.locks import holder
from stm.errors import DataError, said
from stm.progress import OnProgress, Progress

_PATIENCE = 60.0  # seconds in which another process that unpacks the same archive must have made a file


@dataclass(frozen=True)
class Limits:
    """The most that an archive may hold: the number of files, the bytes of all of them, and the bytes of one.

    ImageNet's 50,000 validation images take about 6 GB.
    """

    files: int = 200_000
    total: int = 32 << 30
    one: int = 256 << 20


def unpack(archive: Path, folder: Path, *, limits: Limits = Limits(), on_progress: OnProgress | None = None) -> Path:
    """Unpack a .tar.gz into `folder`, whole or not at all, and return the folder. If it exists, nothing is done.

    Another process that wants the same folder meanwhile waits. The next run clears what a killed run left.

    Raises:
        DataError: the archive is damaged, holds something else than files and folders or a name that leads outside, is
            larger than the limits, or the disk is full; or another process unpacks it, and makes no file for a minute.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # One fixed name will do, because the lock allows one writer; so the next run finds what a killed one left.
    new = folder.with_name(f"{folder.name}.incomplete")
    with _turn(FileLock(f"{folder}.lock"), archive, new):
        if not folder.is_dir():  # asked under the lock: the process before us may have unpacked it
            atomic.clear(new)
            try:
                _extract(archive, new, limits, on_progress)
                os.rename(new, folder)
            except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, OverflowError) as error:
                raise DataError(
                    f"{archive.name} cannot be unpacked: {said(error)}", "delete it from the cache and run it again"
                ) from error
            except OSError as error:
                raise DataError(
                    f"{archive.name} cannot be unpacked: {error.strerror} ({folder.parent})", "make room there"
                ) from error
            finally:  # after the rename there is nothing left to remove
                atomic.clear(new)
    return folder


@contextmanager
def _turn(lock: FileLock, archive: Path, new: Path) -> Iterator[None]:
    """Hold the lock. Wait for another process for as long as it makes files in `new`."""
    made, moved = -1, time.monotonic()
    while not lock.is_locked:
        try:
            lock.acquire(timeout=_PATIENCE / 4)
        except Timeout:
            now = sum(1 for _ in new.rglob("*"))
            if now != made:
                made, moved = now, time.monotonic()
            elif time.monotonic() - moved >= _PATIENCE:
                raise DataError(
                    f"{archive.name} is being unpacked by {holder(Path(lock.lock_file))}, which has made no file for"
                    f" {_PATIENCE:.0f} seconds",
                    f"end that process and run this again; if none unpacks it, remove {lock.lock_file}",
                ) from None
    try:
        yield
    finally:
        lock.release()


def _extract(archive: Path, new: Path, limits: Limits, on_progress: OnProgress | None) -> None:
    new.mkdir()
    files = total = 0
    # Our own stream below the tar reader, because the reader unpacks headers of any size before it returns a member.
    with gzip.open(archive) as stream, tarfile.open(fileobj=cast(Any, Bounded(stream, limits)), mode="r:") as tar:
        for member in tar:  # not `getmembers`, which would read the whole archive before the first check
            if not (member.isreg() or member.isdir()):
                raise DataError(
                    f"{archive.name} holds {member.name}, which is neither a file nor a folder: it was not unpacked"
                )
            files, total = files + member.isreg(), total + member.size
            if files > limits.files or total > limits.total or member.size > limits.one:
                raise DataError(
                    f"{archive.name} holds more than {limits.files:,} files or {limits.total:,} bytes: it was not"
                    " unpacked"
                )
            tar.extract(member, new, filter="data")  # the filter refuses names that lead outside
            if on_progress is not None:
                on_progress(Progress(f"unpack {archive.name}", files, None, "files"))


class Bounded(io.RawIOBase):
    """A stream that refuses to read more at once than one file may have.

    The headers of a tar file claim sizes too, of long names for example, and `tarfile` reads so much into memory.
    """

    def __init__(self, stream: BinaryIO | gzip.GzipFile, limits: Limits) -> None:
        self._stream, self._limits = stream, limits

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self._limits.one:
            raise tarfile.ReadError(f"a header claims {size:,} bytes")
        return self._stream.read(size)

    def seek(self, position: int, whence: int = 0) -> int:
        return self._stream.seek(position, whence)

    def tell(self) -> int:
        return self._stream.tell()
