"""What the README tells people to type."""

import ast
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from stm.assets import FOLDER
from stm_cli.main import application

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = [
    block.replace("\n    ", "\n")[4:] for block in re.findall(r"(?:(?<=\n\n)) {4}\S.*\n(?:(?: {4}.*)?\n)*", README)
]


@pytest.mark.slow
def test_its_python_runs_in_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, with_transformers = (block for block in BLOCKS if block.startswith("import stm"))
    monkeypatch.chdir(tmp_path)
    exec(ours, {})
    assert capsys.readouterr().out.startswith("EvalReport(data='digits-heldout', n=32")
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    pytest.importorskip("transformers", reason="transformers is not installed: extra transformers")
    Path("small").rename("vim-digits-stm40")
    shutil.copy(FOLDER / "photographs" / "chelsea.jpg", "photo.jpg")
    *statements, call = ast.parse(with_transformers).body
    names: dict[str, Any] = {}
    exec(compile(ast.Module(statements, []), "README.md", "exec"), names)
    answer = eval(compile(ast.Expression(call.value), "README.md", "eval"), names)  # type: ignore[attr-defined]
    assert len(answer) == 5 and {"label", "score"} == set(answer[0])


def test_its_commands_take_the_options_that_it_gives_them() -> None:
    typed = [block for block in BLOCKS if not block.startswith("$ ")]  # the others show outputs
    commands = [line for block in typed for line in block.splitlines() if line.startswith("stm ")]
    assert len(commands) >= 6
    for line in commands:
        _, name, *words = shlex.split(line, comments=True)
        command = get_command(application()).commands[name]
        command.make_context(name, words)  # raises for what it does not know


def test_the_commands_that_fill_the_papers_rows_can_be_typed() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "paper.md").read_text(encoding="utf-8")
    commands = re.findall(r"`stm (\w+) ([^`]+)`", text)
    assert len(commands) >= 15
    proxy = re.search(r"`PROXY` below is `([^`]+)`", text)
    assert proxy is not None
    for name, words in commands:
        get_command(application()).commands[name].make_context(name, shlex.split(words.replace("PROXY", proxy[1])))
