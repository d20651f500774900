"""JSON, one value, progress and colour: where each goes, and when it is silent."""

import io
import json
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from stm.progress import Progress
from stm.reports import (
    CompressReport,
)
from stm_cli import _output
from stm_cli._output import Output, amount, error, starting
from tests.cli.test_output import COMPRESSED


def test_downloads_show_their_size_and_speed() -> None:
    assert amount(Progress("download a.pth", 1_000_000, 4_000_000, "B"), 500_000.0) == "1 MB of 4 MB, 500 kB/s"
    assert amount(Progress("download a.pth", 999, None, "B")) == "999 bytes"
    assert amount(Progress("evaluating", 1500, 2000, "images"), 3.0) == "1,500/2,000 images"
    assert amount(Progress("compare", 1, 2, "images", "rmeeto")) == "1/2 images, rmeeto"
    assert amount(Progress("compare", 1, 2, "images", "a" * 30)) == f"1/2 images, {'a' * 23}…", "the time left fits"


def no_screen(report: CompressReport) -> str:
    pytest.fail("no screen is drawn")


def test_json_is_one_document_and_nothing_else(capsys) -> None:
    output = Output(json=True, quiet=False)
    output.report(COMPRESSED, no_screen, lambda shown: "x")
    output.next(("stm", "eval", "x"))
    out, err = capsys.readouterr()
    assert json.loads(out) == json.loads(COMPRESSED.to_json())
    assert err == ""


def test_a_file_name_that_is_not_utf8_is_still_json(capsysbinary) -> None:
    Output(json=True, quiet=False).report(replace(COMPRESSED, output="caf\udce9 é"), no_screen, str)
    out = capsysbinary.readouterr().out
    assert json.loads(out.decode("utf-8"))["output"] == "caf\udce9 é"


def test_quiet_is_one_value_and_nothing_else(capsys) -> None:
    output = Output(json=False, quiet=True)
    output.report(COMPRESSED, no_screen, lambda shown: shown.output)
    output.note("a note")
    output.warn("a warning")
    output.next(("stm", "eval", "x"))
    with output.progress() as on_progress:
        on_progress(Progress("evaluating", 1, 2, "images"))
    assert capsys.readouterr() == ("vim-digits-stm40\n", "")


def test_hints_are_quoted_for_the_shell_and_on_stderr(capsys) -> None:
    Output(json=False, quiet=False).next(("stm", "eval", "my model"), ("stm", "info", "my model"))
    assert capsys.readouterr() == ("", "Next: stm eval 'my model'\n      stm info 'my model'\n")


def test_progress_is_silent_without_a_terminal(capsys) -> None:
    with Output(json=False, quiet=False).progress() as on_progress:
        on_progress(Progress("evaluating", 1, 2, "images"))
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("disabled", "seen"), [("", True), ("0", True), ("1", False), ("true", False)])
def test_progress_on_a_terminal_honours_the_hub_s_switch(monkeypatch, disabled: str, seen: bool) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", disabled)
    monkeypatch.setenv("TERM", "xterm")
    with Output(json=False, quiet=False).progress() as on_progress:
        assert ("load" in terminal.getvalue()) == seen, "at once: reading a model takes a while"
        on_progress(Progress("evaluating", 1, None, "images"))
        on_progress(Progress("evaluating", 1500, 2000, "images"))
    assert ("1,500/2,000 images" in terminal.getvalue()) == seen


def test_a_command_that_takes_long_to_begin_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, shown = Terminal(), threading.Event()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(threading, "Timer", lambda seconds, show: Now(lambda: (show(), shown.set())))
    with starting(quiet=False):  # no thread could show it while torch is imported
        assert "starting" in terminal.getvalue() and not shown.is_set()
    terminal.truncate(0)
    with starting(quiet=False, brief=True):
        assert shown.is_set() and _output._waiting is not None
        error("something else")
        assert _output._waiting is None and "Error" in terminal.getvalue()
    with starting(quiet=True):
        assert _output._waiting is None


class Now:
    """A timer without a time."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.start, self.daemon = call, True

    def cancel(self) -> None:
        pass


def test_a_warning_is_yellow_and_on_stderr(monkeypatch, capsys) -> None:
    """33 is yellow among the codes of ANSI."""
    terminal = Terminal()
    with monkeypatch.context() as patched:
        patched.setattr("sys.stderr", terminal)
        patched.setenv("TERM", "xterm")
        patched.setenv("NO_COLOR", "")
        Output(json=False, quiet=False).warn("mind this")
    assert "33m" in terminal.getvalue()
    Output(json=True, quiet=False).warn("mind this")
    assert capsys.readouterr() == ("", "Warning: mind this\n")


def test_no_color(monkeypatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    for no_color in ("", "1"):
        monkeypatch.setenv("NO_COLOR", no_color)
        Output(json=False, quiet=False).note("hello")
    coloured, plain = terminal.getvalue().splitlines()
    assert "\x1b[" in coloured
    assert "3" not in plain.replace("hello", "").strip("\x1b[0m1")
