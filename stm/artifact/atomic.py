"""Folders and files that appear whole or not at all.

A new folder is filled under a temporary name beside its path, and then renamed to its path. A folder that replaces
another exchanges names with it. Linux does that in one step. Other systems need two steps, between which `find` and the
next run see the old folder.

So a process that is killed at any moment leaves the old folder or the new one. The next run recognises by name
whatever else the process left, and clears it. Several processes may write one path at once: they look and rename in
turn. Standard library only; writing needs a POSIX system, reading works on any.
"""

import ctypes
import errno
import glob
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from stm.artifact.locks import abandoned, lock, sibling, tokens, turn
from stm.artifact.written import tell
from stm.errors import ArtifactError, StmError, UsageError, check_name, no_room, said

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def check(folder: str | os.PathLike[str], names: tuple[str, ...], *, force: bool) -> Path:
    """Return the absolute path of a new folder, or refuse it. Clear what killed runs left beside it.

    Args:
        folder: the path of the new folder.
        names: the files that stm writes; `force` replaces only a folder that holds nothing else.
        force: whether an existing folder may be replaced.

    Raises:
        UsageError: the folder exists and may not be replaced, or nothing can be written there.
        ArtifactError: the disk is full.
    """
    given = Path(folder)  # as typed, for messages; `path` is absolute, for the work
    check_name(given, UsageError)
    try:
        if given.is_symlink():  # a rename would replace the link, not the folder that it points to
            raise UsageError(
                f"{given} is a symbolic link, expected a folder or a new name", "name the folder that it points to"
            )
        path = given.resolve()  # absolute, to be compared with the current folder
        current = Path.cwd()
        # Replacing the current folder would leave the caller's shell in a folder without a name.
        if path in (current, *current.parents):
            raise UsageError(
                f"{given} is the current folder or one that holds it, which is never replaced",
                "name a new folder with --out",
            )
        with turn(path):
            _recover(path, names)
            if path.exists():
                _check_replaceable(given, path, names, force)
            probe(path)
    except OSError as error:
        raise _failure(given, error, UsageError) from error
    except RuntimeError as error:  # a loop of links
        raise UsageError(f"{given} cannot be written: {said(error)}", "choose another place with --out") from error
    return path


@contextmanager
def replacing(folder: str | os.PathLike[str], names: tuple[str, ...], *, force: bool) -> Iterator[Path]:
    """Yield a new empty folder to fill. It is at `folder` when the block ends. Nothing has changed if the block fails.

    Args:
        folder, names, force: as for `check`, which this function calls. The block may write only files in `names`.

    Raises:
        UsageError: as `check`, also if another process wrote to the place meanwhile.
        ArtifactError: the disk is full, or the system refused a write.
    """
    path = check(folder, names, force=force)
    new_parents = [parent for parent in path.parents if not parent.exists()]
    token = secrets.token_hex(4)
    temporary = sibling(path, "tmp", token)
    held = ExitStack()
    try:
        if new_parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        with held:
            with turn(path):  # no other run clears the folder before its lock is held
                temporary.mkdir()
                held.enter_context(lock(temporary))
            yield temporary
            # All must be on the disk before the rename is: after a power failure a folder in its place is whole.
            written = [temporary / name for name in names]
            for each in [*written, *sorted({file.parent for file in written})]:
                if each.exists():
                    sync(each)
            with turn(path):
                if path.exists():  # looked at again: filling took time, in which another process may have written
                    _check_replaceable(Path(folder), path, names, force)
                    _exchange(path, token)  # the old folder now has the temporary name
                else:
                    os.rename(temporary, path)
                sync(path.parent)
    except BaseException as error:  # an interrupt too must leave nothing behind
        _discard(temporary, names)
        with suppress(OSError):
            for parent in new_parents:
                _insist(parent.rmdir)
        if isinstance(error, OSError):
            raise _failure(Path(folder), error, ArtifactError) from error
        raise
    tell(Path(folder))
    _discard(temporary, names)


def check_file(path: Path, *, force: bool) -> None:
    """Refuse a file that cannot be written, before any work is done, and clear what killed runs left beside it.

    Raises:
        UsageError: the file exists and may not be replaced, it is a folder, or the folder that is to hold it does not
            exist or may not be written to.
    """
    another = "choose another place with --out"
    with refusing(path, another):
        if path.is_dir():
            raise UsageError(f"{path} is a folder, expected a file", "name a file with --out")
        _check_new(path, force)
        check_writable(path, another)
        with turn(path):
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
    # A draft is renamed to `path`. That needs the right to write to the folder, and no right to the old file.
    if not os.access(path if append and path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{path} cannot be written: permission denied", hint)


@contextmanager
def refusing(path: Path, hint: str, kind: type[StmError] = UsageError) -> Iterator[None]:
    """Turn an OSError of the block into an error that names the file.

    Args:
        path: as typed, for the message.
        hint: the next step.
        kind: UsageError for a check before any work is done, unless the disk fails; the room's own error for a write
            after the work.
    """
    try:
        yield
    except OSError as error:
        raise _kind(error, kind)(f"{path} cannot be written: {error.strerror or error}", hint) from error


@contextmanager
def drafted(path: Path, *, force: bool = True, kept: bool = True) -> Iterator[Path]:
    """Yield a draft to write. The draft becomes `path` when the block ends, and is removed if the block fails.

    So the file at `path` is whole, or as it was before.

    Args:
        force: whether the draft may replace an existing file.
        kept: whether the file is a result, of which `tell` speaks, and no entry of a cache.

    Raises:
        UsageError: without `force`, another process wrote the file meanwhile.
    """
    draft = draft_of(path)
    try:
        with ExitStack() as held:
            with turn(path):
                _clear_drafts(path)
                draft.touch(exist_ok=False)  # now, because a lock is on a file that exists
                held.enter_context(lock(draft))
            yield draft
            sync(draft)  # the content before the name: after a power failure a file with its name is whole
            with turn(path):
                _check_new(path, force)
                draft.replace(path)
                sync(path.parent)
    except BaseException:  # an interrupt too must leave nothing behind
        with suppress(OSError):
            _insist(draft.unlink)
        raise
    if kept:
        tell(path)


def draft_of(path: Path) -> Path:
    """Return a new name beside a file for its draft. `place_of` reads such names."""
    return sibling(path, "tmp", secrets.token_hex(4))


def clear_folders(path: Path) -> None:
    """Remove every folder named as a draft of `path` whose process has died, with all that it holds."""
    for folder in abandoned(path):
        clear(folder)


def clear(folder: Path) -> None:
    """Remove a folder with all that it holds, as far as the system allows; what it refuses once is tried again."""
    for _ in range(2):
        shutil.rmtree(folder, ignore_errors=True)


def place_of(name: str) -> str:
    """Return the name of the file that a draft is for. Any other name is returned as it is."""
    draft = re.fullmatch(r"\.(.+)\.stm-tmp-[0-9a-f]{8}", name, re.DOTALL)
    return draft[1] if draft else name


def _check_new(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise UsageError(f"{path} already exists", "choose another name with --out, or replace it with --force")


def _clear_drafts(path: Path) -> None:
    """Remove the drafts of `path` that killed runs left. The drafts of living runs stay."""
    for draft in path.parent.glob(f".{glob.escape(path.name)}.stm-tmp-" + "[0-9a-f]" * 8):
        if draft.is_file() and not draft.is_symlink():
            with lock(draft) as free, suppress(OSError):
                if free:
                    _insist(draft.unlink)


def find(folder: Path) -> Path:
    """Return the path to read a folder from: `folder`, or the old folder's if a kill fell between two renames."""
    if not folder.exists():
        for token in tokens(folder, "old"):
            if sibling(folder, "tmp", token).exists():
                return sibling(folder, "old", token)
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
    """Yield what a folder holds beside the files in `names`. A name such as `a/b` allows a folder `a`."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = inside + entry.name
            # A link is foreign even under one of our names: what it points to is not ours to delete.
            if entry.is_dir(follow_symlinks=False) and any(ours.startswith(f"{name}/") for ours in names):
                yield from _foreign(Path(entry.path), names, f"{name}/")
            elif name not in names or not entry.is_file(follow_symlinks=False):
                yield name


def probe(path: Path) -> None:
    """Make a folder beside `path` and remove it again. If folders above `path` are missing, use the next that exists.

    Permission bits are not enough to tell: a full disk, a quota or a read-only file system refuse too.

    Args:
        path: absolute.

    Raises:
        OSError: the reason of the system; see `refusing`.
    """
    aside = next(p for p in path.parents if p.exists()) / path.name
    for left in abandoned(aside):  # one that was killed here; what holds a file was left by another run
        _discard(left, ())
    folder = draft_of(aside)
    try:
        folder.mkdir()
    finally:
        _insist(folder.rmdir)


def _failure(given: Path, error: OSError, kind: type[StmError]) -> StmError:
    """Return the error to raise for what the system refused: ArtifactError if there is no room, else `kind`."""
    if reason := no_room(error):
        return ArtifactError(f"{given} cannot be written: {reason}", "make room, or choose another disk with --out")
    message = f"{given} cannot be written: {error.strerror or error}"
    return _kind(error, kind)(message, "choose another place with --out")


def _kind(error: OSError, kind: type[StmError]) -> type[StmError]:
    """Return `kind`, or ArtifactError for a disk that fails: no other words on the command line would mend that."""
    failing = no_room(error) or error.errno in (errno.EIO, errno.EROFS)
    return ArtifactError if kind is UsageError and failing else kind


def _exchange(path: Path, token: str) -> None:
    """Exchange the names of `path` and the new folder. The old folder then has the temporary name."""
    new, old = sibling(path, "tmp", token), sibling(path, "old", token)
    if _exchange_at_once(new, path):
        return
    try:
        # Killed between the two, the run leaves "tmp" and "old" of one token: `find` and `_recover` know that sign.
        os.rename(path, old)
        os.rename(new, path)
    except BaseException:
        with suppress(OSError):  # nothing to put back if the first rename failed, or the second was done too
            os.rename(old, path)
        raise
    os.rename(old, new)


def _exchange_at_once(new: Path, path: Path) -> bool:
    """Exchange two names by renameat2(RENAME_EXCHANGE), and return whether that worked.

    If the call is missing or refused, nothing has changed. The caller then uses two renames, whose error says why.
    """
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError):
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(path), _RENAME_EXCHANGE) == 0)


def _recover(path: Path, names: tuple[str, ...]) -> None:
    """Put back an old folder that a killed run had moved away, and clear what killed runs left.

    What living runs write stays.
    """
    for temporary in abandoned(path):
        old = sibling(path, "old", temporary.name[-8:])
        if old.exists() and not path.exists():
            os.rename(old, path)
        _discard(temporary, names)
    for token in tokens(path, "old"):
        if not sibling(path, "tmp", token).exists():  # both renames had been done
            _discard(sibling(path, "old", token), names)


def sync(path: Path) -> None:
    """Have the system write a file, or a folder's list of names, to the disk: after a rename this makes it last."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network drives cannot do this for folders
            raise
    finally:
        os.close(descriptor)


def _discard(folder: Path, names: tuple[str, ...]) -> None:
    """Delete a folder and the files in `names` that it holds.

    Other files in the folder stay, and so does what the system refuses to delete. No error is raised: the outcome of
    the run is decided by then, and the next run tries again.
    """
    with suppress(OSError):
        _insist(lambda: folder.chmod(0o700))  # a read-only one keeps its files
        for name in names:
            _insist((folder / name).unlink)
        for inner in {(folder / name).parent for name in names} - {folder}:
            _insist(inner.rmdir)
        _insist(folder.rmdir)


def _insist(remove: Callable[[], None]) -> None:
    """Call what removes a file or folder, and once more if the system refuses. One that is not there is removed.

    Raises:
        OSError: it was refused twice.
    """
    with suppress(FileNotFoundError):
        try:
            remove()
        except FileNotFoundError:
            raise
        except OSError:  # a network drive or a disk that fails for a moment must leave nothing of ours behind
            remove()
