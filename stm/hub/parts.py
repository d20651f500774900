"""Keep the part of a file that has come when a download is stopped, and go on from there in the next run.

huggingface_hub's `http_get` goes on from a size that it is given, but nothing in huggingface_hub gives it one: each
download has a part of its own and removes it, so that no broken lock mixes two (its pull request 4228). So we stand
before that function. A part lies in the cache beside the file that it becomes, under the hash of that file: another
version has another hash. One process holds it; others download as before. What was gone on with is held to its hash.

Files come by HTTP, as `stm.hub.guard` has it. Xet has no part to go on from: who asks for it begins each file anew.
"""

import hashlib
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

from stm.artifact.written import tell

_ENDING = ".stm-part"
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # the names of files in the cache; what has another has no hash
_state = threading.local()


@contextmanager
def kept() -> Iterator[None]:
    """Keep the parts of the downloads in the block, which are this thread's."""
    from huggingface_hub import file_download

    get = getattr(file_download, "http_get", None)
    if get is not None and not hasattr(get, "of_stm"):
        file_download.http_get = _before(get)
    _state.on = True
    try:
        yield
    finally:
        _state.on = False


def digest_of(name: str, file: Any) -> str | None:
    """Return the hash of a file's content, of the kind that its name in the cache is; None if that is no hash.

    A file in LFS is named by its SHA-256, a small one by the hash that git gives it.
    """
    if len(name) == 64 and _HASH.fullmatch(name):
        return hashlib.file_digest(file, "sha256").hexdigest()
    if _HASH.fullmatch(name):
        size = os.fstat(file.fileno()).st_size
        return hashlib.sha1(b"blob %d\0" % size + file.read(), usedforsecurity=False).hexdigest()
    return None


def _before(get: Callable[..., None]) -> Callable[..., None]:
    """Return huggingface_hub's function with ours before it."""

    def http_get(url: str, temp_file: BinaryIO, *, resume_size: int = 0, **how: Any) -> None:
        if resume_size or not getattr(_state, "on", False):
            return get(url, temp_file, resume_size=resume_size, **how)
        temporary = Path(temp_file.name)
        name = temporary.name.partition(".")[0]
        path = temporary.with_name(name + _ENDING)
        with _held(path) if _HASH.fullmatch(name) else nullcontext() as part:
            if part is None:
                return get(url, temp_file, **how)
            _state.on = False  # it calls itself after a broken line
            try:
                _continue(get, url, part, path, how)
            finally:
                _state.on = True
            os.replace(path, temporary)  # huggingface_hub then moves it to its place
            return None

    http_get.of_stm = True  # type: ignore[attr-defined]
    return http_get


def _continue(get: Callable[..., None], url: str, part: BinaryIO, path: Path, how: dict[str, Any]) -> None:
    """Download what a part lacks. It stays if that fails, unless the disk is full."""
    size, whole = os.fstat(part.fileno()).st_size, how.get("expected_size")
    if whole is None or size > whole:
        size = part.truncate(0)
    try:
        part.seek(size)
        get(url, part, resume_size=size, **how)
        part.flush()
        part.seek(0)
        if size and digest_of(path.stem, part) != path.stem:  # the part was damaged: the file anew, without it
            part.seek(part.truncate(0))
            get(url, part, **how)
            part.flush()
    except BaseException as error:
        no_room = isinstance(error, OSError) and error.errno is not None
        with suppress(OSError):
            part.flush()
        if no_room or not os.fstat(part.fileno()).st_size:
            path.unlink(missing_ok=True)
        else:
            tell(path, grows=True)
        raise


@contextmanager
def _held(path: Path) -> Iterator[BinaryIO | None]:
    """Open a part and hold its lock. Yield None if another process holds it, or if it is no plain file."""
    try:
        import fcntl  # not everywhere

        # A cache may be somebody else's: neither a link nor a pipe is a part.
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666), "r+b")
    except (ImportError, OSError):
        yield None
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours, named = os.fstat(file.fileno()), path.stat(follow_symlinks=False)
            # Whoever held the lock before may have finished it, and its content has another name since.
            plain = stat.S_ISREG(ours.st_mode) and ours.st_nlink == 1 and os.path.samestat(ours, named)
        except OSError:
            plain = False
        if not plain:
            yield None
            return
        yield file
