"""Which patches went where, by hand and against each other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stm.merging.groups import edges, follow, patches, pruned, scattered, stages

ALONE = ((0,), (1,), (2,), (3,), (4,))


def test_following_merges() -> None:
    """Tokens 0 into 1 and 4 into 3, then what held 3 and 4 into the first."""
    once = follow(ALONE, keep=[1, 2, 3], src=[0, 4], dst=[0, 2])
    assert once == ((0, 1), (2,), (3, 4))
    twice = follow(once, keep=[0, 1], src=[2], dst=[0])
    assert twice == ((0, 1, 3, 4), (2,))
    found = stages([ALONE, once, once, twice, twice])
    assert [(stage.first, stage.last, len(stage.groups)) for stage in found] == [(0, 0, 5), (1, 2, 3), (3, 4, 2)]


def test_what_is_pruned_is_in_no_group() -> None:
    groups = follow(ALONE, keep=[4, 2, 0], src=[], dst=[])
    assert groups == ((4,), (2,), (0,))
    assert patches(groups, 2) == [(3,), (0,)]
    assert pruned(groups, 5, 2) == (1, 2)


@pytest.mark.parametrize(
    ("group", "apart"),
    [((0,), False), ((0, 1, 5), False), ((0, 5), True), ((3, 4), True), ((0, 2), True), ((0, 4, 8, 9), False)],
)
def test_scattered_on_a_grid_of_four(group: tuple[int, ...], apart: bool) -> None:
    assert scattered(group, 4) == apart


def test_the_outline_of_a_corner() -> None:
    """Patches 0, 1 and 3 of a grid of three: an L."""
    assert edges((0, 1, 3), 3) == [
        ((0, 0), (0, 2)),
        ((0, 0), (2, 0)),
        ((0, 2), (1, 2)),
        ((1, 1), (1, 2)),
        ((1, 1), (2, 1)),
        ((2, 0), (2, 1)),
    ]


@given(st.sets(st.integers(0, 24), min_size=1))
def test_an_outline_is_every_border_once(group: set[int]) -> None:
    grid = 5
    expected = set()
    for patch in group:
        row, column = divmod(patch, grid)
        for other, line in (
            ((row - 1, column), ((column, row), (column + 1, row))),
            ((row + 1, column), ((column, row + 1), (column + 1, row + 1))),
            ((row, column - 1), ((column, row), (column, row + 1))),
            ((row, column + 1), ((column + 1, row), (column + 1, row + 1))),
        ):
            inside = 0 <= other[0] < grid and 0 <= other[1] < grid and other[0] * grid + other[1] in group
            if not inside:
                expected.add(line)
    found = []
    for (x0, y0), (x1, y1) in edges(group, grid):
        length = max(x1 - x0, y1 - y0)
        dx, dy = (x1 - x0) // length, (y1 - y0) // length
        found += [((x0 + n * dx, y0 + n * dy), (x0 + (n + 1) * dx, y0 + (n + 1) * dy)) for n in range(length)]
    assert len(found) == len(set(found))
    assert set(found) == expected
