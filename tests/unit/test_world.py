"""Which process does what. tests/cli/test_torchrun.py has real processes; here one stands in for all."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stm.config import Preprocess
from stm.data.images import ImageFile, Pixels, Sample
from stm.data.sets import SampleSet, batches_of, iterate, workers_for
from stm.distributed import ALONE, World, current_world
from stm.errors import DataError
from stm.measure.evaluate import timed

Gathering = Callable[..., None]
MEETING = {"MASTER_ADDR": "h", "MASTER_PORT": "1"}


@pytest.fixture
def gathering(monkeypatch: pytest.MonkeyPatch) -> Gathering:
    """`gathering(1, 2, 3)`: what the processes would hand in."""
    return lambda *values: monkeypatch.setattr(World, "gather", lambda self, value: list(values))


@given(images=st.integers(1, 40), batch_size=st.integers(1, 9), size=st.integers(1, 9), start=st.integers(0, 3))
def test_the_batches_of_all_in_rounds_are_those_of_one(images: int, batch_size: int, size: int, start: int) -> None:
    """Every image once, none twice, in the set's order: nothing is padded."""
    samples = SampleSet("x", tuple(Sample(str(i), 0, Pixels(bytes([i]), 1)) for i in range(images)))
    prep = Preprocess(resize=1, crop=1, mean=(0.5,), std=(0.5,))
    first = min(start * batch_size, images)
    options: dict[str, Any] = {"batch_size": batch_size, "start": first}
    count = batches_of(images - first, batch_size)
    each = [
        list(world.in_rounds(iterate(samples, prep, world=world, **options), count))
        for world in (World(r, size) for r in range(size))
    ]
    together = [batch.indices for turn in zip(*each, strict=True) for batch in turn if batch is not None]
    assert together == [batch.indices for batch in iterate(samples, prep, **options)]
    assert [index for indices in together for index in indices] == list(range(first, images))


def test_shares_of_the_work_come_back_in_order(gathering: Gathering) -> None:
    items = list("abcdefg")
    gathering(*([letter.upper() for letter in World(rank, 3).shard(items)] for rank in range(3)))
    assert World(1, 3).map(str.upper, items) == list("ABCDEFG")


def test_processes_that_see_other_things_do_not_go_on(gathering: Gathering) -> None:
    gathering({"model": "a", "sample_set": "b"}, {"model": "a", "sample_set": "c"})
    with pytest.raises(DataError, match="process 0 has another sample set than process 1"):
        World(0, 2).check_same(model="a", sample_set="b")
    gathering({"model": "a"}, {"model": "a"})
    World(0, 2).check_same(model="a")


def test_alone_nothing_is_asked() -> None:
    value = object()
    assert ALONE.gather(value) == [value] and ALONE.broadcast(value) is value and ALONE.first
    assert ALONE.map(str, [1, 2]) == ["1", "2"]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ALONE),
        (
            {
                "RANK": "3",
                "WORLD_SIZE": "8",
                "LOCAL_RANK": "1",
                "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "h",
                "MASTER_PORT": "1",
            },
            World(3, 8, 1, 2),
        ),
        ({"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, World(3, 8, 3, 8)),
        ({"WORLD_SIZE": "8"}, ALONE),
        ({"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "h"}, ALONE),
        (MEETING | {"RANK": "8", "WORLD_SIZE": "8"}, ALONE),
    ],
)
def test_what_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: World
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert current_world() == expected


def test_the_speed_of_several_processes_is_that_of_the_slowest() -> None:
    assert timed([[(4, 9.0), (4, 1.0), (2, 0.5)]]) == (6, 1.5), "without the first batch"
    assert timed([[(4, 9.0), (4, 1.0)], [(4, 9.0), (4, 2.0)], []]) == (8, 2.0)
    assert timed([[(4, 9.0)]]) == (4, 9.0) and timed([[]]) == (0, 0)


def test_processes_of_one_machine_share_its_processors(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(6)), raising=False)
    files = SampleSet("x", tuple(Sample(str(i), 0, ImageFile(tmp_path / "x")) for i in range(99)))
    assert [workers_for(files, World(0, n, 0, n)) for n in (1, 2, 3, 8)] == [4, 3, 2, 1]
