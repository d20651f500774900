"""The exception family. Every failure that a user can cause or meet is one of these.

A message is one sentence that names the file, tensor or value and what was expected; `hint` says what to do next.
`exit_code` is what the command line returns for it.
"""

import os
from collections.abc import Iterable

SHOWN = 8  # names in one sentence; a checkpoint of something else entirely has hundreds to list
LONGEST = 300  # characters of one of them; a file may hold a name of any length


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


def listed(names: Iterable[str]) -> str:
    """Names for a sentence: the first few, and how many more there are. A very long one is cut."""
    every = [name if len(name) <= LONGEST else name[: LONGEST - 3] + "..." for name in names]
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more
