"""SIGINT and SIGTERM at any moment: one line, exit code 130 or 143, no traceback.

While a command runs, a signal raises KeyboardInterrupt, so that what is half-written is removed. Before that, nothing
is written, and the process ends at once. Afterwards the outcome is decided, and a signal changes nothing.
"""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from stm_cli._start import SIGNALS, leave

_PATIENCE = 1.0  # seconds in which a second signal is the first one again: `timeout` sends two
_AGAIN = 0.01  # seconds after which an interruption that Python swallowed is raised again


class _State:
    """How far the process is, and the first signal that came."""

    running = False
    decided = False
    number: int | None = None
    came = 0.0


def listen() -> None:
    """Answer the signals from now on. One that our parent has us ignore, as `nohup` does, stays ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler, leave):
            signal.signal(number, _answer)


@contextmanager
def running() -> Iterator[None]:
    """While the block runs, a signal raises KeyboardInterrupt in it, until `decided`."""
    if threading.current_thread() is not threading.main_thread():  # of somebody's program, whose signals are its own
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    hook = sys.unraisablehook
    _State.decided, _State.number = False, None
    _State.running = True
    listen()
    sys.unraisablehook = lambda caught: _swallowed(caught) or hook(caught)
    try:
        yield
    finally:
        _State.decided = True
        sys.unraisablehook = hook
        for number, handler in before.items():
            if handler is not _answer:
                signal.signal(number, handler)


def decided() -> None:
    """The outcome is known: a signal changes it no more."""
    _State.decided = True


def again() -> None:
    """Raise KeyboardInterrupt once more if a signal has come and the work goes on: a library has swallowed the first.

    Libraries do, if they try a thing and take any failure for an answer.
    """
    if _State.running and not _State.decided and _State.number is not None:
        raise KeyboardInterrupt


def code() -> int:
    """Return the exit code of a run that was stopped: 128 plus the signal's number, as of a process that it killed."""
    return 128 + (_State.number or signal.SIGINT)


def _answer(number: int, frame: FrameType | None) -> None:
    if _State.decided:
        return
    if not _State.running:
        leave(number)
    now = time.monotonic()
    if _State.number is None:
        _State.number, _State.came = number, now
        raise KeyboardInterrupt
    if now - _State.came > _PATIENCE:  # somebody does not want to wait for the end of the clearing up
        leave(_State.number, said="at once; the same command clears up what this one left")


def _swallowed(caught: Any) -> bool:
    """Return whether this is our interruption, which came where Python lets no exception out, as in a finalizer.

    It is raised again a moment later: by the system's clock, because in such a place no lock may be waited for.
    """
    if _State.number is None or not issubclass(caught.exc_type, KeyboardInterrupt):
        return False
    if not _State.decided:
        signal.signal(signal.SIGALRM, _raise)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN)
    return True


def _raise(number: int, frame: FrameType | None) -> None:
    if not _State.decided:
        raise KeyboardInterrupt
