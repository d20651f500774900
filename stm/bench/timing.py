"""Time calls side by side, so that a busy machine slows all of them alike.

A machine's speed drifts by more than the differences that matter here. Timing one call after the other would measure
the drift. Calls that take turns meet the same drift, and a ratio within a round is nearly free of it.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch

from stm.errors import UsageError

SECONDS = 10.0  # of all rounds together
FEWEST, MOST = 6, 50  # rounds: the interval of a median needs six, and calls of microseconds need a limit


def check_rounds(rounds: int | None) -> None:
    """Refuse a number of rounds below 1: UsageError."""
    if rounds is not None and rounds < 1:
        raise UsageError(f"rounds is {rounds}, expected at least 1")


def interleave(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int | None = None,
    *,
    seconds: float = SECONDS,
    clock: Callable[[], float] = perf_counter,
    on_round: Callable[[int, int], None] | None = None,
) -> dict[str, list[float]]:
    """Return the seconds of each call, one value per round. In a round every call runs once.

    Each round begins with another call, so that no call always runs after the same one. Two rounds that are not counted
    come first: they warm up caches, allocators and clocks.

    Args:
        calls: by name. Each must return only when its work is done.
        rounds: None: as many as fit into `seconds`, from `FEWEST` to `MOST`.
        on_round: called after each round with the number of rounds done and of all rounds.

    Raises:
        UsageError: fewer than one round.
    """
    check_rounds(rounds)
    names, times = list(calls), {name: list[float]() for name in calls}
    for warm_up in (True, False):
        start = perf_counter()
        for name in names:
            calls[name]()
        a_round = perf_counter() - start
        # The first warm-up round compiles and allocates; the second is what a round takes.
        if not warm_up and rounds is None:
            rounds = max(FEWEST, min(MOST, int(seconds / max(a_round, 1e-9))))
    assert rounds is not None
    for done in range(rounds):
        first = done % len(names)
        for name in names[first:] + names[:first]:
            start = clock()
            calls[name]()
            times[name].append(clock() - start)
        if on_round is not None:
            on_round(done + 1, rounds)
    return times


def spread(values: list[float]) -> float:
    """Return the distance between the quartiles; 0 for one value."""
    low, high = quartiles(values)
    return high - low


def quartiles(values: list[float]) -> tuple[float, float]:
    """Return the first and the third quartile; for one value, that value twice."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def ratio(these: list[float], those: list[float]) -> float:
    """Return the median over the rounds of one call's seconds divided by another's."""
    # The median of ratios, not the ratio of medians: each ratio is of two calls that ran at nearly the same time.
    return statistics.median(ratios(these, those))


def ratios(these: list[float], those: list[float]) -> list[float]:
    """Return one call's seconds divided by another's, round by round."""
    return [a / b for a, b in zip(these, those, strict=True)]


def waiting(call: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """Return the call made to return only when the device has finished its work."""
    if device.type == "cpu":
        return call

    def wait() -> None:
        call()
        torch.accelerator.synchronize(device)

    return wait


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Let torch use so many threads on the processor, and restore their number at the end. None: leave it.

    Raises:
        UsageError: fewer than one thread.
    """
    before = torch.get_num_threads()
    if number is not None:
        if number < 1:
            raise UsageError(f"threads is {number}, expected at least 1")
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
