"""Make the outputs that README.md shows: every `$ stm ...` in an indented block is run, and what it prints is put below
it.

    python tools/readme.py            # writes them into README.md
    python tools/readme.py --check    # runs them, writes nothing, and fails where one says something else

The commands run one after the other in an empty folder, 80 columns wide, offline. Two outputs are the same where they
differ only in numbers, and in those by less than a twentieth. No two machines agree on a speed: show none, or end the
command with `# speeds vary`: then the last number of a line, and what comes from the line on that says "measured on",
are not compared.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
INDENT = "    "
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
NEAR = 0.05
SPEEDS = "# speeds vary"
SHOWN = {"COLUMNS": "80", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def commands(text: str) -> list[tuple[str, list[str]]]:
    """The commands of a README and the lines that it shows below each, as they are printed."""
    found: list[tuple[str, list[str]]] = []
    shown: list[str] | None = None
    for line in text.splitlines():
        if line.startswith(f"{INDENT}$ stm "):
            shown = []
            found.append((line.removeprefix(f"{INDENT}$ "), shown))
        elif line.startswith(INDENT) and shown is not None:
            shown.append(line.removeprefix(INDENT))
        else:
            shown = None
    return found


def replaced(text: str, outputs: list[list[str]]) -> str:
    """The README with these lines below its commands."""
    left, out, inside = iter(outputs), [], False
    for line in text.splitlines():
        if line.startswith(f"{INDENT}$ stm "):
            inside = True
            out += [line, *(f"{INDENT}{printed}".rstrip() for printed in next(left))]
        elif not (inside and line.startswith(INDENT)):
            inside = False
            out.append(line)
    return "\n".join(out) + "\n"


def run(wanted: list[str]) -> list[list[str]]:
    """What the commands print on stdout, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = []
        for command in wanted:
            words = [sys.executable, "-m", "stm_cli", *shlex.split(command, comments=True)[1:]]
            done = subprocess.run(
                words, cwd=folder, env=os.environ | SHOWN, stdout=subprocess.PIPE, text=True, check=True
            )
            outputs.append(
                [line.rstrip() for line in done.stdout.splitlines() if line.strip()]
            )  # a blank line would end the block
        return outputs


def same(shown: list[str], printed: list[str], speeds_vary: bool = False) -> bool:
    """Whether two outputs say the same, but for the last digits and, where they vary, speeds and the machine."""
    if speeds_vary:
        shown, printed = (
            list(takewhile(lambda line: not line.startswith("measured on "), lines)) for lines in (shown, printed)
        )
    return len(shown) == len(printed) and all(
        _same_line(*pair, speeds_vary) for pair in zip(shown, printed, strict=True)
    )


def _same_line(shown: str, printed: str, speeds_vary: bool) -> bool:
    if " ".join(_NUMBER.sub("#", shown).split()) != " ".join(_NUMBER.sub("#", printed).split()):
        return False
    pairs = zip(*(map(_value, _NUMBER.findall(line)) for line in (shown, printed)), strict=True)
    near = [abs(a - b) <= NEAR * max(abs(a), abs(b)) for a, b in pairs]
    return all(near[:-1] if speeds_vary else near)


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    text = README.read_text(encoding="utf-8")
    found = commands(text)
    outputs = run([command for command, _ in found])
    if not check:
        README.write_text(replaced(text, outputs), encoding="utf-8")
        return 0
    wrong = [
        (command, printed)
        for (command, shown), printed in zip(found, outputs, strict=True)
        if not same(shown, printed, SPEEDS in command)
    ]
    for command, printed in wrong:
        print(f"README.md shows something else than {command}, which printed:", *printed, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
