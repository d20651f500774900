"""What tools/mutate.py changed in atomic.py and no other test saw."""

import errno
import os
import re
from pathlib import Path

import pytest

from stm.artifact import atomic
from stm.artifact.locks import lock
from stm.artifact.written import noting
from stm.errors import ArtifactError, DataError, StmError, UsageError

NAMES = ("a", "in/b")


def test_a_name_that_no_one_can_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="UTF-8"):
        atomic.check(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"), NAMES, force=False)


def test_results_are_told_of_and_replaced(tmp_path: Path) -> None:
    with noting() as written:
        for text in ("one", "two"):
            with atomic.drafted(tmp_path / "file") as draft:
                draft.write_text(text)
        with atomic.replacing(tmp_path / "folder", NAMES, force=False) as new:
            (new / "a").touch()
    assert {Path(each.path) for each in written} == {tmp_path / "file", tmp_path / "folder"}
    assert (tmp_path / "file").read_text() == "two"


def test_the_content_is_on_the_disk_before_the_name_and_then_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []
    path = tmp_path / "file"
    monkeypatch.setattr(atomic, "sync", lambda each: synced.append((atomic.place_of(each.name), path.exists())))
    with atomic.drafted(path):
        pass
    assert synced == [("file", False), (tmp_path.name, True)]


def test_a_new_folder_is_held_and_has_a_name_that_the_next_run_knows(tmp_path: Path) -> None:
    with atomic.replacing(tmp_path / "out", NAMES, force=False) as new:
        assert re.fullmatch(r"\.out\.stm-tmp-[0-9a-f]{8}", new.name)
        with lock(new) as free:
            assert not free


@pytest.mark.parametrize(
    ("foreign", "said"),
    [
        (["x"], "holds x, and"),
        (["x", "y"], "holds x and 1 more, and"),
        (["x", "y", "z"], "holds x and 2 more, and"),
        (["in/x"], "holds in/x, and"),
    ],
)
def test_what_is_of_others_is_never_replaced(tmp_path: Path, foreign: list[str], said: str) -> None:
    (tmp_path / "out" / "in").mkdir(parents=True)
    for name in ("a", *foreign):
        (tmp_path / "out" / name).touch()
    with pytest.raises(UsageError, match=said):
        atomic.check(tmp_path / "out", NAMES, force=True)


def test_what_a_link_points_to_is_of_others(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "b").touch()
    (tmp_path / "out" / "in").symlink_to(tmp_path / "there")
    with pytest.raises(UsageError, match="holds in, and"):
        atomic.check(tmp_path / "out", NAMES, force=True)


@pytest.mark.parametrize(
    ("code", "kind", "expected"),
    [
        (errno.EIO, UsageError, ArtifactError),
        (errno.EROFS, UsageError, ArtifactError),
        (errno.ENOSPC, UsageError, ArtifactError),
        (errno.EACCES, UsageError, UsageError),
        (errno.EIO, DataError, DataError),
    ],
)
def test_a_disk_that_fails_is_no_mistake_of_the_user(
    code: int, kind: type[StmError], expected: type[StmError], tmp_path: Path
) -> None:
    with pytest.raises(expected) as caught, atomic.refusing(tmp_path, "a hint", kind):
        raise OSError(code, os.strerror(code))
    assert type(caught.value) is expected


def test_an_error_without_a_number_has_words(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written: only words"), atomic.refusing(tmp_path, "a hint"):
        raise OSError("only words")


def test_what_is_added_to_must_be_writable_and_of_what_is_replaced_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, asked = tmp_path / "file", list[Path]()
    path.touch()

    def access(each: Path, mode: int) -> bool:
        asked.append(each)
        return True

    monkeypatch.setattr(os, "access", access)
    atomic.check_writable(path, "a hint")
    atomic.check_writable(path, "a hint", append=True)
    assert asked == [tmp_path, path]
