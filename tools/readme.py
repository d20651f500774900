"""Make the outputs that README.md shows: run every `$ stm ...` of an indented block, and put its output below it.

    python tools/readme.py            # writes the outputs into README.md
    python tools/readme.py --check    # runs the commands, writes nothing, and fails if an output differs

The commands run one after the other in an empty folder, 80 columns wide, offline. Two outputs count as the same if they
differ only in numbers, and in those by less than a twentieth. No two machines agree on a speed: show none, or end the
command with `# speeds vary`. Then the last number of each line is not compared, nor is anything from the line that
begins with "measured on".
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
    """Return the commands of a README and the lines that it shows below each, as they are printed."""
    outputs: list[tuple[str, list[str]]] = []
    shown: list[str] | None = None
    for line in text.splitlines():
        if line.startswith(f"{INDENT}$ stm "):
            shown = []
            outputs.append((line.removeprefix(f"{INDENT}$ "), shown))
        elif line.startswith(INDENT) and shown is not None:
            shown.append(line.removeprefix(INDENT))
        else:
            shown = None
    return outputs


def replaced(text: str, outputs: list[list[str]]) -> str:
    """Return the README with these lines below its commands."""
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
    """Return the lines that each command prints on stdout, run one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = []
        for command in wanted:
            words = [sys.executable, "-m", "stm_cli", *shlex.split(command, comments=True)[1:]]
            done = subprocess.run(
                words, cwd=folder, env=os.environ | SHOWN, stdout=subprocess.PIPE, text=True, check=True
            )
            # A blank line would end the block.
            outputs.append([line.rstrip() for line in done.stdout.splitlines() if line.strip()])
        return outputs


def same(shown: list[str], printed: list[str], speeds_vary: bool = False) -> bool:
    """Return whether two outputs agree up to last digits and, if speeds vary, up to speeds and the machine."""
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
    shown_outputs = commands(text)
    outputs = run([command for command, _ in shown_outputs])
    if not check:
        README.write_text(replaced(text, outputs), encoding="utf-8")
        return 0
    wrong = [
        (command, printed)
        for (command, shown), printed in zip(shown_outputs, outputs, strict=True)
        if not same(shown, printed, SPEEDS in command)
    ]
    for command, printed in wrong:
        print(f"README.md shows something else than {command}, which printed:", *printed, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
