"""The rule that every target keeps, stated once, and the loop that feeds a target.

An input is answered or refused. A refusal is one sentence of ours, as the command line would print it, with exit code 1
to 3. Everything else is a `Fault`: another exception, a sentence of several lines, more than `SECONDS` of the processor
for a small input, more memory than `bound` allows, a wrong number (each target checks its own), a module, a process or
a connection that the input made us open, a file that was touched outside the target's folder.
"""

import gc
import io
import os
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, Protocol

from stm.errors import StmError
from stm_cli._errors import describe
from stm_cli._output import error as show
from stm_cli._visible import visible

SECONDS = 5.0  # of the processor, for an input of at most LARGEST bytes
LARGEST = 1 << 16
# Bytes of memory: what any input may take, and what it may take for each of its bytes. Reading a pickle makes
# objects of up to 4 bytes for each byte that stands for one, JSON up to 60 ("[[[[").
_ANYWAY, _TIMES = 96 << 20, 128
CANARY = "stm_fuzz_canary"  # a module that no honest file names: importing it is a fault
_LONGEST = 4000  # characters of a sentence: 8 names of 300 characters each, and the words around them
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# Words of Python or a library that tell a user nothing.
_INTERNAL = re.compile(
    r"NoneType|object has no attribute|not subscriptable|unhashable|index out of range|Traceback|<class '"
)


class Fault(Exception):
    """An input broke the rule."""


class Target(Protocol):
    """A module that answers inputs: `config`, `weights`, `checkpoint`, `tables` and `images`."""

    def run(self, data: bytes, folder: Path) -> None:
        """Hand an input, whose first byte chooses the reader, to that reader. Raise Fault for a wrong number."""

    def mutate(self, data: bytes, draw: random.Random) -> bytes:
        """Return a changed input that a reader does not refuse at once."""


def bound(size: int) -> int:
    """Return how many bytes of memory an input of `size` bytes may take."""
    return _ANYWAY + _TIMES * size


def judge(call: Callable[[], Any], size: int, *, most: int | None = None) -> Any:
    """Return what a call returns, or None if it refuses its input in one sentence.

    Args:
        size: of the input in bytes.
        most: bytes of memory, if another bound than that of `bound` holds.

    Raises:
        Fault: the call broke the rule.
    """
    _watch.events.clear()
    for attempt in range(2):
        _reset_peak()
        before, began = _memory("VmRSS"), time.process_time()
        try:
            with _watched():
                result = call()
        except StmError as error:
            result = None
            _check_sentence(error)
        except Exception as error:
            raise Fault(f"{type(error).__name__}: {error}\n{traceback.format_exc()}") from error
        took, used = time.process_time() - began, _memory("VmHWM") - before
        # What is imported for the first time, or computed once, is no memory of the input: only the second run counts.
        if used <= (most or bound(size)) and took <= SECONDS:
            break
        if attempt:
            raise Fault(f"{took:.1f} s of the processor and {used:,} bytes of memory for {size:,} bytes")
    if _watch.events:
        raise Fault(f"it did what no input may do: {_watch.events}")
    return result


def check_text(text: str, what: str = "a sentence") -> None:
    """Raise Fault for a sentence that is not one line of words for people."""
    if _CONTROLS.search(text) or len(text) > _LONGEST or not text.strip():
        raise Fault(f"{what} is not one line: {text[:1000]!r}")
    if internal := _INTERNAL.search(text):
        raise Fault(f"{what} speaks of {internal[0]}: {text[:1000]!r}")


def _check_sentence(error: StmError) -> None:
    failure = describe(error)
    if failure.code not in (1, 2, 3):
        raise Fault(f"exit code {failure.code} for {failure.message}")
    check_text(failure.message)
    if failure.hint is not None:
        check_text(failure.hint, "a hint")
    with redirect_stderr(io.StringIO()) as screen:
        show(failure.message, failure.hint)
    lines = [f"Error: {visible(failure.message)}", *([f"Hint: {visible(failure.hint)}"] if failure.hint else [])]
    if screen.getvalue().splitlines() != lines:
        raise Fault(f"the command line shows {screen.getvalue()!r}, expected {lines}")


def _reset_peak() -> None:
    gc.collect(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # no Linux, or not allowed: the peak is then that of the whole run, and `_memory` says 0
        _watch.peaks = False


def _memory(field: str) -> int:
    if not _watch.peaks:
        return 0
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(match[1]) << 10 if match else 0


class _Watch:
    """Python's audit events that no reader has a reason for, while a target runs."""

    def __init__(self) -> None:
        self.active, self.peaks, self.events = False, True, list[str]()
        self.inside = [
            tempfile.gettempdir(),
            os.path.realpath(tempfile.gettempdir()),
            "/dev/null",
            "/dev/shm",
            "/proc/self",
        ]

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event in _RUNS and not (event == "subprocess.Popen" and args[0] == sys.executable and "-P" in args[1]):
            self.events.append(f"{event} {args!r:.300}")
        elif event == "import" and str(args[0]).startswith(CANARY):
            self.events.append(f"import {args[0]}")
        elif event == "open" and isinstance(args[0], str) and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            self._written(event, args[0])
        # A name that is relative to an open folder, as shutil.rmtree gives them, is not that of a path.
        elif event in _CHANGES and not any(isinstance(arg, int) and arg >= 0 for arg in args[1:]):
            for path in args[:2]:
                if isinstance(path, str):
                    self._written(event, path)

    def _written(self, event: str, path: str) -> None:
        if not any(os.path.abspath(path).startswith(folder) for folder in self.inside):
            self.events.append(f"{event} {path!r}")


_RUNS = frozenset(
    [
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.fork",
        "os.forkpty",
        "os.spawn",
        "pty.spawn",
        "subprocess.Popen",
        "os.kill",
        "os.putenv",
        "socket.connect",
        "socket.bind",
        "socket.getaddrinfo",
        "urllib.Request",
        "ftplib.connect",
        "smtplib.connect",
    ]
)
_CHANGES = frozenset(
    [
        "os.remove",
        "os.rename",
        "os.mkdir",
        "os.rmdir",
        "os.link",
        "os.symlink",
        "os.truncate",
        "os.chmod",
        "shutil.rmtree",
    ]
)
_watch = _Watch()
sys.addaudithook(_watch)


@contextmanager
def _watched() -> Iterator[None]:
    """Watch meanwhile. Imports keep no bytecode then: it would be a file that no input asked for."""
    keeps_none, sys.dont_write_bytecode, _watch.active = sys.dont_write_bytecode, True, True
    try:
        yield
    finally:
        _watch.active, sys.dont_write_bytecode = False, keeps_none


def corpus(name: str) -> Path:
    """Return the folder of a target's seeds."""
    return Path(__file__).parent / "corpus" / name


def main(name: str, target: Target) -> None:
    """Feed a target until libFuzzer's own options say stop. The first fault ends the run, and its input is kept.

    Args:
        name: of the target: `fuzz/corpus/NAME` has its seeds.
        target: the module.
    """
    import atheris

    folder = Path(tempfile.mkdtemp(prefix=f"stm-fuzz-{name}-"))
    seen: set[str] = set()
    going_on = os.environ.get(
        "STM_FUZZ_GO_ON"
    )  # a folder: faults are kept there, one of each kind, and the run goes on

    def one(data: bytes) -> None:
        try:
            target.run(data, folder)
        except Fault as fault:
            if not going_on:
                raise
            where = _where(fault)
            if where not in seen:
                seen.add(where)
                kept = Path(going_on, f"{name}-{len(seen):03}")
                kept.write_bytes(data)
                kept.with_suffix(".txt").write_text(f"{fault}", errors="replace")
                print(f"FAULT {kept}: {str(fault)[:300]!r}", file=sys.stderr)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        draw = random.Random(seed)
        for _ in range(8):
            if data and draw.random() < 0.7:
                try:
                    made = target.mutate(data, draw)
                except Exception:  # a mutator parses what other mutators made of a seed: then bytes are changed
                    made = None
                if made is not None and made != data and len(made) <= most:
                    return made
            if data and (made := data[:1] + atheris.Mutate(data[1:], most - 1)) != data:
                return made
        return data

    try:
        atheris.Setup(sys.argv, one, custom_mutator=mutate)
        atheris.Fuzz()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _where(fault: Fault) -> str:
    """Return what two faults of one kind share: the last line of ours in a traceback, or a sentence's first words."""
    places = re.findall(r'File ".*?/((?:stm|fuzz)/[^"]+)", line (\d+)', str(fault))
    return repr(places[-1:] or re.sub(r"[^a-z ]+", "", str(fault))[:60])
