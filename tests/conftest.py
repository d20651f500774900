"""What all tests share."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples on every run, and no time limit on one: a busy machine must not fail a test.
settings.register_profile("stm", derandomize=True, deadline=None)
settings.load_profile("stm")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """`shared("golden/x")`: a reference file that is not in the repository; the test is skipped where it is absent."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"needs {name} of the reference material, which is not here")
        return path

    return find
