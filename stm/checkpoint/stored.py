"""What is said of a checkpoint beside its tensors: by the trainer's settings in it, by its file's name and by its
repository's.

A ViM of hustvl/Vim and a VideoMamba of OpenGVLab/VideoMamba have the same tensors by the same names; only this tells
them apart. The name of the folder that holds a file says where it lies, not what it is, and is not read.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")
Settings = Mapping[str, Any]

OWN = "the file's own arguments"
_HELD = (
    "args",
    "config",
    "model_args",
    "pretrained_cfg",
    "default_cfg",
)  # where trainers keep settings, the nearest first
_BUILDERS = ("model", "arch", "model_name", "architecture")
_PIXELS = 10**5  # of a side, the most that is believed


class Said(NamedTuple, Generic[T]):
    """A value, and who says so: `OWN`, or a name in words."""

    value: T
    by: str


class Reading(NamedTuple):
    """What a name says of a model; None where it says nothing."""

    class_token: str | None = None
    divide_out: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the caller says, which wins over all else; None where nothing. As in `stm.load_checkpoint`."""

    image_size: int | None = None
    class_token: str | None = None
    divide_out: bool | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_ratio: float | None = None
    interpolation: str | None = None


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What is said beside the tensors; None or nothing where nothing is.

    Args:
        input_size, stride: by the settings.
        size_by_name: side of the input, by a name such as `..._res224to448`: the last one.
        class_token, divide_out: everything that is said, the nearest first: two that differ are a question.
        mean, std, crop_ratio, interpolation, crop_mode: of the evaluation, by the settings.
        fixed: whether the trainer is DeiT's, as hustvl/Vim's and VideoMamba's: ImageNet's mean and std, bicubic, a crop
            of its own ratio.
    """

    input_size: int | None = None
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
        """From a checkpoint's document (None: it holds nothing but tensors), its file's name and its repository's.

        Settings are read as timm's and DeiT's trainers write them: at the top or under `args`, `config`, `model_args`,
        `pretrained_cfg`. What is not of its kind is passed over.
        """
        settings = list(_settings(document)) if isinstance(document, dict) else []
        builders = [name for each in settings for key in _BUILDERS if isinstance(name := each.get(key), str)]
        names = [(f"the file's name {file}", file), *([(f"the repository's name {repo}", repo)] if repo else [])]
        readings = [(_reading(name, builder=True), OWN) for name in builders]
        readings += [(_switches(each), OWN) for each in settings]
        readings += [(_reading(name), by) for by, name in names]
        strides = [found[1] for name in builders if (found := re.search(r"stride(\d{1,4})(?!\d)", name.lower()))]
        sizes = [Said(size, by) for by, name in names if (size := _size_in(name)) is not None]
        deit = _first(settings, _number, "eval_crop_ratio")
        ratio = _first(settings, _number, "crop_pct")
        return cls(
            input_size=_first(settings, _side, "input_size", "img_size"),
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
    """Every set of settings, then those one level down in them, then the top itself."""
    held = [found for key in _HELD if (found := _as_settings(document.get(key))) is not None]
    yield from held
    yield from (inner for each in held for key in _HELD if (inner := _as_settings(each.get(key))) is not None)
    yield document


def _as_settings(value: Any) -> Settings | None:
    value = vars(value) if isinstance(value, argparse.Namespace) else value
    return value if isinstance(value, dict) else None


def _first(settings: list[Settings], of: Any, *keys: str) -> Any:
    """The first value of its kind under one of the keys."""
    return next((found for each in settings for key in keys if (found := of(each.get(key))) is not None), None)


def _reading(name: str, *, builder: bool = False) -> Reading:
    """What a name tells. A builder's (hustvl/Vim vim/models_mamba.py) says all: `..._with_midclstok_div2` averages,
    without div2 it adds.

    Names of weights are shorter. `vim_s_midclstok_80p5acc.pth` averages as all of hustvl/Vim's weights do; a VideoMamba
    has its class token at the head and adds (OpenGVLab/VideoMamba image_sm/models/videomamba.py).
    """
    text = re.sub(r"[^a-z0-9]+", "_", name.lower())
    if re.match(r"hustvl_vim(_|$)", text):
        return Reading("middle", True)
    video = re.search(r"video_?mamba", text) is not None
    middle = re.search(r"mid(dle)?_?(cls|class)_?tok", text) is not None
    token = re.search(r"(?<!no)(?<!no_)(cls|class)_?tok", text) is not None
    if not (video or token):
        return Reading()
    if "div2" in text:
        divide: bool | None = True
    elif video or builder or "bimamba" in text:
        divide = False
    else:
        divide = True if middle else None
    return Reading("middle" if middle else "head", divide)


def _switches(settings: Settings) -> Reading:
    """The two arguments of hustvl/Vim's `VisionMamba` where settings hold them."""
    middle, divide = settings.get("use_middle_cls_token"), settings.get("if_divide_out")
    token = None if not isinstance(middle, bool) else "middle" if middle else "head"
    return Reading(token, divide if isinstance(divide, bool) else None)


def _size_in(name: str) -> int | None:
    """448 of `..._res224to448`: the size that it was trained at last."""
    found = re.search(r"(?:^|[^a-z0-9])res((?:\d{2,5}to)*)(\d{2,5})(?![0-9])", name.lower())
    return int(found[2]) if found and int(found[2]) <= _PIXELS else None


def _number(value: Any) -> float | None:
    value = value.item() if isinstance(value, np.generic) else value
    return float(value) if type(value) in (int, float) and abs(value) <= sys.float_info.max else None


def _numbers(value: Any) -> tuple[float, ...] | None:
    """One number or several."""
    if isinstance(value, Tensor):
        plain = (
            value.layout == torch.strided
            and value.device.type == "cpu"
            and value.dtype in (torch.float32, torch.float64)
        )
        value = value.tolist() if plain and not value.is_nested else None
    found = [_number(each) for each in (value if isinstance(value, list | tuple) else (value,))]
    return tuple(each for each in found if each is not None) if found and None not in found else None


def _side(value: Any) -> int | None:
    """The side of a square: N, (N, N), or timm's (channels, N, N)."""
    numbers = _numbers(value)
    if numbers is None or len(numbers) > 3 or len(set(numbers[-2:])) != 1:
        return None
    return int(numbers[-1]) if numbers[-1].is_integer() and abs(numbers[-1]) <= _PIXELS else None


def _text(value: Any) -> str | None:
    """A word in lower case."""
    return value.lower() if isinstance(value, str) and re.fullmatch(r"[\w.+-]{1,40}", value) else None


def _interpolation(value: Any) -> str | None:
    """timm's `random` is of training alone."""
    text = _text(value)
    return None if text in ("random", "none") else text
