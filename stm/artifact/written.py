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

    place: str
    grows: bool = False


_told: ContextVar[list[Written] | None] = ContextVar("written", default=None)


@contextmanager
def noting() -> Iterator[list[Written]]:
    """Yield a list to which the block's writes are added, each place once, in their order."""
    written: list[Written] = []
    before = _told.set(written)
    try:
        yield written
    finally:
        _told.reset(before)


def so_far() -> tuple[Written, ...]:
    """Return what was written since `noting` began; nothing outside of it."""
    return tuple(_told.get() or ())


def tell(place: Path | str, *, grows: bool = False) -> None:
    """Note that a place is written. A file within a folder that was told of goes without saying."""
    written = _told.get()
    if written is None:
        return
    known = {each.place for each in written}
    inside = {str(place), *(str(parent) for parent in place.parents)} if isinstance(place, Path) else {place}
    if not known & inside:
        written.append(Written(str(place), grows))
