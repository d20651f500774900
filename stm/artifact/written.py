"""What a piece of work has written, told to whoever asked: to name it at the end, or when somebody stops it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple


class Written(NamedTuple):
    """A file, folder or address that is written.

    Args:
        grows: it holds a part of the work, and the same work goes on from there.
    """

    path: str
    grows: bool = False


_told: ContextVar[list[Written] | None] = ContextVar("written", default=None)


@contextmanager
def noting() -> Iterator[list[Written]]:
    """Yield a list to which the block's writes are added, each path once, in their order."""
    written: list[Written] = []
    before = _told.set(written)
    try:
        yield written
    finally:
        _told.reset(before)


def so_far() -> tuple[Written, ...]:
    """Return what was written since `noting` began; nothing outside of it."""
    return tuple(_told.get() or ())


def tell(path: Path | str, *, grows: bool = False) -> None:
    """Note that a file or folder is written. A file within a folder that was told of goes without saying."""
    written = _told.get()
    if written is None:
        return
    known = {each.path for each in written}
    inside = {str(path), *(str(parent) for parent in path.parents)} if isinstance(path, Path) else {path}
    if not known & inside:
        written.append(Written(str(path), grows))
