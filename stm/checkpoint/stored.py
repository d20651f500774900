"""Read what stands beside a checkpoint's tensors: the trainer's settings, the file's name and the repository's name.

A ViM of hustvl/Vim and a VideoMamba of OpenGVLab/VideoMamba have the same tensors by the same names. Only settings and
names tell them apart. The name of a file's folder is not read: it tells where the file lies, not what the file is.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from stm.checkpoint import class_names
from stm.checkpoint.leaves import is_tensor, kind_of
from stm.config import Size, as_size

T = TypeVar("T")
Settings = Mapping[str, Any]

OWN = "the file's own arguments"
# Where trainers keep settings, the nearest first.
_HELD = (
    *("args", "config", "model_args", "pretrained_cfg", "default_cfg"),
    *("hyper_parameters", "hparams", "model_config", "cfg", "opt", "opts"),
)
_BUILDERS = ("model", "arch", "model_name", "architecture")
# Names of settings, in lower case: what has one is not left out.
READ = frozenset(
    (
        *_HELD,
        *_BUILDERS,
        *map(str.lower, class_names.KEYS),
        *("input_size", "img_size", "num_classes", "mean", "std", "crop_pct", "eval_crop_ratio", "interpolation"),
        *("crop_mode", "use_middle_cls_token", "if_divide_out", "meta", "metadata", "_metadata", "version"),
    )
)
_PIXELS = 10**5  # per side: a larger number in settings or a name is no image size


class Said(NamedTuple, Generic[T]):
    """A value and its source: `OWN`, or a name in words."""

    value: T
    by: str


class Reading(NamedTuple):
    """The two properties of a model that a name may tell; None if it does not."""

    class_token: str | None = None
    divide_out: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The caller's options, which win over all else; None if not given. As in `stm.load_checkpoint`."""

    image_size: Size | None = None
    class_token: str | None = None
    divide_out: bool | None = None
    backbone: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_ratio: float | None = None
    interpolation: str | None = None


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Everything that settings and names tell of a model; None or empty if they do not.

    Args:
        input_size, stride: from the settings.
        size_by_name: side of the input, from a name such as `..._res224to448`: the last number.
        class_token, divide_out: all values with their sources, the nearest source first. Two that differ are a
            question.
        mean, std, crop_ratio, interpolation, crop_mode: of the evaluation, from the settings.
        fixed: whether the trainer is DeiT's, as hustvl/Vim's and VideoMamba's are. It always uses ImageNet's mean and
            std and bicubic interpolation, and has a setting of its own for the ratio of the crop.
    """

    input_size: Size | None = None
    stride: int | None = None
    size_by_name: Said[int] | None = None
    class_token: tuple[Said[str], ...] = ()
    divide_out: tuple[Said[bool], ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_ratio: float | None = None
    interpolation: str | None = None
    crop_mode: str | None = None
    fixed: bool = False

    @classmethod
    def of(cls, document: Any, file: str, repo: str | None = None) -> "Stored":
        """Return what a checkpoint's document, its file's name and its repository's name tell.

        Settings are read as timm's and DeiT's trainers write them: at the top, or under `args`, `config`, `model_args`
        or `pretrained_cfg`. A value of another kind than expected is passed over, because a file may hold anything.

        Args:
            document: the object in the file; None if it holds nothing but tensors.
        """
        settings = list(_settings(document)) if isinstance(document, dict) else []
        builders = [name for each in settings for key in _BUILDERS if isinstance(name := each.get(key), str)]
        names = [(f"the file's name {file}", file), *([(f"the repository's name {repo}", repo)] if repo else [])]
        # The nearest source first: it is the one that messages name.
        readings = [(_reading(name, builder=True), OWN) for name in builders]
        readings += [(_switches(each), OWN) for each in settings]
        readings += [(_written(each), OWN) for each in settings]
        readings += [(_reading(name), by) for by, name in names]
        strides = [match[1] for name in builders if (match := re.search(r"stride([0-9]{1,4})(?![0-9])", name.lower()))]
        sizes = [Said(size, by) for by, name in names if (size := _size_in(name)) is not None]
        # DeiT's trainer and timm's name the ratio of the crop differently, which tells which of them wrote the file.
        deit = _first(settings, _number, "eval_crop_ratio")
        ratio = _first(settings, _number, "crop_pct")
        return cls(
            input_size=_first(settings, _size, "input_size", "img_size"),
            stride=int(strides[0]) if strides else None,
            size_by_name=sizes[0] if sizes else None,
            class_token=tuple(Said(each.class_token, by) for each, by in readings if each.class_token is not None),
            divide_out=tuple(Said(each.divide_out, by) for each, by in readings if each.divide_out is not None),
            mean=_first(settings, _numbers, "mean"),
            std=_first(settings, _numbers, "std"),
            crop_ratio=deit if ratio is None else ratio,
            interpolation=_first(settings, _interpolation, "interpolation"),
            crop_mode=_first(settings, _text, "crop_mode"),
            fixed=deit is not None and ratio is None,
        )


def _settings(document: Settings) -> Iterator[Settings]:
    """Yield every set of settings, then those one level down in them, then the top itself."""
    held = [settings for key in _HELD if (settings := _as_settings(document.get(key))) is not None]
    # The top comes last: beside the weights it may hold anything, such as the counters of a trainer.
    yield from held
    yield from (inner for outer in held for key in _HELD if (inner := _as_settings(outer.get(key))) is not None)
    yield document


def _as_settings(value: Any) -> Settings | None:
    value = vars(value) if isinstance(value, argparse.Namespace) else value
    return value if isinstance(value, dict) else None


def _first(settings: list[Settings], of: Any, *keys: str) -> Any:
    """Return the first value of its kind under one of the keys; `of` returns None for a value of another kind."""
    values = (of(each.get(key)) for each in settings for key in keys)
    return next((value for value in values if value is not None), None)


def _reading(name: str, *, builder: bool = False) -> Reading:
    """Return what a name tells of a model.

    The name of a builder (hustvl/Vim vim/models_mamba.py) tells both properties: `..._with_midclstok_div2` averages,
    and without div2 it adds. Names of weights are shorter. `vim_s_midclstok_80p5acc.pth` averages, as all weights of
    hustvl/Vim do. A VideoMamba has its class token at the head and adds (OpenGVLab/VideoMamba
    image_sm/models/videomamba.py).
    """
    text = re.sub(r"[^a-z0-9]+", "_", name.lower())  # names separate words by dots, dashes and slashes too
    if re.match(r"hustvl_vim(_|$)", text):
        return Reading("middle", True)
    video = re.search(r"video_?mamba", text) is not None
    middle = re.search(r"mid(dle)?_?(cls|class)_?tok", text) is not None
    token = re.search(r"(?<!no)(?<!no_)(cls|class)_?tok", text) is not None
    if not (video or token):  # without either, the other words may mean anything
        return Reading()
    if "div2" in text:
        divide: bool | None = True
    elif video or builder or "bimamba" in text:
        divide = False
    else:
        divide = True if middle else None
    return Reading("middle" if middle else "head", divide)


def _switches(settings: Settings) -> Reading:
    """Return the two properties from the arguments of hustvl/Vim's `VisionMamba`, if settings hold them."""
    middle, divide = settings.get("use_middle_cls_token"), settings.get("if_divide_out")
    token = None if not isinstance(middle, bool) else "middle" if middle else "head"
    return Reading(token, divide if isinstance(divide, bool) else None)


def _written(settings: Settings) -> Reading:
    """Return whether the directions are averaged, from mmcv's own text of its config, which stands under `meta`."""
    meta = settings.get("meta")
    text = meta.get("config") if isinstance(meta, dict) else None
    said = re.findall(r"\bif_divide_out\W{1,4}(True|False)\b", text) if isinstance(text, str) else []
    return Reading(None, said[0] == "True" if len({*said}) == 1 else None)


def _size_in(name: str) -> int | None:
    """Return the last size that a name gives, 448 of `..._res224to448`: the model was trained at it last."""
    sizes = re.search(r"(?:^|[^a-z0-9])res((?:[0-9]{2,5}to)*)([0-9]{2,5})(?![0-9])", name.lower())
    return int(sizes[2]) if sizes and int(sizes[2]) <= _PIXELS else None


def _number(value: Any) -> float | None:
    """Return a number as float; None for anything else, for a bool, and for what no float holds."""
    # Only a file that holds a number of numpy's imports numpy.
    generic: Any = getattr(sys.modules.get("numpy"), "generic", ())
    value = value.item() if isinstance(value, generic) else value
    return float(value) if type(value) in (int, float) and abs(value) <= sys.float_info.max else None


def _numbers(value: Any) -> tuple[float, ...] | None:
    """Return one number or several; None if any is not a number."""
    if is_tensor(value):
        # `tolist` raises for the others, such as sparse, nested and meta tensors.
        plain = kind_of(value) in ("float32 strided on cpu", "float64 strided on cpu")
        value = value.tolist() if plain and not value.is_nested else None
    numbers = [_number(item) for item in (value if isinstance(value, list | tuple) else (value,))]
    return tuple(number for number in numbers if number is not None) if numbers and None not in numbers else None


def _size(value: Any) -> Size | None:
    """Return the size of an image, given as N, (height, width), or timm's (channels, height, width)."""
    numbers = _numbers(value)
    # timm's `input_size` begins with the channels, so the last two numbers count.
    if not numbers or len(numbers) > 3 or not all(n.is_integer() and abs(n) <= _PIXELS for n in numbers[-2:]):
        return None
    return as_size(int(numbers[-2:][0]), int(numbers[-1]))


def _text(value: Any) -> str | None:
    """Return a word in lower case; None if the value is not one word."""
    return value.lower() if isinstance(value, str) and re.fullmatch(r"[\w.+-]{1,40}", value) else None


def _interpolation(value: Any) -> str | None:
    """Return an interpolation of the evaluation. timm's `random` is for training only, and so is no answer."""
    text = _text(value)
    return None if text in ("random", "none") else text
