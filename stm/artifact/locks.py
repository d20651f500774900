"""How runs that write one path at once keep out of each other's way: temporary names beside it, and locks.

A run writes under a name of its own, and holds a lock on what it writes for as long as it lives. So a later run can
tell what a killed run left from what a living one is writing. Standard library only.
"""

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Linux lists all locks here: "1: FLOCK ADVISORY WRITE 1234 08:01:5678 0 EOF", with the process and the file's number.
_LOCKS = Path("/proc/locks")


def sibling(path: Path, kind: str, token: str) -> Path:
    """Return a name beside `path`: "tmp" for the folder that is being written, "old" for the one that it replaces."""
    # In the same folder, because a rename is one step only within one file system. The dot hides it from `ls`.
    return path.parent / f".{path.name}.stm-{kind}-{token}"


def tokens(path: Path, kind: str) -> list[str]:
    """Return the tokens, eight hex digits each, of the runs that left a folder of this kind beside `path`."""
    folders = path.parent.glob(f".{glob.escape(path.name)}.stm-{kind}-" + "[0-9a-f]" * 8)
    return sorted(folder.name[-8:] for folder in folders if folder.is_dir() and not folder.is_symlink())


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """Hold the lock of the folder that holds `path`, or of the next parent that exists; wait for it if needed."""
    # What a process sees under this lock still holds when it renames under it. None does slow work under it.
    import fcntl  # here, because reading also works on systems without fcntl

    descriptor = os.open(next(parent for parent in path.parents if parent.exists()), os.O_RDONLY)
    try:
        with suppress(OSError):  # some network drives have no locks; a rename that fails there is reported
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def lock(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder or file. Yield False if a living process holds it, or if the file system has no locks.

    The kernel ends a dead process's lock, so a free lock proves that the process is dead. A process id proves nothing:
    the system may have given it to another process, or it may belong to another machine.
    """
    import fcntl  # here, because reading also works on systems without fcntl

    descriptor = None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = True
    except OSError:
        held = False
    try:
        yield held
    finally:
        if descriptor is not None:
            os.close(descriptor)


def abandoned(path: Path) -> Iterator[Path]:
    """Yield every folder that is named as a draft of `path` and whose run has died. Its lock is held meanwhile."""
    # A lock tells the dead from the living: only a dead run's temporary folder can be locked.
    for token in tokens(path, "tmp"):
        folder = sibling(path, "tmp", token)
        with lock(folder) as free:
            if free:
                yield folder


def holder(file: Path | int) -> str:
    """Return who holds the lock of a file, by its path or its descriptor: "process 1234", or "another process"."""
    who = "another process"
    with suppress(OSError):
        number = str(os.stat(file).st_ino)
        for line in _LOCKS.read_text(encoding="ascii").splitlines():
            words = line.split()
            if words[1:2] == ["FLOCK"] and words[3] == "WRITE" and words[5].rpartition(":")[2] == number:
                who = f"process {words[4]}"
    return who
