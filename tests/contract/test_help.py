"""The help screens, held to help.txt: a restructuring that touches no option must not change a word of them.

help.txt was first written at commit 794cfbd. After an intended change of an option, rewrite it and read the difference:

    python -m tests.contract.test_help && git diff tests/contract/help.txt
"""

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.hang import HANG

ROOT = Path(__file__).resolve().parents[2]
KEPT = Path(__file__).with_name("help.txt")

# All screens in one process: each start of Python costs more than the fifteen screens together.
SCREENS = """
import sys
from typer.main import get_command
from stm_cli.main import application, main
for name in ("", *get_command(application()).commands):
    words = ["stm", *filter(None, [name]), "--help"]
    print("$", *words, flush=True)
    sys.argv = words
    try:
        main()
    except SystemExit as end:
        assert not end.code, words
"""

# Rich asks these how wide the screen is and whether it has colours. Continuous integration sets some of them.
DISPLAY = ("COLUMNS", "TERMINAL_WIDTH", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TTY_COMPATIBLE")


def screens() -> str:
    """Return the help of `stm` and of every command, 80 columns wide and without colours."""
    environment = {name: value for name, value in os.environ.items() if name not in DISPLAY}
    environment |= {"COLUMNS": "80", "NO_COLOR": "1", "PYTHONUTF8": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-c", SCREENS]
    run = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, timeout=HANG, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def by_command(text: str) -> dict[str, str]:
    """Split the screens at their `$ stm ... --help` lines."""
    parts = re.split(r"^\$ (.*)\n", text, flags=re.MULTILINE)
    assert parts[0] == ""
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_help_screen_is_as_it_was() -> None:
    # The frames and the line breaks are the libraries' own, so another version of them is another text.
    pinned = dict(re.findall(r"^(typer|rich)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    installed = {name: version(name) for name in pinned}
    if installed != pinned:
        pytest.skip(f"help.txt is what {pinned} print, and {installed} are installed")
    expected, shown = by_command(KEPT.read_text(encoding="utf-8")), by_command(screens())
    assert list(shown) == list(expected), "the commands and their order"
    for command, text in expected.items():
        assert shown[command] == text, f"{command}: if that is intended, run python -m tests.contract.test_help"


if __name__ == "__main__":
    KEPT.write_text(screens(), encoding="utf-8")
