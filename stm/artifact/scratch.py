"""Temporary folders that do not outlive a killed run for long: the next run that wants one removes them."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stm.artifact import atomic
from stm.errors import ArtifactError

HINT = "make room there, or name another folder for temporary files in TMPDIR"


@contextmanager
def scratch(label: str) -> Iterator[Path]:
    """Yield a new folder below the system's folder for temporary files, and remove it when the block ends.

    Folders that killed runs left under the same label are removed first. Folders of living runs stay.

    Args:
        label: a name for this use, such as `stm-push`.

    Raises:
        ArtifactError: no folder can be made there.
    """
    import fcntl  # here, because the module is also imported on systems without it

    base = Path(tempfile.gettempdir()) / label
    atomic.clear_folders(base)
    folder, descriptor = atomic.draft_of(base), None
    try:
        with atomic.refusing(folder, HINT, ArtifactError):  # the output, of which others speak, may have room
            while True:
                folder.mkdir(mode=0o700)  # the folder for temporary files is everybody's, its content is ours
                # The lock says that this run lives. Between the two calls another run may have taken the folder for a
                # dead run's. Only that run can hold the lock, and only for as long as it removes the folder: waiting
                # ends.
                with suppress(FileNotFoundError):
                    descriptor = os.open(folder, os.O_RDONLY)
                    with suppress(OSError):  # some network drives have no locks: then nothing is ever cleared there
                        fcntl.flock(descriptor, fcntl.LOCK_EX)
                    if folder.is_dir():
                        break
                    os.close(descriptor)
                    descriptor = None
                folder = atomic.draft_of(base)
            inside = folder / label
            inside.mkdir()
        yield inside  # not the folder itself: whoever writes into a folder waits for its lock, which is held here
    finally:
        atomic.clear(folder)
        if descriptor is not None:
            os.close(descriptor)
