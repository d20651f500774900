"""A progress bar for Python: drawn only if somebody asks with `progress=True`, in a terminal or in a notebook.

The command line draws its own. Where stderr is neither a terminal nor a notebook's, nothing is drawn: a log is for
lines.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from stm.progress import OnProgress, Progress

_WIDTH = 20
_EVERY = 0.1  # seconds between two drawings


@contextmanager
def drawn(progress: bool, on_progress: OnProgress | None, *, stage: str) -> Iterator[OnProgress | None]:
    """Yield the callback of a piece of work: the caller's own, and if `progress` a bar, at once and until the end.

    Args:
        stage: the work in words, shown until the first report.
    """
    draw = _surface() if progress else None
    if draw is None:
        yield on_progress
        return
    bar = Bar(draw, stage)

    def both(at: Progress) -> None:
        bar(at)
        if on_progress is not None:
            on_progress(at)

    try:
        yield both
    finally:
        draw("")


class Bar:
    """Draws reports as one line of text.

    Args:
        draw: shows a line in place of the last one.
        stage: the work in words, until the first report.
        clock: in seconds.
    """

    def __init__(self, draw: Callable[[str], None], stage: str, clock: Callable[[], float] = monotonic) -> None:
        self._draw, self._clock, self._stage = draw, clock, ""
        self._began, self._first, self._last = 0.0, 0, float("-inf")
        draw(f"{stage} ...")

    def __call__(self, at: Progress) -> None:
        now = self._clock()
        if at.stage != self._stage:
            self._stage, self._began, self._first, self._last = at.stage, now, at.done, float("-inf")
        if now - self._last >= _EVERY or at.done == at.total:
            self._last = now
            self._draw(self._line(at, now - self._began))

    def _line(self, at: Progress, passed: float) -> str:
        of, bar, left = "", "", ""
        if at.total:
            of = f"/{at.total:,}"
            full = _WIDTH * min(at.done, at.total) // at.total
            bar = "█" * full + "░" * (_WIDTH - full) + " "
            if at.done > self._first:
                seconds = round(passed * (at.total - at.done) / (at.done - self._first))
                left = f", {seconds // 60}:{seconds % 60:02d} left"
        detail = f", {at.detail}" if at.detail else ""
        return f"{at.stage} {bar}{at.done:,}{of} {at.unit}{detail}{left}"


def _surface() -> Callable[[str], None] | None:
    """Return what shows a line here; None if nothing should."""
    # A notebook has imported IPython already; asking it needs no import of ours.
    ipython = sys.modules.get("IPython")
    shell: Any = None if ipython is None else ipython.get_ipython()
    if shell is not None and hasattr(shell, "kernel"):
        return _in_notebook(sys.modules["IPython"])
    if sys.stderr is not None and sys.stderr.isatty():
        return _in_terminal
    return None


def _in_terminal(line: str) -> None:
    sys.stderr.write(f"\r\x1b[K{line}")
    sys.stderr.flush()


def _in_notebook(ipython: Any) -> Callable[[str], None]:
    handle: Any = None

    def draw(line: str) -> None:
        nonlocal handle
        data = {"text/plain": line}
        if handle is None:
            handle = ipython.display.display(data, raw=True, display_id=True)
        else:
            handle.update(data, raw=True)

    return draw
