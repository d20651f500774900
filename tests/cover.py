"""`-p tests.cover`: which branches the tests take of what `[tool.coverage]` names, measured in the one run of all.

Tracing more than doubles the processor time of a test that reads checkpoints. So only the tests of COVERING are traced,
without those of COSTLY, which take no branch that the others do not. `-m covering` runs them alone. Each process writes
a file of its own: `coverage combine` joins them.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path

import coverage
import pytest

COVERING = (
    "tests/unit/checkpoint/",
    *(
        f"tests/unit/test_{name}.py"
        for name in ("artifact", "artifact_failures", "atomic", "atomic_leftovers", "branches", "config")
    ),
    *(f"tests/unit/test_{name}.py" for name in ("given_names", "tensors")),
)
COSTLY = (
    *("nearly_every_layout", "asked_for", "a_kill_at_any", "an_edit_is_meant", "takes_memory", "any_geometry"),
    *("real_limit", "what_trainers_keep", "memory_and_the", "document_without_end", "saving_copies"),
    *("damaged_text_is", "killed", "every_form_gives", "for[long]", "averages_beside", "where_nothing_tells"),
    *("name_tells", "settings_tell", "sizes_as_timm", "sizes_of_no_kind", "numbers_that", "image_size_that_cannot"),
    *("stored_crop_ratio", "last_size_of_a_name", "usual_image_size", "unknown_is_still", "passed_over"),
    *("a_head_apart", "read_without_torch", "could_run_something", "trainers_own", "other_float_types"),
)
ROOT = Path(__file__).resolve().parents[1]


def covering(item: pytest.Item) -> bool:
    return item.nodeid.startswith(COVERING) and not any(name in item.nodeid for name in COSTLY)


class Cover:
    """Traces the covering tests, and what the modules do when they are imported."""

    def __init__(self) -> None:
        self.measured = coverage.Coverage()
        self.measured.start()
        for pattern in self.measured.get_option("run:include"):
            for path in sorted(ROOT.glob(pattern)):
                if path.suffix == ".py":
                    importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        self.measured.stop()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        if not covering(item):
            return (yield)
        self.measured.start()
        try:
            return (yield)
        finally:
            self.measured.stop()

    def pytest_sessionfinish(self) -> None:
        self.measured.save()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "covering: traced by tests/cover.py")
    worker = hasattr(config, "workerinput")
    if not worker:
        coverage.Coverage().erase()
    if worker or not config.getoption("numprocesses"):  # with several processes, the first runs no test
        config.pluginmanager.register(Cover(), "cover")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in filter(covering, items):
        item.add_marker("covering")
