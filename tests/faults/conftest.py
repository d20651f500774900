"""One process under the shim, and its folder, for all tests of faults."""

from collections.abc import Iterator

import pytest

from tests.faults.fault import Engine, shim
from tests.faults.jobs import World
from tests.hub.server import Hub


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("faults")
    library = shim(folder)
    with Hub() as hub:
        engine = Engine(library, folder / "here", hub.environment(folder / "here" / "home"))
        yield World(engine, hub)
        engine.close()
