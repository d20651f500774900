"""The exception family. Every failure that a user can cause or meet is one of these.

A message is one sentence that names the file, tensor or value and what was expected; `hint` says what to do next.
`exit_code` is what the command line returns for it.
"""

import errno
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

NAMES_SHOWN = 8  # names in one sentence; a checkpoint of something else entirely has hundreds to list
LONGEST = 300  # characters of one of them; a file may hold a name of any length

_NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the limit on the size of a file is reached",
}


class StmError(Exception):
    """Base of everything that stm raises on purpose.

    Args:
        message: one sentence: what is wrong, with the name of the file, tensor or value, and what was expected.
        hint: the next step, such as a command to type.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(StmError, ValueError):
    """An option or argument that cannot be used as given."""

    exit_code = 2


class GateError(StmError):
    """The compressed model lost more accuracy than was allowed."""

    exit_code = 3


class CheckpointError(StmError):
    """A checkpoint that cannot be read or is not a ViM that we run."""


class Question(CheckpointError):
    """What decides every number, and nothing tells.

    Args:
        answers: what it may be, and the words of the command line that say so.
    """

    def __init__(self, message: str, answers: Mapping[str, Sequence[str]] = MappingProxyType({})) -> None:
        super().__init__(message, self.hinted(answers))
        self.answers = answers

    @staticmethod
    def hinted(answers: Mapping[str, Sequence[str]], command: Sequence[str] = ()) -> str:
        """The next step: each answer's words, after those of a command that asked."""
        return "; ".join(f"if it is {what}: {shlex.join((*command, *words))}" for what, words in answers.items())


class ArtifactError(StmError):
    """A model folder that cannot be read or written."""


class DataError(StmError):
    """A sample set that cannot be used."""


class HubError(StmError):
    """The Hugging Face Hub refused, failed or could not be reached."""


class BackendError(StmError):
    """A backend that was asked for by name is not available."""


def check_name(name: str | os.PathLike[str], error: type[StmError]) -> None:
    """Refuse a name that is not Unicode, as a file's may be on Linux: JSON, cards and safetensors cannot hold it."""
    try:
        os.fspath(name).encode()
    except UnicodeEncodeError as cause:
        raise error(f"{name} is not a name in UTF-8, expected one that can be written down", "rename it") from cause


def no_room(error: OSError) -> str | None:
    """Return why the system has no room for what was written, in words; None if the error is another."""
    return _NO_ROOM.get(error.errno or 0)


def brief(text: str, most: int = 80) -> str:
    """A value for a sentence: its beginning, if it is long."""
    return text if len(text) <= most else f"{text[:most]}..."


def listed(names: Iterable[str], count: int | None = None) -> str:
    """Names for a sentence: the first few, and how many more there are. Line breaks and other controls are written as
    escapes.

    Args:
        count: how many there are, if `names` are the first few alone.
    """
    every = list(names)
    more = (len(every) if count is None else count) - len(every[:NAMES_SHOWN])
    shown = (
        brief(re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", name), LONGEST)
        for name in every[:NAMES_SHOWN]
    )
    return ", ".join(shown) + (f" and {more:,} more" if more else "")
