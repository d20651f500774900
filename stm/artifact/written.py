"""What a piece of work has written, told to whoever asked: to name it at the end, or when somebody stops it.

What it could not keep beside its result is told in the same way.
"""

import logging
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
_unkept: ContextVar[dict[str, None] | None] = ContextVar("unkept", default=None)


@contextmanager
def noting() -> Iterator[list[Written]]:
    """Yield a list to which the block's writes are added, each path once, in their order."""
    written: list[Written] = []
    before, others = _told.set(written), _unkept.set({})
    try:
        yield written
    finally:
        _told.reset(before)
        _unkept.reset(others)


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


def unkept() -> tuple[str, ...]:
    """Return what was told by `tell_unkept` since `noting` began, each sentence once; nothing outside of it."""
    return tuple(_unkept.get() or ())


def tell_unkept(sentence: str) -> None:
    """Say that something beside the result could not be written. If nobody notes it, the logger `stm` warns."""
    sentences = _unkept.get()
    if sentences is None:
        logging.getLogger("stm").warning(sentence)
    else:
        sentences[sentence] = None
