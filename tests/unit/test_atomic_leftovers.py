"""What a killed run leaves beside its place: the next run finds it, undoes it or clears it.

Single files are drafted in the same way, so they are here too.
"""

import fcntl
import os
from pathlib import Path

import pytest

from stm.artifact import atomic
from stm.errors import UsageError
from tests.unit.folders import NAMES, content, put, replace, whole


def test_the_next_run_clears_what_a_killed_one_left(tmp_path: Path) -> None:
    for left in (".out.stm-tmp-0123abcd", ".out.stm-old-89ef4567"):
        put(tmp_path / left, "half")
    others = {".out.stm-tmp-xyz", ".other.stm-tmp-0123abcd", "out.stm-tmp-0123abcd", ".out.stm-tmp-0123abcd0"}
    for name in others:
        put(tmp_path / name, "not ours")
    replace(tmp_path / "out", "new")
    assert {path.name for path in tmp_path.iterdir()} == {"out", *others}


def test_what_a_kill_leaves_above_missing_folders_is_cleared(tmp_path: Path) -> None:
    """There a new path is tried out in the next folder that exists."""
    left, full = tmp_path / ".out.stm-tmp-0123abcd", tmp_path / ".out.stm-tmp-89ef4567"
    left.mkdir()
    put(full, "of another run, which began to write tmp_path/out")
    replace(tmp_path / "deep" / "er" / "out", "new")
    assert not left.exists() and full.exists()
    atomic.check(tmp_path / "out", NAMES, force=False)
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_a_living_run_is_left_alone(tmp_path: Path) -> None:
    held = put(tmp_path / ".out.stm-tmp-0123abcd", "being written")
    descriptor = os.open(held, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        replace(tmp_path / "out", "new")
        assert content(held) == whole("being written")
    finally:
        os.close(descriptor)
    replace(tmp_path / "out", "newer", force=True)
    assert not held.exists()


def test_a_living_run_between_two_renames_is_left_alone(tmp_path: Path) -> None:
    old, new = put(tmp_path / ".out.stm-old-0123abcd", "old"), put(tmp_path / ".out.stm-tmp-0123abcd", "new")
    descriptor = os.open(new, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        atomic.check(tmp_path / "out", NAMES, force=True)
        assert atomic.find(tmp_path / "out") == old
        assert (content(old), content(new)) == (whole("old"), whole("new"))
    finally:
        os.close(descriptor)


def test_clearing_deletes_only_our_files(tmp_path: Path) -> None:
    left = put(tmp_path / ".out.stm-tmp-0123abcd", "half")
    (left / "notes.txt").write_text("mine")
    target = put(tmp_path / "real", "mine")
    (tmp_path / ".out.stm-tmp-89ef4567").symlink_to(target)
    replace(tmp_path / "out", "new")
    assert content(left) == {"notes.txt": "mine"}
    assert content(target) == whole("mine")


def test_a_kill_between_two_renames_is_found_and_undone(tmp_path: Path) -> None:
    old, new = put(tmp_path / ".out.stm-old-0123abcd", "old"), put(tmp_path / ".out.stm-tmp-0123abcd", "new")
    assert atomic.find(tmp_path / "out") == old
    assert new.exists(), "reading changes nothing"
    with pytest.raises(UsageError, match="already exists"):
        atomic.check(tmp_path / "out", NAMES, force=False)
    assert content(tmp_path / "out") == whole("old")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    put(
        tmp_path / ".out.stm-old-0123abcd", "old"
    )  # without its twin: both renames were done, and somebody deleted the new one
    put(tmp_path / ".out.stm-tmp-89ef4567", "half")
    assert atomic.find(tmp_path / "out") == tmp_path / "out"
    assert atomic.find(tmp_path / "no" / "out") == tmp_path / "no" / "out"


def test_a_file_takes_its_place_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    drafted = atomic.drafted(path)
    drafted.__enter__().write_text("ne")
    assert drafted.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None) is False
    assert path.read_text() == "old" and [each.name for each in tmp_path.iterdir()] == ["file.txt"]
    with atomic.drafted(path) as draft:
        draft.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and [each.name for each in tmp_path.iterdir()] == ["file.txt"]


def test_a_file_without_force_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"

    def overtaken() -> None:
        with atomic.drafted(path, force=False) as draft:
            draft.write_text("new")
            path.write_text("theirs")

    with pytest.raises(UsageError, match=r"file\.txt already exists"):
        overtaken()
    with pytest.raises(UsageError, match=r"file\.txt already exists"):
        atomic.check_file(path, force=False)
    assert path.read_text() == "theirs" and [each.name for each in tmp_path.iterdir()] == ["file.txt"]


def test_drafts_of_killed_runs_are_cleared_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    path, dead = tmp_path / "f[i]le *?.txt", tmp_path / ".f[i]le *?.txt.stm-tmp-0123abcd"
    others = [".other.txt.stm-tmp-0123abcd", ".f[i]le *?.txt.stm-tmp-0123", "f[i]le *?.txt.part"]
    for name in (dead.name, *others):
        (tmp_path / name).write_text("half")
    with atomic.drafted(path) as living:
        assert not dead.exists()
        dead.write_text("half")
        atomic.check_file(path, force=False)
        assert not dead.exists() and living.exists()
        assert atomic.place_of(living.name) == path.name
        living.write_text("new")
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([path.name, *others])
