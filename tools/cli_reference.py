"""The reference of the command line in Markdown, read from the parser itself, so that it cannot fall behind.

    python tools/cli_reference.py      # prints it

`mkdocs build` calls `on_page_markdown` of this file (mkdocs.yml, `hooks`), which puts the reference where docs/cli.md
has `PLACE`.
"""

import html
import sys
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from stm_cli.main import application

PLACE = "<!-- reference -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page's Markdown with the reference in its place, if the page has one. mkdocs calls this for every
    page."""
    return markdown.replace(PLACE, reference()) if PLACE in markdown else markdown


def reference() -> str:
    """Return every command with its arguments, options and examples, one second-level heading per command."""
    root: Any = get_command(application())  # a group, though typer's type is that of any command
    return "\n".join(line for name, command in root.commands.items() for line in _command(name, command))


def _command(name: str, command: Any) -> Iterator[str]:
    yield from (f"## stm {name}", "", _text(command.help or ""), "")
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    words = (argument.metavar if argument.required else f"[{argument.metavar}]" for argument in arguments)
    yield from (f"    stm {' '.join((name, *words))} [OPTIONS]", "")
    for panel, parameters in _panels(command.params).items():
        yield from (f"| {panel} | |", "| --- | --- |")
        yield from (f"| {_name(parameter)} | {_text(parameter.help or '')} |" for parameter in parameters)
        yield ""
    title, *lines = (command.epilog or "").splitlines()
    yield from (f"{title}", "", *(f"    {line.strip()}" for line in lines), "")


def _panels(parameters: list[Any]) -> dict[str, list[Any]]:
    """Return the parameters by the heading that the help screen gives them, in its order."""
    panels: dict[str, list[Any]] = {}
    for parameter in parameters:
        panel = getattr(parameter, "rich_help_panel", None) or (
            "Arguments" if parameter.param_type_name == "argument" else "Options"
        )
        panels.setdefault(panel, []).append(parameter)
    return panels


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar}`"
    names = " / ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    return f"{names} `{parameter.metavar}`" if parameter.metavar else names


def _text(text: str) -> str:
    """Return a help text as a cell of a Markdown table, with Markdown's own characters escaped."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")


if __name__ == "__main__":
    sys.stdout.write(reference() + "\n")
