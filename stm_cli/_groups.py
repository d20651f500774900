"""Groups of options that several commands share, and how a command takes them."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from typing import Any

from stm.options import MergeOptions, ModelOptions
from stm_cli._options import (
    Backend,
    ClassToken,
    CropRatio,
    Device,
    DivideOut,
    Dtype,
    Ema,
    File,
    Hsp,
    ImageSize,
    Interpolation,
    Json,
    Mean,
    Method,
    Normalize,
    Quiet,
    Rate,
    Revision,
    Saving,
    Schedule,
    Sides,
    SpanConv,
    Stages,
    Std,
    StepScale,
    Token,
    TokensPerSide,
    Weights,
)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much to merge, by which preset, in which order."""

    rate: Rate = None
    saving: Saving = None
    stages: Stages = None
    method: Method = None
    schedule: Schedule = None

    def options(self) -> MergeOptions:
        """As the library calls them."""
        return MergeOptions(**vars(self))


@dataclass(frozen=True, kw_only=True)
class Merging(Budget):
    """All that `stm.compress` takes: `stm.options.MergeOptions`, option by option."""

    sides: Sides = None
    tokens_per_side: TokensPerSide = None
    weights: Weights = None
    hsp: Hsp = None
    normalize: Normalize = False
    step_scale: StepScale = None
    span_conv: SpanConv = None


@dataclass(frozen=True, kw_only=True)
class Display:
    """How a report is shown."""

    json: Json = False
    quiet: Quiet = False


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a model comes from, and what its file cannot tell."""

    file: File = None
    revision: Revision = None
    token: Token = None
    image_size: ImageSize = None
    class_token: ClassToken = None
    divide_out: DivideOut = None
    ema: Ema = False
    mean: Mean = None
    std: Std = None
    crop_ratio: CropRatio = None
    interpolation: Interpolation = None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a model runs on."""

    device: Device = "auto"
    dtype: Dtype = None
    backend: Backend = "auto"


def model_options(source: Source, machine: Machine = Machine()) -> ModelOptions:
    """How to open a MODEL, as the library calls it."""
    return ModelOptions(**vars(source), **vars(machine))


def grouped(run: Callable[..., None]) -> Callable[..., None]:
    """A command some of whose parameters are groups: for typer, which reads signatures, each is the options that it
    holds."""
    signature = inspect.signature(run)
    groups: dict[str, Any] = {}
    flat: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if is_dataclass(parameter.annotation):
            groups[parameter.name] = parameter.annotation
            for option in fields(parameter.annotation):
                flat.append(
                    inspect.Parameter(option.name, parameter.kind, default=option.default, annotation=option.type)
                )
        else:
            flat.append(parameter)

    @wraps(run)
    def command(*args: Any, **options: Any) -> None:
        made = {
            name: group(**{option.name: options.pop(option.name) for option in fields(group)})
            for name, group in groups.items()
        }
        run(*args, **options, **made)

    command.__signature__ = signature.replace(parameters=flat)  # type: ignore[attr-defined]  # inspect's own protocol
    return command
