"""Groups of options that several commands share, and the decorator by which a command takes them.

A group is a dataclass whose fields are options of `stm_cli._options`. A command names the group once, and the help
screen shows every option of it.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from typing import Any

from stm.distributed import current_world
from stm.options import FitOptions, MergeOptions, ModelOptions
from stm_cli._options import (
    Backbone,
    Backend,
    ClassToken,
    CropRatio,
    Device,
    DivideOut,
    Dtype,
    Ema,
    File,
    FitImages,
    FitOn,
    Hsp,
    ImageColumn,
    ImageSize,
    Interpolation,
    Json,
    LabelColumn,
    Labels,
    Mean,
    Method,
    NoCache,
    Normalize,
    Quiet,
    Rate,
    Revision,
    Saving,
    Schedule,
    Sides,
    SpanConv,
    Split,
    Stages,
    Std,
    StepScale,
    TableFormat,
    Token,
    TokensPerSide,
    Weights,
    WeightsKey,
)
from stm_cli._output import starting


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The amount of merging, its preset and its order."""

    rate: Rate = None
    saving: Saving = None
    stages: Stages = None
    method: Method = None
    schedule: Schedule = None

    def options(self) -> MergeOptions:
        """Return the library's group of these options."""
        return MergeOptions(**vars(self))


@dataclass(frozen=True, kw_only=True)
class Merging(Budget):
    """All options of `stm.options.MergeOptions`."""

    sides: Sides = None
    tokens_per_side: TokensPerSide = None
    weights: Weights = None
    hsp: Hsp = None
    normalize: Normalize = False
    step_scale: StepScale = None
    span_conv: SpanConv = None


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """The images that decide a fitted schedule: `stm.options.FitOptions`, option by option."""

    fit_on: FitOn = None
    fit_images: FitImages = None
    no_cache: NoCache = False

    def options(self) -> FitOptions:
        """Return the library's group of these options."""
        return FitOptions(**vars(self))


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a sample set is read: `stm.options.SetOptions`, option by option."""

    split: Split = None
    image_column: ImageColumn = None
    label_column: LabelColumn = None


@dataclass(frozen=True, kw_only=True)
class Display:
    """How a report is shown."""

    json: Json = False
    quiet: Quiet = False


@dataclass(frozen=True, kw_only=True)
class TableDisplay(Display):
    """How a report is shown whose table can be pasted."""

    format: TableFormat = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """The origin of a model, and the facts that its file cannot tell."""

    file: File = None
    revision: Revision = None
    token: Token = None
    image_size: ImageSize = None
    class_token: ClassToken = None
    divide_out: DivideOut = None
    backbone: Backbone = False
    ema: Ema = False
    weights_key: WeightsKey = None
    mean: Mean = None
    std: Std = None
    crop_ratio: CropRatio = None
    interpolation: Interpolation = None
    labels: Labels = None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The device, dtype and backend of a model."""

    device: Device = "auto"
    dtype: Dtype = None
    backend: Backend = "auto"


def model_options(source: Source, machine: Machine = Machine()) -> ModelOptions:
    """Return the library's group of the options that open a MODEL."""
    # The fields of both groups bear the library's names, so a name that the library lacks fails at once.
    return ModelOptions(**vars(source), **vars(machine))


_BRIEF = ("models", "info")  # the commands without torch: a sign would only flash


def grouped(run: Callable[..., None]) -> Callable[..., None]:
    """Return a command whose groups are spread into their options, as typer needs them.

    Typer makes options of the parameters in a function's signature, and knows no groups. So the command that typer sees
    has one parameter per option. When it runs, it builds each group of its options and calls `run`.
    """
    signature = inspect.signature(run)
    groups: dict[str, Any] = {}
    flat: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if is_dataclass(parameter.annotation):
            groups[parameter.name] = parameter.annotation
            # The help screen keeps the order of the parameters, so the options stand where their group stood.
            for option in fields(parameter.annotation):
                flat.append(
                    inspect.Parameter(option.name, parameter.kind, default=option.default, annotation=option.type)
                )
        else:
            flat.append(parameter)

    # `wraps` keeps the name and the docstring, which are the command's name and its help.
    @wraps(run)
    def command(*args: Any, **options: Any) -> None:
        made = {
            name: group(**{option.name: options.pop(option.name) for option in fields(group)})
            for name, group in groups.items()
        }
        display = made.get("display")
        brief = run.__module__.rpartition(".")[2] in _BRIEF
        with starting(quiet=display is None or display.quiet or not current_world().first, brief=brief):
            run(*args, **options, **made)

    command.__signature__ = signature.replace(parameters=flat)  # type: ignore[attr-defined]  # inspect's own protocol
    return command
