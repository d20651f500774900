"""Progress reports. The library calls back with them and never prints; the command line draws them."""

from collections.abc import Callable
from typing import NamedTuple


class Progress(NamedTuple):
    """How far a long piece of work has come.

    Args:
        stage: the work in words.
        done, total: the amounts in `unit`; `total` is None if it is unknown.
        unit: the word for what is counted.
        detail: the method or model that is at work, if there are several.
    """

    stage: str
    done: int
    total: int | None
    unit: str
    detail: str = ""


OnProgress = Callable[[Progress], None]


class Meter:
    """Report images that pass several models, batch by batch. It moves within a batch too, which may take minutes.

    Args:
        on_progress: takes the reports; None: nobody does.
        passes: the models that every image passes.
        done: the images that had passed before.
    """

    def __init__(
        self, on_progress: OnProgress | None, stage: str, total: int, *, passes: int = 1, done: int = 0
    ) -> None:
        self._report, self._stage, self.total, self._passes = on_progress, stage, total, passes
        self._done, self._passed, self._told = done, 0, ("", -1, -1)
        self._below: int | None = None
        self.tell()

    def begin(self, images: int) -> None:
        """Begin a batch whose images do not count before `finished`: their number tells others that they are kept."""
        self._below = self._done + images

    def tell(self, detail: str = "") -> None:
        """Report what has passed, and who is at work, unless that was the last report."""
        now = min(self._done + self._passed // self._passes, self.total)
        if self._below is not None:
            now = min(now, self._below - 1)
        if self._report is not None and (detail, now, self.total) != self._told:
            self._told = detail, now, self.total
            self._report(Progress(self._stage, now, self.total, "images", detail))

    def passed(self, images: int, detail: str = "") -> None:
        """Count images that have passed one model, of the batch that is at work."""
        self._passed += images
        self.tell(detail)

    def finished(self, done: int, detail: str = "") -> None:
        """Count all images that have passed all models; no part of a batch is left."""
        self._done, self._passed, self._below = done, 0, None
        self.tell(detail or self._told[0])
