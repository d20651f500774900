"""Let one process at a time add to a file: a lock that ends with its holder, and a sentence that names the holder.

The lock is on the file itself, so no lock file is left beside it. The kernel releases the lock of a killed process, so
none has to be removed by hand.
"""

import os
import weakref
from contextlib import suppress
from pathlib import Path

from stm.artifact.locks import holder
from stm.errors import DataError


class Hold:
    """A file that nobody else adds to until `close`, or until this object is collected. An absent file is created.

    Raises:
        DataError: another process, or another run of this one, holds it. The sentence says who.
        OSError: the system refuses to open it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        while True:
            self.made = not path.exists()
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            self.close = weakref.finalize(self, os.close, descriptor)
            if not _lock(descriptor, exclusive=True):
                raise _held(path, descriptor)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return
            # Another process removed the file between the two calls. This lock is on a file without a name, which the
            # next process would not see: try again with the file that now has the name.
            self.close()

    def discard(self) -> None:
        """End the hold. Remove the file if this object created it and nothing was written."""
        if self.made and self._path.exists() and not self._path.stat().st_size:
            self._path.unlink()
        self.close()


def check_free(path: Path) -> None:
    """Raise an error if another process adds to the file.

    Raises:
        DataError: as `Hold`.
    """
    if path.is_file():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            # A shared lock is enough to ask: it fails against a writer, and two askers do not stop each other.
            if not _lock(descriptor, exclusive=False):
                raise _held(path, descriptor)
        finally:
            os.close(descriptor)


def _lock(descriptor: int, *, exclusive: bool) -> bool:
    """Return False if another process has the lock. True also if the drive cannot lock, as some network drives."""
    import fcntl  # inside the function, because the module is also imported on systems without fcntl

    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no lock is possible here, and a run that works alone must not fail because of that
        return True
    return True


def _held(path: Path, descriptor: int) -> DataError:
    return DataError(
        f"{path} is in use: {holder(descriptor)} is writing to it",
        "wait until it has ended, or give this run another place",
    )
