"""Folders and files that appear whole or not at all.

A new folder is filled under a temporary name beside its place and then renamed into it. One that replaces another
changes places with it: in one step where the system can (Linux), else in two, between which `find` and the next run see
the old one. So a process that is killed at any moment leaves the old folder or the new one, and what else it left is
recognised by its name, and cleared, by the next run. Several processes may write one place at once: each looks, and
each renames, in turn. Standard library only; writing is for POSIX systems, reading for any.
"""

import ctypes
import errno
import glob
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from stm.errors import ArtifactError, StmError, UsageError, check_name, no_room

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def check(folder: str | os.PathLike[str], names: tuple[str, ...], *, force: bool) -> Path:
    """Refuse a place that cannot be written, and clear what killed runs left beside it.

    Args:
        folder: where a new folder is to be.
        names: the files that are ours; `force` replaces only a folder that holds nothing else.
        force: whether a folder that is there may be replaced.

    Returns:
        The absolute place.

    Raises:
        UsageError: it exists and may not be replaced, or nothing can be written there.
        ArtifactError: the disk is full.
    """
    given = Path(folder)
    check_name(given, UsageError)
    try:
        if given.is_symlink():
            raise UsageError(
                f"{given} is a symbolic link, expected a folder or a new name", "name the folder that it points to"
            )
        path = given.resolve()
        here = Path.cwd()
        if path in (here, *here.parents):
            raise UsageError(
                f"{given} is the current folder or one that holds it, which is never replaced",
                "name a new folder with --out",
            )
        with _turn(path):
            _recover(path, names)
            if path.exists():
                _check_replaceable(given, path, names, force)
            _probe(path)
    except OSError as error:
        raise _failure(given, error, UsageError) from error
    except RuntimeError as error:  # a loop of links
        raise UsageError(f"{given} cannot be written: {error}", "choose another place with --out") from error
    return path


@contextmanager
def replacing(folder: str | os.PathLike[str], names: tuple[str, ...], *, force: bool) -> Iterator[Path]:
    """A new empty folder to fill: when the block ends it is at `folder`; when the block fails nothing has changed.

    Args:
        folder, names, force: as for `check`, which this calls. Only files in `names` may be put into the new folder.

    Raises:
        UsageError: as `check`, also for what another process put there meanwhile.
        ArtifactError: the disk is full, or the system refused a write.
    """
    path = check(folder, names, force=force)
    new_parents = [parent for parent in path.parents if not parent.exists()]
    token = secrets.token_hex(4)
    temporary = _sibling(path, "tmp", token)
    held = ExitStack()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with held:
            with _turn(path):  # nobody clears it between the two
                temporary.mkdir()
                held.enter_context(_lock(temporary))
            yield temporary
            for inner in {(temporary / name).parent for name in names}:
                if inner.is_dir():
                    _sync(inner)
            with _turn(path):
                if path.exists():
                    _check_replaceable(Path(folder), path, names, force)
                    _exchange(path, token)  # the old folder now has the temporary name
                else:
                    os.rename(temporary, path)
                _sync(path.parent)
    except BaseException as error:
        _discard(temporary, names)
        with suppress(OSError):
            for parent in new_parents:
                parent.rmdir()
        if isinstance(error, OSError):
            raise _failure(Path(folder), error, ArtifactError) from error
        raise
    _discard(temporary, names)


def check_file(path: Path, *, force: bool) -> None:
    """Refuse a place where a file cannot be written, before any work is done, and clear what killed runs left beside
    it.

    Raises:
        UsageError: it exists and may not be replaced, it is a folder, or its folder is not there or may not be written
            to.
    """
    another = "choose another place with --out"
    with refusing(path, another):
        if path.is_dir():
            raise UsageError(f"{path} is a folder, expected a file", "name a file with --out")
        _check_new(path, force)
        check_writable(path, another)
        with _turn(path):
            _clear_drafts(path)


def check_writable(path: Path, hint: str, *, longest: Path | None = None, append: bool = False) -> None:
    """Refuse a file that the system would not let us write. Nothing is written.

    Args:
        hint: the next step, such as to choose another place.
        longest: the file with the longest name among those that will be drafted beside `path`; by default `path`.
        append: a file that is there is added to, not replaced.

    Raises:
        UsageError: its folder does not exist, or permission is denied.
        OSError: the system knows another reason, such as a name that is too long; see `refusing`.
    """
    if not path.parent.is_dir():
        raise UsageError(
            f"{path} cannot be written: the folder {path.parent} does not exist", f"mkdir -p {path.parent}"
        )
    draft_of(path if longest is None else longest).exists()  # only the system knows how long a name may be
    # A draft replaces a file by renaming, which takes the right to write to the folder and none to the file.
    if not os.access(path if append and path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{path} cannot be written: permission denied", hint)


@contextmanager
def refusing(path: Path, hint: str) -> Iterator[None]:
    """Turn an OSError of a check inside, before any work is done, into a UsageError that names the file."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", hint) from error


@contextmanager
def drafted(path: Path, *, force: bool = True) -> Iterator[Path]:
    """Where to write a file that is to be whole or as it was before: it takes its place when the block ends, and is
    gone if that fails.

    Args:
        force: whether it may take the place of another file.

    Raises:
        UsageError: without `force`, another process put a file there meanwhile.
    """
    draft = draft_of(path)
    with ExitStack() as held:
        with _turn(path):
            _clear_drafts(path)
            draft.touch(exist_ok=False)
            held.enter_context(_lock(draft))
        try:
            yield draft
            with _turn(path):
                _check_new(path, force)
                draft.replace(path)
        except BaseException:
            with suppress(OSError):
                draft.unlink()
            raise


def draft_of(path: Path) -> Path:
    """A new name beside a file, for what will take its place. `place_of` knows it."""
    return _sibling(path, "tmp", secrets.token_hex(4))


def clear_folders(path: Path) -> None:
    """Remove every folder named as a draft of `path` whose process has died, with all that it holds."""
    for token in _tokens(path, "tmp"):
        folder = _sibling(path, "tmp", token)
        with _lock(folder) as free:
            if free:
                shutil.rmtree(folder, ignore_errors=True)


def place_of(name: str) -> str:
    """The name that a draft was made for, if a name is that of a draft."""
    found = re.fullmatch(r"\.(.+)\.stm-tmp-[0-9a-f]{8}", name, re.DOTALL)
    return found[1] if found else name


def _check_new(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise UsageError(f"{path} already exists", "choose another name with --out, or replace it with --force")


def _clear_drafts(path: Path) -> None:
    """Remove what killed runs left of a file. What a living one writes stays."""
    for draft in path.parent.glob(f".{glob.escape(path.name)}.stm-tmp-" + "[0-9a-f]" * 8):
        if draft.is_file() and not draft.is_symlink():
            with _lock(draft) as free, suppress(OSError):
                if free:
                    draft.unlink()


def find(folder: Path) -> Path:
    """Where to read a folder: its own place, or the old one's where a run was killed between two renames."""
    if not folder.exists():
        for token in _tokens(folder, "old"):
            if _sibling(folder, "tmp", token).exists():
                return _sibling(folder, "old", token)
    return folder


def _check_replaceable(given: Path, path: Path, names: tuple[str, ...], force: bool) -> None:
    another = "choose another name with --out"
    if not force:
        raise UsageError(f"{given} already exists", f"{another}, or replace it with --force")
    if not path.is_dir():
        raise UsageError(f"{given} is a file, and --force replaces only a folder that stm wrote", another)
    if path.is_mount():
        raise UsageError(f"{given} is a mount point, which cannot be replaced", "name a folder inside it with --out")
    if foreign := sorted(_foreign(path, names)):
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise UsageError(
            f"{given} holds {foreign[0]}{more}, and --force replaces only a folder with nothing but stm's files",
            another,
        )


def _foreign(folder: Path, names: tuple[str, ...], inside: str = "") -> Iterator[str]:
    """What a folder holds beside our files; a name such as `a/b` has a folder of its own."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = inside + entry.name
            if entry.is_dir(follow_symlinks=False) and any(each.startswith(f"{name}/") for each in names):
                yield from _foreign(Path(entry.path), names, f"{name}/")
            elif name not in names or not entry.is_file(follow_symlinks=False):
                yield name


def _probe(path: Path) -> None:
    """Make a folder where `path` would go, and remove it: only the system knows whether that works."""
    parent = next(p for p in path.parents if p.exists())
    probe = _sibling(parent / path.name, "tmp", secrets.token_hex(4))
    probe.mkdir()
    probe.rmdir()


def _failure(given: Path, error: OSError, kind: type[StmError]) -> StmError:
    if reason := no_room(error):
        return ArtifactError(f"{given} cannot be written: {reason}", "make room, or choose another disk with --out")
    return kind(f"{given} cannot be written: {error.strerror or error}", "choose another place with --out")


def _sibling(path: Path, kind: str, token: str) -> Path:
    """A name beside `path`: "tmp" for a folder that is being written, "old" for one that is being replaced by it."""
    return path.parent / f".{path.name}.stm-{kind}-{token}"


def _tokens(path: Path, kind: str) -> list[str]:
    """The runs that left such a name."""
    found = path.parent.glob(f".{glob.escape(path.name)}.stm-{kind}-" + "[0-9a-f]" * 8)
    return sorted(p.name[-8:] for p in found if p.is_dir() and not p.is_symlink())


def _exchange(path: Path, token: str) -> None:
    """Let a folder and the new one change places; the old one then has the new one's temporary name."""
    new, old = _sibling(path, "tmp", token), _sibling(path, "old", token)
    if _exchange_at_once(new, path):
        return
    try:
        os.rename(path, old)
        os.rename(new, path)
    except BaseException:
        with suppress(OSError):  # nothing to put back if the first rename failed, or the second was done too
            os.rename(old, path)
        raise
    os.rename(old, new)


def _exchange_at_once(new: Path, path: Path) -> bool:
    """renameat2(RENAME_EXCHANGE). False, with nothing changed, where it is missing or refused: two renames then do it,
    or say why not."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError):
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(path), _RENAME_EXCHANGE) == 0)


def _recover(path: Path, names: tuple[str, ...]) -> None:
    """Put back an old folder that a killed run had moved away, and clear what killed runs left. What a living one
    writes stays."""
    for token in _tokens(path, "tmp"):
        temporary, old = _sibling(path, "tmp", token), _sibling(path, "old", token)
        with _lock(temporary) as held:
            if held:
                if old.exists() and not path.exists():
                    os.rename(old, path)
                _discard(temporary, names)
    for token in _tokens(path, "old"):
        if not _sibling(path, "tmp", token).exists():  # both renames had been done
            _discard(_sibling(path, "old", token), names)


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Wait until no other process looks or renames in the folder that holds `path`, or is to hold it; all of them are
    quick."""
    import fcntl  # here, because reading also works where there is no fcntl

    descriptor = os.open(next(parent for parent in path.parents if parent.exists()), os.O_RDONLY)
    try:
        with suppress(OSError):  # as on some network drives: what the system then says is told
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder or file; False where a living process has it, or where nobody can lock, as on some
    network drives.

    The kernel takes a dead process's lock away. A process id would be no proof: it may be another's by now, or one of
    another machine.
    """
    import fcntl  # here, because reading also works where there is no fcntl

    descriptor = None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = True
    except OSError:
        held = False
    try:
        yield held
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _sync(folder: Path) -> None:
    """Have the system write a folder's list of names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network drives cannot do this for folders
            raise
    finally:
        os.close(descriptor)


def _discard(folder: Path, names: tuple[str, ...]) -> None:
    """Delete a folder and our files in it.

    Whatever else is in there stays, and what the system will not delete: the outcome of the run is decided by then, and
        the next one
    tries again.
    """
    with suppress(OSError):
        folder.chmod(0o700)  # a read-only one keeps its files
        for name in names:
            (folder / name).unlink(missing_ok=True)
        for inner in {(folder / name).parent for name in names} - {folder}:
            with suppress(FileNotFoundError):
                inner.rmdir()
        folder.rmdir()
