"""Every row of the table in stm_cli/_errors.py, and what a terminal shows of it."""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from stm.artifact.written import so_far, tell
from stm.errors import (
    ArtifactError,
    BackendError,
    CheckpointError,
    DataError,
    GateError,
    HubError,
    Question,
    StmError,
    UsageError,
)
from stm_cli._errors import TABLE, guard
from tests.hang import HANG


def raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UsageError("rate is 2", "give less"), 2, "Error: rate is 2\nHint: give less\n"),
        (GateError("too much"), 3, "Error: too much\n"),
        *(
            (kind("it broke"), 1, "Error: it broke\n")
            for kind in (CheckpointError, ArtifactError, DataError, HubError, BackendError)
        ),
        (typer.BadParameter("x is odd"), 2, "Error: Invalid value: x is odd\nHint: stm --help shows what it takes\n"),
        (typer.Abort(), 130, "Stopped: nothing was written; the same command starts from the beginning\n"),
        (KeyboardInterrupt(), 130, "Stopped: nothing was written; the same command starts from the beginning\n"),
        (
            OSError(36, "File name too long", "x.pth"),
            1,
            (
                "Error: x.pth cannot be used: File name too long\nHint: see whether it is there and may be read or"
                " written\n"
            ),
        ),
        (
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.\nmore"
            ),
            1,
            (
                "Error: out of memory: can't allocate memory: you tried to allocate 9 bytes.\nHint: a smaller"
                " --batch-size needs less\n"
            ),
        ),
        (MemoryError("9 GB"), 1, "Error: out of memory: 9 GB\nHint: a smaller --batch-size needs less\n"),
        (OutOfMemoryError("CUDA"), 1, "Error: out of memory: CUDA\nHint: a smaller --batch-size needs less\n"),
        (
            KeyError("a"),
            1,
            "Error: stm failed unexpectedly: KeyError: 'a'\nHint: set STM_DEBUG=1 to see the traceback\n",
        ),
        (
            ValueError(),
            1,
            "Error: stm failed unexpectedly: ValueError: no message\nHint: set STM_DEBUG=1 to see the traceback\n",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_each_exception_becomes_a_code_and_a_sentence(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STM_DEBUG", raising=False)
    assert guard(raising(error)) == code
    assert capsys.readouterr() == ("", said)


def test_every_error_of_the_library_is_in_the_table() -> None:
    assert TABLE[0][0] is StmError


def test_a_questions_answers_are_commands(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was typed, with the words that answer. One with a token is not repeated: then these words are
    all."""
    asks = Question("which?", {"one": ["--class-token", "middle"], "the other": ["--no-divide-out"]})
    monkeypatch.setattr(sys, "argv", ["/bin/stm", "info", "my vim.pth", "--ema"])
    assert guard(raising(asks)) == 1
    one, other = "stm info 'my vim.pth' --ema --class-token middle", "stm info 'my vim.pth' --ema --no-divide-out"
    assert capsys.readouterr().err == f"Error: which?\nHint: if it is one: {one}; if it is the other: {other}\n"
    monkeypatch.setattr(sys, "argv", ["/bin/stm", "info", "o/vim", "--token=secret"])
    guard(raising(asks))
    assert capsys.readouterr().err.endswith(
        "Hint: if it is one: --class-token middle; if it is the other: --no-divide-out\n"
    )
    again = pickle.loads(pickle.dumps(asks))
    assert (again.message, again.hint, again.answers) == ("which?", asks.hint, asks.answers)


def test_a_long_or_many_lined_message_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    guard(raising(RuntimeError("first " + "x" * 500 + "\nsecond")))
    first, hint, end = capsys.readouterr().err.split("\n")
    assert first.endswith("...") and len(first) < 400 and hint.startswith("Hint: ") and end == ""


def test_markup_in_a_message_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    guard(raising(DataError("[bold]a.png[/bold] is :smile: not an image")))
    assert capsys.readouterr().err == "Error: [bold]a.png[/bold] is :smile: not an image\n"


def test_debug_shows_the_traceback_and_keeps_the_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STM_DEBUG", "1")
    assert guard(raising(DataError("no images"))) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and err.endswith("Error: no images\n")


def test_exit_codes_and_system_exit_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert guard(lambda: None) == 0
    assert guard(lambda: 3) == 3
    with pytest.raises(SystemExit):
        guard(raising(SystemExit(5)))


PROGRAM = "import sys\nfrom stm_cli._errors import guard\nfrom stm_cli._output import console\n"


def run(code: str, **more: object) -> "subprocess.Popen[str]":
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | more
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM + code], env=os.environ | {"PYTHONPATH": os.getcwd()}, **pipes
    )


@pytest.mark.parametrize("lines", [1, 100_000], ids=["buffered", "while printing"])
def test_a_reader_that_goes_away_is_no_traceback(lines: int) -> None:
    read, write = os.pipe()
    os.close(read)
    process = run(f"sys.exit(guard(lambda: [print('x' * 50) for _ in range({lines})] and None))", stdout=write)
    os.close(write)
    assert process.communicate(timeout=HANG)[1] == ""
    assert process.returncode == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_one_sentence() -> None:
    with open("/dev/full", "w") as full:
        process = run("sys.exit(guard(lambda: print('x')))", stdout=full)
        first, *rest = process.communicate(timeout=HANG)[1].splitlines()
    assert first == "Error: the output cannot be written: No space left on device"
    assert process.returncode == 1 and len(rest) == 1


def test_ctrl_c_is_130_without_a_traceback() -> None:
    # A shell's background jobs ignore Ctrl-C, and so do their children: this one listens wherever the tests were
    # started.
    program = "import signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    process = run(program + "sys.exit(guard(lambda: (print('up', flush=True), time.sleep(60))))")
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGINT)
    said = "Stopped: nothing was written; the same command starts from the beginning\n"
    assert process.communicate(timeout=HANG)[1] == said
    assert process.returncode == 130


AT_IMPORT = """
import os, signal, sys
class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), int(sys.argv[2]))
signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a shell, wherever the tests were started
sys.meta_path.insert(0, Stop())
from stm_cli._start import main
main()
"""


@pytest.mark.parametrize("module", ["stm_cli._signals", "threading", "stm_cli.main", "typer", "stm"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_modules_are_imported(module: str, number: int) -> None:
    """From the first module that `main` imports on."""
    command = [sys.executable, "-c", AT_IMPORT, module, str(int(number))]
    run = subprocess.run(command, capture_output=True, text=True, timeout=HANG)
    said = "Stopped: nothing was written; the same command starts from the beginning\n"
    assert (run.returncode, run.stdout, run.stderr) == (128 + number, "", said)


@pytest.mark.parametrize(
    ("grows", "said"),
    [
        (True, "Stopped: what was finished is in out; the same command goes on from there\n"),
        (False, "Stopped: out is written whole\n"),
    ],
)
def test_ctrl_c_says_what_is_written(grows: bool, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        tell(Path("out"), grows=grows)
        tell(Path("out/file"))  # within it
        return 130  # as typer ends on Ctrl-C

    assert guard(command) == 130
    assert capsys.readouterr().err == said
    assert so_far() == ()
