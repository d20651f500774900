"""The clock: turns, warm-up and medians, with a clock that the tests move."""

import pytest
import torch

from stm.bench import timing
from stm.bench.timing import FEWEST, interleave, ratio, spread, threads, waiting
from stm.errors import UsageError


class Clock:
    """Time passes only in calls."""

    def __init__(self) -> None:
        self.now, self.order = 0.0, list[str]()

    def __call__(self) -> float:
        return self.now

    def call(self, name: str, seconds: float):
        def run() -> None:
            self.now += seconds
            self.order.append(name)

        return run


def test_calls_take_turns_and_each_round_begins_with_another() -> None:
    clock = Clock()
    calls = {name: clock.call(name, seconds) for name, seconds in (("a", 1.0), ("b", 2.0), ("c", 4.0))}
    told = []
    found = interleave(calls, 4, clock=clock, on_round=lambda done, of: told.append((done, of)))
    assert "".join(clock.order) == "abc" * 2 + "abc" + "bca" + "cab" + "abc"  # two rounds warm up
    assert found == {"a": [1.0] * 4, "b": [2.0] * 4, "c": [4.0] * 4}
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, FEWEST), (60.0, 9)])
def test_the_rounds_that_fit(monkeypatch: pytest.MonkeyPatch, seconds: float, expected: int) -> None:
    monkeypatch.setattr(timing, "MOST", 9)
    assert len(interleave({"a": lambda: None}, seconds=seconds)["a"]) == expected


def test_a_slow_machine_is_shared_by_both_sides_of_a_ratio() -> None:
    assert ratio([2.0, 200.0, 2.0, 20.0], [1.0, 100.0, 1.0, 10.0]) == 2.0


def test_spread() -> None:
    assert spread([5.0]) == 0.0
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == 2.0


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with threads(1):
        assert torch.get_num_threads() == 1
    with threads(None):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before


def test_nothing_is_waited_for_on_a_processor() -> None:
    def call() -> None: ...

    assert waiting(call, torch.device("cpu")) is call


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="rounds is 0"):
        interleave({}, 0)
    with pytest.raises(UsageError, match="threads is 0"), threads(0):
        pass
