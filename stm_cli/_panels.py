"""How an option is declared: its panel of the help screen, its metavar, and the words of a choice."""

from typing import Any

import typer

from stm_cli._parsers import _one_of

# Panels of the help screen. The order of a command's options decides the order of its panels.
BUDGET, METHOD, FIT, CHECK, OUTPUT, SOURCE, MACHINE = (
    "Budget (one of these)",
    "Method",
    "Fit (the images that decide a fitted schedule; labels are not needed)",
    "Check",
    "Output",
    "Source",
    "Machine",
)
AXES = "Axes (every combination is a cell)"
HUB = "Hub"
TIMING = "Timing"


def examples(*lines: str) -> str:
    """Return the epilog of a help screen: commands that can be pasted."""
    return "\n".join(["Examples:", *(f"  {line}" for line in lines)])


def option(name: str, panel: str, help: str, metavar: str = "", **more: Any) -> Any:
    """Return an option with its panel in the help; without a metavar it is a flag."""
    # Defaults stand in the help texts, as people would write them. `readable=False` leaves it to the library to say
    # whether a path can be read, in a sentence that also tells the next step.
    return typer.Option(
        name, rich_help_panel=panel, help=help, metavar=metavar, show_default=False, readable=False, **more
    )


def choice(name: str, panel: str, help: str, allowed: tuple[str, ...]) -> Any:
    # A parser and no `Enum`: the value stays a plain string, and the message lists what is allowed.
    choices = {"parser": _one_of(*allowed), "autocompletion": lambda: list(allowed)}
    either = " or ".join(part for part in (", ".join(allowed[:-1]), allowed[-1]) if part)
    return option(name, panel, f"{either}: {help}", "NAME", **choices)
