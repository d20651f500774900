"""The exception family, and helpers for its sentences. Every failure that a user can cause or meet is one of these.

A message is one sentence that names the file, tensor or value, and the expected one. `hint` says what to do next.
`exit_code` is the status with which the command line then ends.
"""

import errno
import math
import os
import re
import shlex
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

NAMES_SHOWN = 8  # names in one sentence, since a checkpoint of an unrelated model has hundreds to list
LONGEST = 300  # characters of each, since a file may hold a name of any length

_NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the limit on the size of a file is reached",
}


class StmError(Exception):
    """Base of everything that stm raises on purpose.

    Args:
        message: one sentence that names what is wrong (file, tensor or value) and what was expected.
        hint: the next step, such as a command to type.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        # Names and values in a sentence may come from a file, and a sentence is one line wherever it is read.
        self.message, self.hint = escaped(message), None if hint is None else escaped(hint)
        super().__init__(self.message)

    def __str__(self) -> str:
        # In Python a traceback or a log shows nothing else, so the next step goes with it.
        return self.message if self.hint is None else f"{self.message}\nHint: {self.hint}"


class UsageError(StmError, ValueError):
    """An option or argument that cannot be used as given. A ValueError too, as Python callers expect."""

    exit_code = 2


class GateError(StmError):
    """The compressed model lost more accuracy than was allowed."""

    exit_code = 3


class Infeasible(StmError):
    """A budget or an outcome that no schedule of the model reaches, however it is chosen.

    Args:
        message, hint: as of every StmError.
        asked: the option that asks for it, such as "saving".
        value: its value, as the library takes it.
        best: the nearest value that is possible; None if nothing is.
        n: the images that it was measured on; None if it follows from the model's shape, or is a speed.
    """

    def __init__(
        self,
        message: str,
        hint: str | None = None,
        *,
        asked: str,
        value: float,
        best: float | None,
        n: int | None = None,
    ) -> None:
        super().__init__(message, hint)
        self.asked, self.value, self.best, self.n = asked, value, best, n


class InfeasibleBudget(Infeasible, UsageError):
    """A budget that the tokens and blocks of the model do not allow."""


class InfeasibleDrop(Infeasible, GateError):
    """A drop of top-1 that no saving keeps."""


class CheckpointError(StmError):
    """A checkpoint that cannot be read or is not a ViM that we run."""


class Question(CheckpointError):
    """A fact that decides every number, which neither the file nor the caller tells.

    Args:
        message: the question.
        answers: from each possible answer to the words of the command line that give it.
    """

    def __init__(self, message: str, answers: Mapping[str, Sequence[str]] = MappingProxyType({})) -> None:
        super().__init__(message, self.hinted(answers))
        self.answers = answers

    @staticmethod
    def hinted(answers: Mapping[str, Sequence[str]], command: Sequence[str] = ()) -> str:
        """Return the hint: for each answer the command to type, which is `command` followed by the answer's words."""
        return "; ".join(f"if it is {what}: {shlex.join((*command, *words))}" for what, words in answers.items())


class ArtifactError(StmError):
    """A model folder that cannot be read or written."""


class DataError(StmError):
    """A sample set that cannot be used."""


class HubError(StmError):
    """The Hugging Face Hub refused, failed or could not be reached."""


class BackendError(StmError):
    """A backend that was asked for by name is not available."""


def check_choice(name: str, value: str, choices: Iterable[str], error: Callable[[str], Exception] = UsageError) -> None:
    """Raise `error` if `value` is not one of `choices`. The message calls it `name`.

    Args:
        error: UsageError for an argument; ValueError for a value of a file, whose reader adds the file's name.
    """
    if value not in (known := tuple(choices)):
        raise error(f"{name} is {value!r}, expected one of {', '.join(known)}")


def check_within(owner: Any, low: float, high: float, *names: str) -> None:
    """Raise ValueError if an attribute of `owner` is not within low to high.

    Both numbers of an interval are checked; None, a number that is unknown, passes.
    """
    for name in names:
        value = getattr(owner, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not low <= number <= high:
                raise ValueError(
                    f"{name} is {value}, expected {'at least ' + str(low) if high == math.inf else f'{low} to {high}'}"
                )


def check_name(name: str | os.PathLike[str], error: type[StmError]) -> None:
    """Raise `error` for a name that is not Unicode, as a file's may be on Linux.

    JSON, cards and safetensors cannot hold such a name, and some would fail halfway through writing.
    """
    try:
        os.fspath(name).encode()
    except UnicodeEncodeError as cause:
        raise error(f"{name} is not a name in UTF-8, expected one that can be written down", "rename it") from cause


def check_local(path: os.PathLike[str] | str, error: type[StmError]) -> None:
    """Raise `error` for the address of something on the web. A `Path` holds it with one slash less."""
    address = re.match(r"((?:https?|ftps?|s3|gs|hf)):/+(.*)", os.fspath(path), re.DOTALL)
    if address and not os.path.exists(path):
        raise error(f"{address[1]}://{address[2]} is an address, expected a file or folder here", "download it first")


def no_room(error: OSError) -> str | None:
    """Return why the system has no room for what was written, in words; None if the error is another."""
    return _NO_ROOM.get(error.errno or 0)


def said(error: BaseException) -> str:
    """Return what a library's exception says, as a part of a sentence: one line of at most `LONGEST` characters.

    A message of another library may have many lines, quote the file that it could not read, or be empty. Of an error
    of the system the reason alone counts: its number says nothing to people, and the sentence names the file already.
    """
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    lines = str(reason).strip().splitlines() or [type(error).__name__]
    return brief(escaped(lines[0]), LONGEST)


def damage(error: Exception) -> str:
    """Return what an exception of a library's decoder says of a file, as `said` does.

    Damaged bytes make decoders raise anything at all. Errors that speak of a decoder's code tell nothing of the file.
    """
    return "it is damaged" if isinstance(error, _OF_CODE) or "<class '" in str(error) else said(error)


_OF_CODE = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError, struct.error)


def escaped(text: str) -> str:
    """Return text of a file for a sentence: line breaks and other controls as escapes, since a message is one line."""
    return re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029]", escape, text)


def escape(character: re.Match[str]) -> str:
    """Return a character as Python writes it in a string, such as `\\n`."""
    return character[0].encode("unicode_escape").decode()


def brief(text: str, most: int = 80) -> str:
    """Return a text for a sentence, cut after its first `most` characters."""
    return text if len(text) <= most else f"{text[:most]}..."


def listed(names: Iterable[str], count: int | None = None) -> str:
    """Return names for a sentence: the first few, and the number of others.

    The names come from files: see `escaped`.

    Args:
        count: the number of all names, if `names` are only the first few.
    """
    every = list(names)
    more = (len(every) if count is None else count) - len(every[:NAMES_SHOWN])
    shown = (brief(escaped(name), LONGEST) for name in every[:NAMES_SHOWN])
    return ", ".join(shown) + (f" and {more:,} more" if more else "")
