"""The root command, with all commands in the order in which a user meets them."""

import io
import os
import sys
from importlib import import_module
from typing import Annotated

import typer
from typer.main import get_command

import stm
from stm.distributed import current_world
from stm.errors import UsageError
from stm.model.malloc import keep_freed
from stm_cli import _errors
from stm_cli._panels import examples
from stm_cli._visible import tame_libraries

# In the order of use.
PANELS = {
    "Choose and compress": ("models", "plan", "compress"),
    "Use and check the result": ("eval", "predict", "info", "bench"),
    "Compare and explain": ("compare", "sweep", "explain"),
    "Hand it on": ("report", "push", "export"),
    "This machine": ("env",),
}
COMMANDS = tuple(name for names in PANELS.values() for name in names)


def application(*names: str) -> typer.Typer:
    """Return the root command with these commands; without names, with all.

    A command that is run needs no other one. Their modules, with the reports that they draw, take a tenth of a second.
    """
    app = typer.Typer(
        name="stm",
        help="Make Vision Mamba (ViM) models faster without training, by Sequential Token Merging.",
        epilog=examples(
            "stm models",
            "stm compress vim-digits --rate 0.4    # embedded model, no network needed",
            "stm eval vim-digits-stm40",
            "stm predict vim-digits-stm40 photo.jpg",
        ),
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(root)
    for panel, members in PANELS.items():
        for name in members:
            if name in (names or COMMANDS):
                module = import_module(f"stm_cli.{name}")
                app.command(name, epilog=examples(*module.EXAMPLES), rich_help_panel=panel)(module.run)
    return app


SHARED = ("eval", "compare", "sweep")  # the commands whose images several processes share


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"stm {stm.__version__}")
        raise typer.Exit


def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, metavar="", help="Show the version and exit.")
    ] = False,
) -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UsageError("the current folder does not exist any more", "change to one that does") from None
    world = current_world()
    if world.size > 1 and context.invoked_subcommand not in SHARED:
        if not world.first:
            raise typer.Exit  # the first process reports the error for all
        message = f"stm {context.invoked_subcommand} runs in one process, and this is one of {world.size}"
        raise UsageError(message, f"run it without torchrun; several processes share {', '.join(SHARED)}")


def main() -> None:
    """Run the console script. `stm` alone shows the help, and every failure passes the one table of `_errors`."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the process lives
    # OpenMP's threads spin while they wait. By default they spin so long that, on a machine that others use too, they
    # take the processors from threads that work. This number makes it a few microseconds: harmless there, and on a
    # quiet machine enough to spare most threads the waking up. The variable is read when torch is imported.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    keep_freed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the locale cannot write is no reason to fail
    tame_libraries()
    if not current_world().first:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - only the first of several processes prints
    words = sys.argv[1:] or ["help"]
    if words[0] == "help":  # as in git: `stm help compress`
        words = [*words[1:], "--help"]
    app = application(*{words[0]}.intersection(COMMANDS))
    sys.exit(_errors.guard(lambda: get_command(app).main(words, prog_name="stm", standalone_mode=False)))
