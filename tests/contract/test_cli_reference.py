"""The page of the site that says what the command line takes: the parser's own words, all of them."""

import html
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.main import get_command

from stm_cli.main import application

ROOT = Path(__file__).resolve().parents[2]
COMMANDS: dict[str, Any] = get_command(application()).commands  # type: ignore[attr-defined]  # the root is a group


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """tools/cli_reference.py, loaded from its path as mkdocs loads a hook."""
    spec = importlib.util.spec_from_file_location("cli_reference", ROOT / "tools" / "cli_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def sections(tool: ModuleType) -> dict[str, str]:
    """The text below each command's heading."""
    parts = re.split(r"^## stm ([\w-]+)$", tool.reference(), flags=re.MULTILINE)
    assert parts[0] == ""
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_command_has_its_section_in_the_order_of_the_help(sections: dict[str, str]) -> None:
    assert list(sections) == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_section_has_every_parameter_once_with_its_help_and_the_examples(name: str, sections: dict[str, str]) -> None:
    rows = [line for line in sections[name].splitlines() if line.startswith("| `")]
    assert len(rows) == len(COMMANDS[name].params)
    for parameter in COMMANDS[name].params:
        names = (
            parameter.opts + parameter.secondary_opts if parameter.param_type_name == "option" else [parameter.metavar]
        )
        (row,) = (row for row in rows if all(f"`{each}`" in row for each in names) and row.split("`")[1] == names[0])
        assert parameter.help
        shown = html.unescape(re.sub(r"\\([|*_])", r"\1", row))
        assert " ".join(parameter.help.split()) in shown
        assert row.count("|") - row.count("\\|") == 3, "a help text must not open another cell"
    for example in COMMANDS[name].epilog.splitlines()[1:]:
        assert f"\n    {example.strip()}\n" in sections[name]


def test_the_page_has_a_place_for_it_and_no_other_page_changes(tool: ModuleType) -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    made = tool.on_page_markdown(page, page=None, config=None, files=None)
    assert tool.PLACE in page and tool.PLACE not in made
    assert made == page.replace(tool.PLACE, tool.reference())
    assert tool.on_page_markdown("# Speed\n", page=None, config=None, files=None) == "# Speed\n"
