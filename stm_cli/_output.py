"""Write data to stdout, and words for people to stderr.

A command makes one report. Here the report becomes a screen, one JSON document or one value. Progress, notes and hints
go to stderr, and never ask for anything. Progress is shown only on a terminal, and only if HF_HUB_DISABLE_PROGRESS_BARS
is not set. rich itself honours NO_COLOR.
"""

import os
import re
import shlex
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console, RenderableType
from rich.text import Text

from stm.artifact.written import Written, so_far, unkept
from stm.distributed import current_world
from stm.errors import StmError, UsageError
from stm.progress import OnProgress, Progress
from stm.reports import Report
from stm.units import size
from stm_cli import _signals
from stm_cli._start import NOTHING
from stm_cli._tables import PASTED, Rows
from stm_cli._visible import visible, visible_json, visible_report

if TYPE_CHECKING:
    from rich.status import Status

R = TypeVar("R", bound=Report)
E = TypeVar("E", bound=StmError)


def console(*, stderr: bool = False) -> Console:
    """Return a console that prints text unchanged: a file called `[bold].png` must not become markup."""
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


_MOMENT = 0.1  # seconds after which a brief command that has said nothing shows that it has begun
_DETAIL = 24  # characters of a method's name beside a bar: the time left stands behind it


class _Waiting:
    """A sign on a terminal that something happens, from a moment on until anything else is written.

    Importing torch and reading a model take seconds, in which no work has a number.
    """

    def __init__(self, *, brief: bool) -> None:
        self._lock, self._over = threading.Lock(), False
        self._status: Status | None = None
        self._timer = threading.Timer(_MOMENT, self._show)
        self._timer.daemon = True
        if brief:
            self._timer.start()
        else:  # no thread could show it while torch's libraries load: Python runs one thread at a time
            self._show()

    def _show(self) -> None:
        with self._lock:
            if not self._over:
                self._status = console(stderr=True).status("starting")
                self._status.start()
                self._status.update(spinner="dots")  # draws it: `start` alone leaves that to a thread

    def end(self) -> None:
        """Take the sign away."""
        self._timer.cancel()
        with self._lock:
            self._over = True
            if self._status is not None:
                self._status.stop()


_waiting: _Waiting | None = None


@contextmanager
def starting(*, quiet: bool, brief: bool = False) -> Iterator[None]:
    """Show that a command has begun, until it writes something or ends; a brief one only if it takes a moment."""
    global _waiting
    _waiting = _Waiting(brief=brief) if _is_live(quiet) else None
    try:
        yield
    finally:
        _settle()


def _settle() -> None:
    global _waiting
    if _waiting is not None:
        _waiting.end()
        _waiting = None


def _is_live(quiet: bool) -> bool:
    return not quiet and console(stderr=True).is_terminal and not _set("HF_HUB_DISABLE_PROGRESS_BARS")


def error(message: str, hint: str | None = None) -> None:
    """Write what failed and what to do next, each on one line that no terminal width breaks."""
    _labelled("Error: ", "bold red", message)
    if hint:
        _labelled("Hint: ", "bold", hint)


def stopped(written: Sequence[Written]) -> None:
    """Write what a run that somebody stopped has written, and what the same command would do."""
    growing = [each.path for each in written if each.grows]
    whole = [each.path for each in written if not each.grows]
    said = NOTHING
    if growing:
        said = f"what was finished is in {', '.join(growing)}; the same command goes on from there"
    elif whole:
        said = f"{', '.join(whole)} {'is' if len(whole) == 1 else 'are'} written whole"
    _labelled("Stopped: ", "bold yellow", said)


def typed() -> tuple[str, ...]:
    """Return the words of the running command, or none if they hold a token.

    A printed command ends up in logs and bug reports, and a token must not.
    """
    words = sys.argv[1:]
    # Typer takes `--token=X` too. `--tokens-per-side` only begins alike.
    if any(word.startswith("--token") and not word.startswith("--tokens-") for word in words):
        return ()
    return ("stm", *words)


def _labelled(label: str, style: str, text: str) -> None:
    _settle()
    # Soft wrap leaves breaking to the terminal: a line that rich breaks cannot be pasted or searched.
    console(stderr=True).print(Text.assemble((label, style), visible(text)), soft_wrap=True)


class Output:
    """The sink of one command.

    Args:
        json: print the report as one JSON document.
        quiet: print its one essential value, if there is one; no progress, notes or hints. Of several processes all but
            the first are quiet.
        format: print the table of the report in one of the forms of `_tables.PASTED`, and nothing else.

    Raises:
        UsageError: two forms were asked for.
    """

    def __init__(self, *, json: bool, quiet: bool, format: str | None = None) -> None:
        self.json, self.quiet, self.format = json, quiet or not current_world().first, format
        if format is not None and (json or quiet):
            other = "--json" if json else "--quiet"
            raise UsageError(f"--format and {other} were both given, and stdout has one form", "leave one of them out")

    def report(
        self,
        report: R,
        screen: Callable[[R], RenderableType],
        value: Callable[[R], str],
        table: Callable[[R], Rows] | None = None,
    ) -> None:
        """Print a report to stdout, in the one form that was asked for.

        Args:
            screen: draws the report for people. It gets the report with every text in it visible (`_visible`).
            value: returns the one value for scripts, from the same report.
            table: returns heads and rows, one value per cell, for `format`.
        """
        _settle()
        text = ""
        if self.json:
            text = visible_json(report.to_json())
            sys.stdout.buffer.write(text.encode() + b"\n")  # UTF-8 whatever the locale
        elif self.quiet:
            text = value(visible_report(report))
            sys.stdout.write(f"{text}\n" if text else "")  # without rich, which would make spaces of tabs
        elif self.format is not None and table is not None:
            text = PASTED[self.format](*table(visible_report(report)))
            sys.stdout.write(text + "\n")
        else:
            terminal = console()
            with terminal.capture() as screen_text:
                terminal.print(screen(visible_report(report)), crop=False)
            # Tables pad every line with spaces, which would be in the way when output is compared or copied.
            text = re.sub(r" +$", "", screen_text.get(), flags=re.MULTILINE)
            sys.stdout.write(text)
        # Whatever a command writes is named, if the report did not do so. A screen folds long paths.
        printed = "".join(text.split())
        unnamed = [each.path for each in so_far() if "".join(visible(each.path).split()) not in printed]
        if unnamed:
            self.note(f"written: {', '.join(unnamed)}")
        for sentence in unkept():
            self.note(sentence)

    @contextmanager
    def refusing(self, kind: type[E], made: Callable[[E], Report]) -> Iterator[None]:
        """Print an error that scripts act on as a report too, before it goes on to be told: only as JSON."""
        try:
            yield
        except kind as error:
            if self.json:
                self.report(made(error), lambda shown: "", lambda shown: "")
            raise

    def note(self, text: str) -> None:
        """Write something that a person should know beside the report."""
        if not self.quiet:
            _labelled("Note: ", "bold", text)

    def warn(self, text: str) -> None:
        """Write something that a person should not miss."""
        if not self.quiet:
            _labelled("Warning: ", "bold yellow", text)

    def next(self, *commands: tuple[str, ...]) -> None:
        """Write the commands that a person may want now, with the real names, ready to be pasted."""
        # Not with --json: a program reads that, and pastes nothing.
        if not (self.quiet or self.json):
            for number, command in enumerate(commands):
                _labelled("      " if number else "Next: ", "bold", shlex.join(command))

    @property
    def live(self) -> bool:
        """Return whether progress is shown."""
        return _is_live(self.quiet)

    @contextmanager
    def progress(self) -> Iterator[OnProgress]:
        """Yield the `on_progress` of a command. It draws one bar per stage on a terminal, else nothing."""
        if not self.live:
            yield lambda progress: _signals.again()
            return
        from rich import progress as bars  # only here: the import takes time that no script needs to spend

        columns = (
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(),
            bars.TextColumn("{task.fields[count]}", markup=False),
            bars.TimeElapsedColumn(),
            bars.TextColumn("left"),
            bars.TimeRemainingColumn(compact=True),
        )
        _settle()
        with bars.Progress(*columns, console=console(stderr=True), transient=True) as live:
            stages: dict[str, bars.TaskID] = {}
            loading = live.add_task("load", total=None, count="")

            def show(progress: Progress) -> None:
                _signals.again()
                live.update(loading, visible=False)  # reading a model has no number; whatever follows has one
                if progress.stage not in stages:
                    stages[progress.stage] = live.add_task(visible(progress.stage), total=progress.total, count="")
                task = stages[progress.stage]
                live.update(task, completed=progress.done, total=progress.total)
                # rich estimates the speed of a task while it is updated, so the speed is read in between.
                speed = next(bar.speed for bar in live.tasks if bar.id == task)
                live.update(task, count=amount(progress, speed))

            yield show


def amount(progress: Progress, speed: float | None = None) -> str:
    """Return progress in words: counts, or for bytes their size and speed."""
    if progress.unit != "B":
        of = "" if progress.total is None else f"/{progress.total:,}"
        return f"{progress.done:,}{of} {progress.unit}" + (f", {_brief(progress.detail)}" if progress.detail else "")
    of = "" if progress.total is None else f" of {size(progress.total)}"
    return size(progress.done) + of + (f", {size(int(speed))}/s" if speed else "")


def _brief(text: str) -> str:
    text = visible(text)
    return text if len(text) <= _DETAIL else f"{text[: _DETAIL - 1]}…"


def _set(variable: str) -> bool:
    """Return whether a variable is on, as huggingface_hub reads it."""
    return os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE")
