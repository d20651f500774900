"""Clocks: calls timed side by side, so that a machine that is busy slows all of them."""

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch

from stm.errors import UsageError

SECONDS = 10.0
FEWEST, MOST = 5, 50


def interleave(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int | None = None,
    *,
    seconds: float = SECONDS,
    clock: Callable[[], float] = perf_counter,
    on_round: Callable[[int, int], None] | None = None,
) -> dict[str, list[float]]:
    """The seconds of each call, one a round. In a round every call runs once; each round begins with another one.

    Two rounds before those, which warm up caches, allocators and clocks, are not counted.

    Args:
        calls: by name; each returns when its work is done.
        rounds: None: as many as fit into so many `seconds`, `FEWEST` to `MOST`.
        on_round: called with how many rounds are done, and of how many.

    Raises:
        UsageError: fewer than one round.
    """
    if rounds is not None and rounds < 1:
        raise UsageError(f"rounds is {rounds}, expected at least 1")
    names, found = list(calls), {name: list[float]() for name in calls}
    for warm_up in (True, False):
        start = perf_counter()
        for name in names:
            calls[name]()
        a_round = perf_counter() - start
        if not warm_up and rounds is None:
            rounds = max(FEWEST, min(MOST, int(seconds / max(a_round, 1e-9))))
    assert rounds is not None
    for done in range(rounds):
        first = done % len(names)
        for name in names[first:] + names[:first]:
            start = clock()
            calls[name]()
            found[name].append(clock() - start)
        if on_round is not None:
            on_round(done + 1, rounds)
    return found


def spread(values: list[float]) -> float:
    """The distance between the quartiles; 0 for one value."""
    low, high = quartiles(values)
    return high - low


def quartiles(values: list[float]) -> tuple[float, float]:
    """The first and the third quartile; twice the value if there is one."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def ratio(these: list[float], those: list[float]) -> float:
    """The median over the rounds of one call's seconds to another's."""
    return statistics.median(a / b for a, b in zip(these, those, strict=True))


def waiting(call: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """The call, returning only when the device has done it."""
    if device.type == "cpu":
        return call

    def wait() -> None:
        call()
        torch.accelerator.synchronize(device)

    return wait


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """So many threads of torch's on the processor; None: as many as there are."""
    before = torch.get_num_threads()
    if number is not None:
        if number < 1:
            raise UsageError(f"threads is {number}, expected at least 1")
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
