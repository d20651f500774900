"""Progress reports. The library calls back with them and never prints; the command line draws them."""

from collections.abc import Callable
from typing import NamedTuple


class Progress(NamedTuple):
    """How far a long piece of work has come.

    Args:
        stage: the work in words.
        done, total: the amounts in `unit`; `total` is None if it is unknown.
        unit: the word for what is counted.
    """

    stage: str
    done: int
    total: int | None
    unit: str


OnProgress = Callable[[Progress], None]
