"""The options that Python and the command line share: each is declared once, with its default, and printed as it is
typed.

Groups are frozen dataclasses that travel whole from the command line to the function that uses them, so that a
misspelled option is a type error. `words` turns any of them into the words of a command that does the same again.
"""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stm.config import Protection, Size, as_size
from stm.errors import UsageError, check_choice
from stm.recipe import PRESET_NAMES

# How a checkpoint is read: what its tensors do not tell of the shape; which weights are taken, and how images are made
# into inputs.
_SHAPE_OPTIONS = ("image_size", "class_token", "divide_out", "backbone")
WEIGHTS_OPTIONS = ("ema", "weights_key", "mean", "std", "crop_ratio", "interpolation")
CHECKPOINT_OPTIONS = (*_SHAPE_OPTIONS, *WEIGHTS_OPTIONS)
FILE_OPTIONS = tuple(name for name in CHECKPOINT_OPTIONS if name != "image_size")  # a dense folder takes a size too
_EITHER = {"divide_out": ("--divide-out", "--no-divide-out"), "span_conv": ("--span-conv", "--plain-conv")}


def flag(name: str, value: Any) -> str:
    """Return the word of an option by the library's name, such as `--no-divide-out` for `divide_out` and False."""
    return _EITHER[name][value is False] if name in _EITHER else f"--{name.replace('_', '-')}"


def as_typed(name: str, value: Any) -> str:
    """Return the value of an option as it is typed: several numbers with commas, height and width with an x."""
    joint = "x" if name == "image_size" else ","
    return joint.join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def words(options: Mapping[str, Any]) -> list[str]:
    """Return options by the library's names as the command line takes them; None stands for no option.

    A token is a secret, and never among them.
    """
    out = []
    for name, value in options.items():
        if name == "token" or value is None or (value is False and name not in _EITHER):
            continue
        if name == "labels" and not isinstance(value, str | Path):  # names in memory, which no command line has
            continue
        word = flag(name, value)
        if isinstance(value, bool):
            out.append(word)
            continue
        text = as_typed(name, value)
        out += [f"{word}={text}"] if text.startswith("-") else [word, text]  # else the value would be an option
    return out


def command(verb: str, model: str, options: Mapping[str, Any]) -> str:
    """Return a command on a model as one line for a shell."""
    return shlex.join(["stm", verb, model, *words(options)])


class _Group:
    """What every group of options can do."""

    def given(self, name: str) -> bool:
        """Return whether an option differs from its default."""
        return bool(getattr(self, name) != getattr(type(self), name))

    def words(self) -> list[str]:
        """Return the options that were given, as the command line takes them; a token is not repeated."""
        # every group is a dataclass
        names = (field.name for field in dataclasses.fields(self))  # type: ignore[arg-type]
        return words({name: getattr(self, name) for name in names if self.given(name)})


@dataclass(frozen=True, kw_only=True)
class ModelOptions(_Group):
    """How to open a MODEL: the options that every command with a MODEL has.

    Args:
        file, revision, token: of a Hub repository.
        image_size, class_token, divide_out, backbone, ema, weights_key, mean, std, crop_ratio, interpolation: of a
            checkpoint; see `stm.load_checkpoint`.
        labels: the names of the classes, or a file that has them; see `stm.data.class_names.given_names`.
        device, dtype, backend: see `stm.load`.
    """

    file: str | None = None
    revision: str | None = None
    token: str | None = None
    image_size: Size | None = None
    class_token: str | None = None
    divide_out: bool | None = None
    backbone: bool = False
    ema: bool = False
    weights_key: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_ratio: float | None = None
    interpolation: str | None = None
    labels: str | Path | Sequence[str] | Mapping[Any, Any] | None = None
    device: str = "auto"
    dtype: str | None = None
    backend: str = "auto"

    @staticmethod
    def per_channel(values: "float | Sequence[float] | None") -> tuple[float, ...] | None:
        """Return a number, or one per channel, as `mean` and `std` hold them: one alone stands for every channel."""
        return values if values is None else (values,) if isinstance(values, int | float) else tuple(values)

    @staticmethod
    def size(value: Any) -> Size | None:
        """Return an image size as `image_size` holds it, given as a number, or as a pair of height and width.

        Raises:
            UsageError: it is neither.
        """
        numbers = tuple(value) if isinstance(value, list | tuple) else (value,)
        if value is None:
            return None
        if len(numbers) not in (1, 2) or not all(type(number) is int for number in numbers):  # a bool is no number
            raise UsageError(f"image_size is {value!r}, expected a number of pixels, or (height, width)")
        return as_size(numbers[0], numbers[-1])

    @property
    def checkpoint(self) -> dict[str, Any]:
        """The options of a checkpoint that were given, by name."""
        return {name: getattr(self, name) for name in CHECKPOINT_OPTIONS if self.given(name)}

    def refuse(self, model: str, what: str, *names: str) -> None:
        """Raise UsageError for an option among `names` that was given but that this MODEL does not take.

        Args:
            what: the MODEL is, for the sentence. No option is ignored without a word.
        """
        for name in names:
            if self.given(name):
                word = flag(name, getattr(self, name))
                raise UsageError(f"{word} was given, but {model} is {what}, which does not take it")


@dataclass(frozen=True, kw_only=True)
class MergeOptions(_Group):
    """What to merge, and how; see `stm.compress` for each. None: the preset of `method` decides, and that is "stm".

    At most one of `rate`, `saving` and `stages` is the budget.
    """

    rate: float | None = None
    saving: float | None = None
    stages: Sequence[int] | None = None
    method: str | None = None
    schedule: str | None = None
    sides: str | None = None
    tokens_per_side: int | None = None
    weights: str | None = None
    hsp: str | None = None
    normalize: bool = False
    step_scale: float | None = None
    span_conv: bool | None = None

    @property
    def preset(self) -> "MergeOptions":
        """The preset that decides what is left open.

        Raises:
            UsageError: a method that has none.
        """
        method = self.method or "stm"
        check_choice("method", method, PRESETS)
        return PRESETS[method]

    @property
    def order(self) -> str:
        """The order of the merges: what was asked for, else what the preset says.

        Stages alone ask for `staged`: no other order has them, and there is nothing left to fit.
        """
        order = self.schedule or self.preset.schedule
        assert order is not None  # a preset says it
        return "staged" if self.stages is not None and self.schedule is None and order == "fitted" else order

    @property
    def protection(self) -> Protection:
        """How merged tokens are weighted and treated: what was asked for, else what the preset says.

        Raises:
            UsageError: options that exclude each other, or a value that is none.
        """
        preset = self.preset
        rule = self.weights or preset.weights
        if rule != "hsp" and (self.hsp is not None or self.normalize):
            problem = f"{'hsp' if self.hsp else 'normalize'} needs the weights hsp, not {rule}"
            raise UsageError(problem, "add --weights hsp")
        scale = preset.step_scale if self.step_scale is None else self.step_scale
        spans = preset.span_conv if self.span_conv is None else self.span_conv
        assert rule is not None and scale is not None and spans is not None  # a preset leaves none of them open
        try:
            return Protection(
                weights=rule,
                mode=(self.hsp or "dynamic") if rule == "hsp" else "static",
                normalized=self.normalize,
                step_scale=float(scale),
                span_conv=spans,
            )
        except (TypeError, ValueError) as error:
            raise UsageError(str(error)) from error

    def check_fitted(self, name: str) -> None:
        """Raise UsageError if the option `name`, which belongs to a fitted schedule, stands beside another one."""
        if self.order != "fitted":
            raise UsageError(
                f"{name} was given, but the schedule {self.order} looks at no image",
                "leave it out, or choose the schedule fitted",
            )

    def refuse(self, why: str, hint: str) -> None:
        """Raise UsageError if any option was given, by the name of the first one.

        Args:
            why: completes the sentence "NAME was given".
        """
        for field in dataclasses.fields(self):
            if self.given(field.name):
                raise UsageError(f"{field.name} was given{why}", hint)


PRESETS: dict[str, MergeOptions] = {
    name: MergeOptions(method=name, sides="both", schedule=order, weights=rule, step_scale=scale, span_conv=spans)
    for name, order, rule, scale, spans in (
        ("stm", "fitted", "size", 0.5, True),
        ("staged", "staged", "size", 0.5, True),
        ("paper", "border", "hsp", 0.0, False),
    )
}
assert tuple(PRESETS) == PRESET_NAMES  # config.json accepts exactly these


@dataclass(frozen=True, kw_only=True)
class FitOptions(_Group):
    """Which images a fitted schedule comes from. They are never measured on.

    Args:
        fit_on: a folder of images, labelled or not, shards, or a set on the Hub; None: a part of the images to measure
            on if those are enough, else pictures that need no data (`stm.data.pictures`).
        fit_images: how many of them the costs come from; None: what `stm.data.fit_images` says.
        no_cache: compute the costs even if an earlier run has kept them.
    """

    fit_on: str | Path | None = None
    fit_images: int | None = None
    no_cache: bool = False

    @property
    def images_given(self) -> tuple[str, ...]:
        """The names of the options that were given about the images, which only a fitted schedule has."""
        return tuple(name for name in ("fit_on", "fit_images") if self.given(name))


@dataclass(frozen=True, kw_only=True)
class SetOptions(_Group):
    """How a sample set is read.

    Args:
        split: the part of a set that has several: a folder such as val, or a split of a set on the Hub.
        image_column, label_column: of a table of labels or of parquet; None: those that look like it.
    """

    split: str | None = None
    image_column: str | None = None
    label_column: str | None = None

    def refuse_reading(self, why: str, hint: str) -> None:
        """Raise UsageError if any of these options was given, by the name of the first one.

        Args:
            why: completes the sentence "--NAME was given".
        """
        for field in dataclasses.fields(SetOptions):
            if getattr(self, field.name) is not None:
                raise UsageError(f"{flag(field.name, None)} was given{why}", hint)


@dataclass(frozen=True, kw_only=True)
class EvalOptions(SetOptions):
    """Which images to measure on, and with how much effort.

    Args:
        data: a folder of images, shards, or a set on the Hub; see `stm.data.open.open_samples`. None: what is embedded.
        limit: use so many images, drawn by the seed; None: all.
        batch_size: images per forward; no result depends on it.
        seed: draws images. None: 0, or what a recipe says.
        workers: processes that decode images; None: as many as help.
    """

    data: str | Path | None = None
    limit: int | None = None
    batch_size: int = 32
    seed: int | None = None
    workers: int | None = None

    @property
    def draws_by(self) -> int:
        """The seed that images are drawn by."""
        return 0 if self.seed is None else self.seed

    def shared(self, *others: str | Path | None) -> tuple["EvalOptions", SetOptions]:
        """Return the options of the set to measure on, and how `others` are read: images to fit on, or to calibrate by.

        The options that say how a set is read belong to the set to measure on, if one is named, else to the others.
        """
        if self.data is not None or all(other is None for other in others):
            return self, SetOptions()
        how = SetOptions(**{field.name: getattr(self, field.name) for field in dataclasses.fields(SetOptions)})
        return dataclasses.replace(self, **vars(SetOptions())), how
