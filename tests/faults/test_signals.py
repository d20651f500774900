"""SIGINT and SIGTERM at calls all over a command, its decoding processes included."""

import signal

import pytest

from tests.faults.fault import Fault
from tests.faults.jobs import COMPRESS, IMAGES, JOBS, World

EVAL = ("eval", "small", *IMAGES, "--batch-size", "1", "--records", "r.csv")
COMMANDS = {
    "compress": (*COMPRESS, "--out", "out"),
    "report": JOBS["report"].argv,
    "eval": EVAL,
    "workers": (*EVAL, "--workers", "2"),
    "fit": JOBS["fit"].argv,
}
MOST = {"workers": 30, "fit": 100}  # processes that import all anew, and many reads: both take seconds each time
STOPS = (signal.SIGINT, signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM)  # to the process, and to its whole group


def stopped_all_over(world: World, name: str, most: int) -> None:
    """Stop the command at all of its calls, or at so many, in turn by each of the signals."""
    argv = COMMANDS[name]
    world.clear()
    assert world.engine.warm(*argv) == 0
    world.clear()
    whole = world.engine(*argv, fault=Fault(every=True), whole=True)
    assert whole.code == 0, whole.err
    wrong, number = [], min(most, len(whole.calls))
    for each in range(number):
        stop, at = STOPS[each % len(STOPS)], 1 + each * (len(whole.calls) - 1) // max(1, number - 1)
        world.clear()
        ran = world.engine(*argv, fault=Fault(at, signal=stop, every=True), whole=True)
        said = [line for line in ran.err.splitlines() if not line.startswith(("Note: ", "Next: ", "      stm "))]
        if ran.code in (0, -abs(stop)):  # all was done, and perhaps the interpreter had gone already
            expected = said == []
        else:
            expected = ran.code == 128 + abs(stop) and len(said) == 1 and said[0].startswith("Stopped: ")
        if left := [path.name for path in world.paths() if ".stm-" in path.name]:
            expected = False
        if not expected or ran.orphans:
            wrong.append((stop, at, ran.calls[at - 1 : at], ran.code, ran.err, ran.orphans, left))
            print(wrong[-1], flush=True)
    print(name, number, "of", len(whole.calls), "calls")
    assert wrong == []


def test_a_signal_at_some_calls(world: World) -> None:
    stopped_all_over(world, "compress", 4)


@pytest.mark.slow(seconds=260, search=True)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_at_many_calls(world: World, name: str) -> None:
    stopped_all_over(world, name, MOST.get(name, 1000))
