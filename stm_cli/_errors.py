"""From an exception to a sentence, a next step and an exit code: one table, the specific before the general.

Exit codes: 0 done, 1 failure, 2 usage, 3 accuracy gate not met, 130 and 143 stopped.
"""

import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import typer

from stm.artifact.written import Written, noting, so_far
from stm.distributed import current_world
from stm.errors import Question, StmError
from stm_cli import _signals
from stm_cli._output import error, stopped, typed
from stm_cli._visible import visible_traceback

DEBUG = "STM_DEBUG"
_STOPPED = 130
_ALLOCATOR = "DefaultCPUAllocator: "  # in torch's message when the memory of the machine is used up


class Failure(NamedTuple):
    """The exit code of a failure, and its message and hint for the user. An empty message is not shown."""

    code: int
    message: str = ""
    hint: str | None = None


def _usage(caught: typer.TyperException) -> Failure:
    """Return the failure of an option that the parser refused."""
    # Our sentences end without a full stop, since a hint follows them; the parser's end with one.
    context = getattr(caught, "ctx", None)
    command = context.command_path if context else "stm"
    return Failure(caught.exit_code, caught.format_message().rstrip("."), f"{command} --help shows what it takes")


def _ours(caught: StmError) -> Failure:
    """Return the failure as the exception states it. A question gets each answer as a whole command."""
    hint = caught.hinted(caught.answers, typed()) if isinstance(caught, Question) else caught.hint
    return Failure(caught.exit_code, caught.message, hint)


def _memory(caught: BaseException) -> Failure:
    """Return the failure of an allocation. The message keeps the number of bytes that torch names."""
    return Failure(1, f"out of memory: {_line(caught).rpartition(_ALLOCATOR)[2]}", "a smaller --batch-size needs less")


def _system(caught: OSError) -> Failure:
    """Return the failure of a system call that no part of stm expected."""
    # An error of a file names the file. One without a name comes from writing to stdout.
    why = caught.strerror or _line(caught)
    if caught.filename is None:
        return Failure(1, f"the output cannot be written: {why}", "see where it goes, and whether there is room")
    return Failure(
        1, f"{os.fsdecode(caught.filename)} cannot be used: {why}", "see whether it is there and may be read or written"
    )


def _other(caught: Exception) -> Failure:
    """Return the failure of any other exception: a lack of memory that torch reports, or else a fault of ours."""
    # torch's class is compared by name, because importing torch takes seconds. On a processor torch raises a plain
    # RuntimeError.
    if type(caught).__name__ == "OutOfMemoryError" or _ALLOCATOR in str(caught):
        return _memory(caught)
    return Failure(
        1, f"stm failed unexpectedly: {type(caught).__name__}: {_line(caught)}", f"set {DEBUG}=1 to see the traceback"
    )


def _line(caught: BaseException) -> str:
    """Return the first line of the exception's message, cut to 300 characters. The message may be empty."""
    lines = str(caught).strip().splitlines() or ["no message"]
    return lines[0] if len(lines[0]) <= 300 else lines[0][:297] + "..."


# The order matters: BrokenPipeError is an OSError, and nearly everything is an Exception.
TABLE: tuple[tuple[type[BaseException], Callable[[Any], Failure]], ...] = (
    (StmError, _ours),
    (typer.TyperException, _usage),
    (typer.Abort, lambda _: Failure(_STOPPED)),
    (KeyboardInterrupt, lambda _: Failure(_STOPPED)),
    (BrokenPipeError, lambda _: Failure(1)),
    (OSError, _system),
    (MemoryError, _memory),
    (Exception, _other),
)


def describe(caught: BaseException) -> Failure:
    """Return the failure by the first row of the table that fits. An exception without one (SystemExit) is raised."""
    for kind, failure in TABLE:
        if isinstance(caught, kind):
            return failure(caught)
    raise caught


def guard(command: Callable[[], Any]) -> int:
    """Run a command and return its exit code. No exception but SystemExit leaves this function."""
    written: list[Written] = []
    with _signals.running():
        try:
            try:
                return _run(command, written)
            except BaseException as caught:
                _signals.decided()
                return _told(caught, written)
        except KeyboardInterrupt as caught:  # a signal between an error and the line that decides
            _signals.decided()
            return _told(caught, written)


def _run(command: Callable[[], Any], written: list[Written]) -> int:
    """Run a command and return its exit code. `written` receives what it has written, also if it fails."""
    with noting():
        try:
            code = command()  # Typer returns the code of a `typer.Exit` instead of raising it: 130 for Ctrl-C
        finally:
            written[:] = so_far()
    sys.stdout.flush()  # now, so that a full disk is a failure with a sentence
    if code == _STOPPED:
        raise KeyboardInterrupt
    _signals.decided()
    return code if isinstance(code, int) else 0


def _told(caught: BaseException, written: list[Written]) -> int:
    """Tell the user of a failure, and return its exit code."""
    failure = describe(caught)
    if os.environ.get(DEBUG, "0") not in ("", "0"):
        sys.stderr.write(visible_traceback(caught))
    if isinstance(caught, BrokenPipeError):
        # Nobody reads stdout any more. The text in its buffer must not raise again when the interpreter closes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(caught, typer.TyperException) and not current_world().first:
        # Every process of torchrun parses the same words, and only the first one reports the error. If another
        # process failed earlier, torchrun would end the first one in the middle of its sentence.
        return 0
    if failure.code == _STOPPED:
        if current_world().first:
            stopped(written)
        return _signals.code()
    if failure.message:
        error(failure.message, failure.hint)
    return failure.code
