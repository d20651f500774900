"""How far a long piece of work is."""

from collections.abc import Callable
from typing import NamedTuple


class Progress(NamedTuple):
    """How far a long piece of work is. `total` is None where it is not known."""

    stage: str
    done: int
    total: int | None
    unit: str


OnProgress = Callable[[Progress], None]
