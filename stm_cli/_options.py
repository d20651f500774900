"""Every option type, once: a command's signature is a list of these names.

Numbers and choices have parsers of their own, so that a bad value is named in the message. What a value means, and
whether it can be had for this model, is the library's to say.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from stm.config import CLASS_TOKENS, DTYPES, METHODS, MODES, ORDERS, SIDES, WEIGHTS

BUDGET, METHOD, CHECK, OUTPUT, SOURCE, MACHINE = "Budget (one of these)", "Method", "Check", "Output", "Source", "Machine"


def examples(*lines: str) -> str:
    """A help screen's epilog: commands that can be pasted."""
    return "\n".join(["Examples:", *(f"  {line}" for line in lines)])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number") from None


def _points(text: str) -> float:
    """Percentage points, as typed, to the fraction that the library takes."""
    points = _number(text)
    if not (math.isfinite(points) and 0 <= points <= 100):
        raise typer.BadParameter(f"{text!r} is not a number of percentage points, 0 to 100")
    return points / 100


def _whole(at_least: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        try:
            number = int(value)
        except ValueError:
            number = at_least - 1
        if number < at_least:
            raise typer.BadParameter(f"{str(value)!r} is not a whole number of at least {at_least}")
        return number

    return parse


def _blocks(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of block numbers such as 10,16") from None


def _one_of(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(allowed)}")
        return text

    return parse


def _option(name: str, panel: str, help: str, metavar: str = "", **more: Any) -> Any:
    """An option with its panel in the help; without a metavar it is a flag. Whether a path can be read is the library's to say."""
    return typer.Option(name, rich_help_panel=panel, help=help, metavar=metavar, show_default=False, readable=False, **more)


def _choice(name: str, panel: str, help: str, allowed: tuple[str, ...]) -> Any:
    choices = {"parser": _one_of(*allowed), "autocompletion": lambda: list(allowed)}
    return _option(name, panel, f"{', '.join(allowed[:-1])} or {allowed[-1]}: {help}", "NAME", **choices)


_MODEL = "An alias (vim-digits, vim-ti, vim-ti-plus, vim-s, vim-s-plus, vim-b), a checkpoint file, a folder or a Hub repository."
Model = Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL)]
OptionalModel = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL", help=f"{_MODEL} Without it: the folder here, else the only one below, else vim-digits.", show_default=False
    ),
]
Images = Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.", readable=False)]

Rate = Annotated[float | None, _option("--rate", BUDGET, "The paper's rate, above 0 and below 1. Default: 0.4.", "RATE", parser=_number)]
Saving = Annotated[float | None, _option("--saving", BUDGET, "Share of the token-layers to save.", "SHARE", parser=_number)]
Stages = Annotated[Sequence[int] | None, _option("--stages", BUDGET, "Merge all pairs before these blocks.", "BLOCK,...", parser=_blocks)]
Recipe = Annotated[Path | None, _option("--recipe", BUDGET, "Run the recipe of this model folder again.", "FOLDER")]

Method = Annotated[str | None, _choice("--method", METHOD, "the preset that the options below change. Default: stm.", METHODS)]
Schedule = Annotated[str | None, _choice("--schedule", METHOD, "the order of the merges.", ORDERS)]
Sides = Annotated[str | None, _choice("--sides", METHOD, "the sides of the class token that take part. Default: both.", SIDES)]
TokensPerSide = Annotated[
    int | None, _option("--tokens-per-side", METHOD, "Tokens merged per side and step (gradual orders).", "N", parser=_whole(1))
]
Weights = Annotated[str | None, _choice("--weights", METHOD, "how merged tokens are weighted.", WEIGHTS)]
Hsp = Annotated[str | None, _choice("--hsp", METHOD, "hsp weights from the running input, or baked.", MODES)]
Normalize = Annotated[bool, _option("--normalize", METHOD, "Divide hsp weights by their sum.")]
StepScale = Annotated[float | None, _option("--step-scale", METHOD, "p: a token of size s takes s^p times its step.", "P", parser=_number)]
SpanConv = Annotated[
    bool | None, _option("--span-conv/--plain-conv", METHOD, "Whether the conv sees a merged token as often as it is large.")
]
CalibrationImages = Annotated[Path | None, _option("--calibration", METHOD, "Bake static hsp weights from 64 of these images.", "DIR")]

Data = Annotated[
    Path | None,
    _option("--data", CHECK, "Labelled images: a folder a class, labels.csv, or ImageNet's validation folder. Default: embedded.", "DIR"),
]
Records = Annotated[Path | None, _option("--records", CHECK, "Write one line an image to this CSV file, and resume from it.", "FILE")]
Limit = Annotated[int | None, _option("--limit", CHECK, "Use only so many images, drawn by the seed.", "N", parser=_whole(1))]
BatchSize = Annotated[int, _option("--batch-size", CHECK, "Images a batch. Default: 32.", "N", parser=_whole(1))]
Seed = Annotated[int, _option("--seed", CHECK, "Chooses images. Default: 0.", "N", parser=_whole(0))]
OptionalSeed = Annotated[int | None, _option("--seed", CHECK, "Chooses images. Default: 0, or the recipe's.", "N", parser=_whole(0))]
MaxDrop = Annotated[
    float | None, _option("--max-drop", CHECK, "Write nothing and exit 3 if top-1 drops by more points.", "POINTS", parser=_points)
]
NoEval = Annotated[bool, _option("--no-eval", CHECK, "Do not compare with the dense model.")]

Out = Annotated[Path | None, _option("--out", OUTPUT, "The folder to write. Default: named after model, method and budget.", "DIR")]
Force = Annotated[bool, _option("--force", OUTPUT, "Replace a folder that stm wrote.")]
DryRun = Annotated[bool, _option("--dry-run", OUTPUT, "Show the schedule, files and bytes; write nothing.")]
Json = Annotated[bool, _option("--json", OUTPUT, "Print one JSON document.")]
Quiet = Annotated[bool, _option("--quiet", OUTPUT, "Print one value and no progress.")]

File = Annotated[str | None, _option("--file", SOURCE, "The file in a Hub repository.", "NAME")]
Revision = Annotated[str | None, _option("--revision", SOURCE, "Branch, tag or commit of a Hub repository.", "REV")]
Token = Annotated[str | None, _option("--token", SOURCE, "Hub token. Default: the one you logged in with.", "TOKEN")]
ImageSize = Annotated[
    int | None, _option("--image-size", SOURCE, "Side of the input in pixels, where the file does not say.", "PIXELS", parser=_whole(1))
]
ClassToken = Annotated[str | None, _choice("--class-token", SOURCE, "its place, where the file does not say.", CLASS_TOKENS)]
NoDivideOut = Annotated[bool, _option("--no-divide-out", SOURCE, "Add the two directions instead of averaging them.")]
Ema = Annotated[bool, _option("--ema", SOURCE, "Take the averaged weights (model_ema) of a checkpoint.")]

Device = Annotated[str, _option("--device", MACHINE, "auto, cpu, cuda, cuda:1, mps. Default: auto.", "DEVICE")]
Dtype = Annotated[str | None, _choice("--dtype", MACHINE, "the type of the matrix weights.", DTYPES)]
Backend = Annotated[str, _option("--backend", MACHINE, "A name that stm env lists. Default: auto.", "NAME")]
Workers = Annotated[int | None, _option("--workers", MACHINE, "Processes that decode images.", "N", parser=_whole(0))]
