"""What all tests share."""

import gc
import importlib.util
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

# The same examples on every run, and no time limit on one: a busy machine must not fail a test. As many as a fast suite
# has time for; a test that needs more asks for them.
settings.register_profile(
    "stm", derandomize=True, deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("stm")
# tools/mutate.py asks whether anything fails, and not for the smallest example that does.
settings.register_profile("mutants", settings.get_profile("stm"), phases=(Phase.explicit, Phase.generate))

if not torch.cuda.is_available():
    os.environ.setdefault(
        "TRITON_INTERPRET", "1"
    )  # before anything imports triton: its kernels then run on the CPU, slowly

# A shell starts what it puts in the background deaf to Ctrl-C, and so would be all that the tests start and stop.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

PARITY = "error against a golden output"  # the key of what `tell` of tests/golden leaves with a test

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--until", type=float, help="begin no slow test that may end after this time (seconds since 1970)")


def slowness(item: pytest.Item) -> float:
    """At most how many seconds the slow test takes on two busy processors; 0 if it is not slow."""
    marker = item.get_closest_marker("slow")
    return marker.kwargs.get("seconds", 30.0) if marker else 0.0


def searches(item: pytest.Item) -> bool:
    """Whether the slow test is one of many cases, all of which together look for a fault."""
    marker = item.get_closest_marker("slow")
    return bool(marker and marker.kwargs.get("search"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    until = item.config.getoption("--until")
    if until is not None and slowness(item) and time.time() + slowness(item) > until:
        pytest.skip(f"no time left: it may take {slowness(item):.0f} s")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deal the long tests to all processes, and put them first, so that no process is left alone with one.

    With `--dist worksteal` each process begins with one stretch of the list, all stretches of one length. A process
    that has finished its stretch takes the end of another's. So long tests at the head of the whole list would all be
    one process's, and nobody would take them from it. The other tests stay in their order: modules stay together.
    """
    processes = getattr(config, "workerinput", {}).get("workercount", 1)
    # The longest first, so that no process is left alone with one. If the time may run out, searches come last.
    limited = config.getoption("--until") is not None
    long = sorted(filter(slowness, items), key=lambda item: (limited and searches(item), -slowness(item)))
    short = [item for item in items if not slowness(item)]
    left, dealt = len(items), []
    for number in range(processes):
        stretch = left // (processes - number)  # as xdist cuts the list
        left -= stretch
        first = long[number::processes]
        rest = max(0, stretch - len(first))
        dealt += first + short[:rest]
        short = short[rest:]
    items[:] = dealt + short


def pytest_collection_finish() -> None:
    """Python's collector would look at half a million objects, of libraries and tests, again and again."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The largest error of every golden file. It travels with the tests' reports, so that several processes may run
    them."""
    largest: dict[str, tuple[float, str]] = {}
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        for key, value in getattr(report, "user_properties", ()):
            if key == PARITY:
                file, error, where = value
                largest[file] = max((error, where), largest.get(file, (0.0, "")))
    if largest:
        terminalreporter.section("largest errors against the golden outputs, of at most 1e-4")
        for file, (error, where) in sorted(largest.items()):
            terminalreporter.write_line(f"{error:.2e}  {file} ({where})")


@pytest.fixture(scope="session", autouse=True)
def costs_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's cache is never written, and costs are computed once per run: all processes share one folder."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def few_pictures() -> Iterator[Callable[[Any], int]]:
    """A fit of a small model draws four pictures of each kind where it would draw 192, which took most of the time of
    most tests of commands. Models as deep as ViM keep their own number: the embedded one's costs are of all pictures.
    """
    from stm.data import fit_images  # late: tests/cover.py sees what a module does when it is imported

    whole = fit_images.pictures_per_source
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_images, "pictures_per_source", lambda model: whole(model) if model.depth >= 24 else 4)
        yield whole


@pytest.fixture(autouse=True)
def all_pictures(request: pytest.FixtureRequest, few_pictures: Callable[[Any], int]) -> Iterator[None]:
    """As many as for a user, for a test with this mark."""
    # A patch of its own: with pytest's, the patches of a test would outlive the fixtures of its file.
    with pytest.MonkeyPatch.context() as patch:
        if "all_pictures" in request.keywords:
            patch.setattr("stm.data.fit_images.pictures_per_source", few_pictures)
        yield


@pytest.fixture(scope="session", autouse=True)
def few_rounds() -> Iterator[None]:
    """No test asserts a time, so what is timed has the fewest rounds that an interval needs, and not as many as fit."""
    from stm.bench import timing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "MOST", timing.FEWEST)
        yield


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """`shared("golden/x")`: a reference file that is not in the repository; the test is skipped where it is absent."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"needs {name} of the reference material, which is not here")
        return path

    return find


@pytest.fixture(scope="session")
def vim_ti_state(shared: Callable[[str], Path]) -> Callable[[], dict[str, Any]]:
    """Makes the official state dict of full-size ViM-Ti from the golden script (seed 1); skipped where that is
    absent."""

    def make() -> dict[str, Any]:
        spec = importlib.util.spec_from_file_location("golden_weights", shared("golden/weights.py"))
        assert spec is not None
        assert spec.loader is not None
        weights = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(weights)
        state: dict[str, Any] = weights.state_dict(D=192, depth=24, N=16, tokens=197, classes=1000, patch=16, seed=1)
        return state

    return make
