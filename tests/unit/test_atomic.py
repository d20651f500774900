"""Folders that appear whole or not at all: refusals and failures. What killed runs leave is in
test_atomic_leftovers.py, and kills at every line are in test_atomic_kills.py."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import stm.errors
from stm.artifact import atomic
from stm.errors import ArtifactError, StmError, UsageError, no_room
from tests.unit.folders import NAMES, content, put, replace, whole


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.fixture(params=["at once", "two renames"])
def exchange(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Both ways to exchange folders: this system's own, and the one of systems that cannot do it at once."""
    if request.param == "two renames":
        monkeypatch.setattr(atomic, "_exchange_at_once", lambda new, path: False)
    else:
        probe, other = put(tmp_path / "probe", "a"), put(tmp_path / "other", "b")
        if not atomic._exchange_at_once(probe, other):
            pytest.skip("renameat2 does not exchange folders on this file system")
        assert content(probe) == whole("b")
        for folder in (probe, other):
            atomic._discard(folder, NAMES)
    return str(request.param)


def test_a_new_folder_and_its_parents(tmp_path: Path) -> None:
    replace(tmp_path / "a" / "b" / "out", "new")
    assert content(tmp_path / "a" / "b" / "out") == whole("new")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["out"]


def test_an_old_folder_is_exchanged(tmp_path: Path, exchange: str) -> None:
    put(tmp_path / "out", "old")
    replace(tmp_path / "out", "new", force=True)
    assert content(tmp_path / "out") == whole("new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_and_names_with_wild_cards(tmp_path: Path, exchange: str) -> None:
    (tmp_path / "o[u]t *?").mkdir()
    put(tmp_path / ".o[u]t *?.stm-tmp-0123abcd", "half")
    replace(tmp_path / "o[u]t *?", "new", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["o[u]t *?"]


def test_checking_leaves_nothing_behind(tmp_path: Path) -> None:
    assert atomic.check(tmp_path / "a" / "out", NAMES, force=False) == (tmp_path / "a" / "out").resolve()
    assert list(tmp_path.iterdir()) == []


def a_folder(at: Path) -> None:
    put(at / "out", "old")


def a_file(at: Path) -> None:
    (at / "out").write_text("mine")


def a_link(at: Path) -> None:
    (at / "out").symlink_to(put(at / "real", "old"))


def a_dangling_link(at: Path) -> None:
    (at / "out").symlink_to(at / "nowhere")


def a_foreign_file(at: Path) -> None:
    (put(at / "out", "old") / "notes.txt").write_text("mine")


def a_folder_inside(at: Path) -> None:
    (at / "out" / "config.json").mkdir(parents=True)


def a_link_inside(at: Path) -> None:
    (at / "mine").write_text("mine")
    (at / "out").mkdir()
    (at / "out" / "config.json").symlink_to(at / "mine")


@pytest.mark.parametrize(
    ("make", "force", "says"),
    [
        (a_folder, False, "out already exists"),
        (a_file, False, "out already exists"),
        (a_file, True, "out is a file"),
        (a_link, False, "out is a symbolic link"),
        (a_link, True, "out is a symbolic link"),
        (a_dangling_link, True, "out is a symbolic link"),
        (a_foreign_file, True, "out holds notes.txt, and --force"),
        (a_folder_inside, True, "out holds config.json, and --force"),
        (a_link_inside, True, "out holds config.json, and --force"),
    ],
)
def test_what_is_never_replaced(tmp_path: Path, make: Callable[[Path], None], force: bool, says: str) -> None:
    make(tmp_path)
    before = sorted((path, path.lstat()) for path in tmp_path.rglob("*"))
    for attempt in (
        lambda: atomic.check(tmp_path / "out", NAMES, force=force),
        lambda: replace(tmp_path / "out", "new", force=force),
    ):
        with pytest.raises(UsageError, match=says) as caught:
            attempt()
        assert caught.value.exit_code == 2
        assert caught.value.hint
    after = sorted((path, path.lstat()) for path in tmp_path.rglob("*"))
    assert [(path, stat.st_ino, stat.st_mtime_ns) for path, stat in after] == [
        (path, s.st_ino, s.st_mtime_ns) for path, s in before
    ]


def test_the_hint_of_an_existing_folder_says_force(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        atomic.check(put(tmp_path / "out", "old"), NAMES, force=False)
    assert "--force" in str(caught.value.hint)


@pytest.mark.parametrize("where", [".", "..", "", "../..", "../here"])
def test_the_current_folder_and_what_holds_it(tmp_path: Path, where: str) -> None:
    put(tmp_path / "here", "old")
    with inside(tmp_path / "here"), pytest.raises(UsageError, match="current folder"):
        replace(Path(where), "new", force=True)
    assert content(tmp_path / "here") == whole("old")


@pytest.mark.parametrize(
    ("below", "says"),
    [
        ("file/out", "Not a directory"),
        ("file/deep/out", "Not a directory"),
        ("x" * 300, "name too long"),
        ("loop/out", "loop|levels of symbolic links"),
    ],
)
def test_places_that_cannot_be(tmp_path: Path, below: str, says: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UsageError, match=says):
        atomic.check(tmp_path / below, NAMES, force=False)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that refuses even the superuser")
def test_a_place_that_refuses_writing() -> None:
    with pytest.raises(UsageError, match="/proc/out cannot be written"):
        atomic.check("/proc/out", NAMES, force=False)


def test_a_folder_without_permission(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("the superuser may write anywhere")
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UsageError, match="Permission denied"):
        atomic.check(tmp_path / "locked" / "out", NAMES, force=False)


def test_a_read_only_folder_that_is_replaced_leaves_nothing(tmp_path: Path, exchange: str) -> None:
    if os.geteuid() == 0:
        pytest.skip("the superuser may delete anywhere")
    put(tmp_path / "out", "old").chmod(0o555)
    replace(tmp_path / "out", "new", force=True)
    assert content(tmp_path / "out") == whole("new")
    assert not list(tmp_path.glob(".out.*"))


def test_a_full_disk_is_not_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(ArtifactError, match="out cannot be written: the disk is full") as caught:
        atomic.check(tmp_path / "out", NAMES, force=False)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("x"), OSError(errno.EIO, "Input/output error")])
@pytest.mark.parametrize("force", [False, True])
def test_a_failure_changes_nothing(tmp_path: Path, error: BaseException, force: bool) -> None:
    if force:
        put(tmp_path / "a" / "out", "old")
    expected = ArtifactError if isinstance(error, OSError) else type(error)

    def fail() -> None:
        with atomic.replacing(tmp_path / "a" / "out", NAMES, force=force) as new:
            put(new, "new")
            raise error

    with pytest.raises(expected):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == (["a"] if force else [])
    if force:
        assert content(tmp_path / "a" / "out") == whole("old")
        assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("error", [OSError(errno.EACCES, "Permission denied"), KeyboardInterrupt()])
def test_a_failing_rename_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, error: BaseException
) -> None:
    put(tmp_path / "out", "old")
    monkeypatch.setattr(atomic, "_exchange_at_once", lambda new, path: False)
    rename, calls = os.rename, []

    def rename_until(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == failing:
            raise error
        rename(source, target)

    monkeypatch.setattr(os, "rename", rename_until)
    with pytest.raises(StmError if isinstance(error, OSError) else KeyboardInterrupt):
        replace(tmp_path / "out", "new", force=True)
    assert content(tmp_path / "out") == whole("old")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_somebody_else_was_faster(tmp_path: Path) -> None:
    def overtaken() -> None:
        with atomic.replacing(tmp_path / "out", NAMES, force=False) as new:
            put(new, "new")
            put(tmp_path / "out", "theirs")

    with pytest.raises(UsageError, match="out already exists"):
        overtaken()
    assert content(tmp_path / "out") == whole("theirs")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_appears_meanwhile_is_replaced_only_if_it_is_ours(tmp_path: Path, exchange: str) -> None:
    def overtaken(*names: str) -> None:
        with atomic.replacing(tmp_path / "out", NAMES, force=True) as new:
            put(new, "new")
            for name in names:
                (put(tmp_path / "out", "theirs") / name).write_text("theirs")

    overtaken(NAMES[0])  # a folder that was not there when the run began
    assert content(tmp_path / "out") == whole("new")
    with pytest.raises(UsageError, match=r"holds notes\.txt"):
        overtaken("notes.txt")
    assert content(tmp_path / "out") == whole("theirs") | {"notes.txt": "theirs"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_interrupt_after_the_exchange_leaves_the_new_folder(
    tmp_path: Path, exchange: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "out", "old")
    sync = atomic.sync

    def interrupt(folder: Path) -> None:
        if folder == tmp_path:
            raise KeyboardInterrupt
        sync(folder)

    monkeypatch.setattr(atomic, "sync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        replace(tmp_path / "out", "new", force=True)
    assert content(tmp_path / "out") == whole("new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_one_table_says_why_there_is_no_room() -> None:
    assert [no_room(OSError(number, "")) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)] == [
        "the disk is full",
        "the disk quota is used up",
        "the limit on the size of a file is reached",
    ]
    assert no_room(OSError(errno.EACCES, "")) is None and no_room(OSError("without a number")) is None
    there = [path for path in Path(stm.errors.__file__).parent.rglob("*.py") if "errno.ENOSPC" in path.read_text()]
    assert [path.name for path in there] == ["errors.py"], "nobody else has a table"
