"""Files to which one process at a time adds: a lock that ends with its holder, and who holds it.

The lock is on the file itself, so nothing is left beside it, and the kernel takes it away from a process that was
killed.
"""

import os
import weakref
from contextlib import suppress
from pathlib import Path

from stm.errors import DataError

_LOCKS = Path(
    "/proc/locks"
)  # Linux: "1: FLOCK ADVISORY WRITE 1234 08:01:5678 0 EOF", the process and the file's number


class Hold:
    """A file that nobody else adds to until `close`, or until this is forgotten. The file is made if it is not there.

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
            self.close()  # it was removed between the two calls: this would be the lock of a file without a name

    def discard(self) -> None:
        """End the hold, and remove the file if it was made here and nothing was written."""
        if self.made and self._path.exists() and not self._path.stat().st_size:
            self._path.unlink()
        self.close()


def check_free(path: Path) -> None:
    """Refuse a file that another process adds to.

    Raises:
        DataError: as `Hold`.
    """
    if path.is_file():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            if not _lock(descriptor, exclusive=False):
                raise _held(path, descriptor)
        finally:
            os.close(descriptor)


def _lock(descriptor: int, *, exclusive: bool) -> bool:
    """False if somebody else has the lock. True also where nobody can lock, as on some network drives."""
    import fcntl  # here, because the module is also imported on systems without it

    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _held(path: Path, descriptor: int) -> DataError:
    number, who = str(os.fstat(descriptor).st_ino), "another process"
    with suppress(OSError):
        for line in _LOCKS.read_text(encoding="ascii").splitlines():
            words = line.split()
            if words[1:2] == ["FLOCK"] and words[3] == "WRITE" and words[5].rpartition(":")[2] == number:
                who = f"process {words[4]}"
    return DataError(
        f"{path} is in use: {who} is writing to it", "wait until it has ended, or give this run another place"
    )
