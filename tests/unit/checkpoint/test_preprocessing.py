"""How images become input: as asked, as a trainer's settings say, or as hustvl/Vim does; and what is said of it."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stm
from stm.config import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from stm.errors import CheckpointError, UsageError
from tests.unit.checkpoint.cases import MINI, OFFICIAL, State, read, save

HALVES = (0.5, 0.5, 0.5)
TIMM = {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9, "interpolation": "bilinear"}


def stored(state: State, path: Path, where: str | None = "args", **settings: Any) -> Path:
    base: dict[str, Any] = {"state_dict": state, "arch": OFFICIAL, "input_size": 64}
    return save(path, base | settings if where is None else base | {where: settings})


@pytest.mark.parametrize("where", [None, "args", "config", "model_args", "pretrained_cfg", "default_cfg"])
@pytest.mark.parametrize("kind", [dict, argparse.Namespace])
def test_timms_fields_are_read(state: State, tmp_path: Path, where: str | None, kind: Any) -> None:
    settings = TIMM if where is None else {where: kind(**TIMM)}
    path = save(tmp_path / "x.pth", {"state_dict": state, "arch": OFFICIAL, "input_size": 64, **settings})
    got = read(path)
    assert got.preprocessing == Preprocess(
        resize=71, crop=64, interpolation="bilinear", mean=HALVES, std=HALVES
    )  # floor(64 / 0.9)
    (note,) = [note for note in got.notes if "preprocessing" in note]
    assert (
        note
        == "preprocessing by the file's own arguments: mean 0.5, 0.5, 0.5, std 0.5, 0.5, 0.5, crop ratio 0.9, bilinear"
    )


@pytest.mark.parametrize(
    ("size", "said"),
    [([3, 64, 64], 64), ((64, 64), 64), (64, 64), ((3, 70, 70), 70), (np.int64(64), 64)],
)
@pytest.mark.parametrize("key", ["input_size", "img_size"])
def test_sizes_as_timm_writes_them(state: State, tmp_path: Path, size: Any, said: int, key: str) -> None:
    content = {"state_dict": state, "arch": OFFICIAL, "args": argparse.Namespace(**{"input_size": None} | {key: size})}
    assert read(save(tmp_path / "x.pth", content)).model.image_size == said


@pytest.mark.parametrize("size", ["64x64", [], [1, 3, 64, 64], True, [3, None, None], 64.5, 10**400, 10**40])
def test_sizes_of_no_kind_say_nothing(state: State, tmp_path: Path, size: Any) -> None:
    got = read(save(tmp_path / "x.pth", {"state_dict": state, "arch": OFFICIAL, "args": {"input_size": size}}))
    assert got.model.image_size == 64 and "image size 64 is assumed: edge to edge" in got.notes[0]


def test_a_size_that_is_no_square(state: State, tmp_path: Path) -> None:
    content: dict[str, Any] = {"state_dict": state, "arch": OFFICIAL, "args": {"input_size": [3, 32, 128]}}
    assert read(save(tmp_path / "x.pth", content)).model.grid == (2, 8)
    content["args"] = {"input_size": [3, 64, 32]}
    with pytest.raises(CheckpointError, match="say input_size 64x32, but it holds 4 x 4 patches of 16 pixels"):
        read(save(tmp_path / "x.pth", content))


@pytest.mark.parametrize(
    "settings",
    [
        {"mean": None, "std": None, "crop_pct": None, "interpolation": None},
        {"mean": "imagenet", "std": [None], "crop_pct": "0.9", "interpolation": 3},
        {"mean": [], "std": [float("nan")] * 3, "crop_pct": float("inf"), "interpolation": "random"},
        {"mean": torch.zeros(3, device="meta"), "std": 10**400, "crop_pct": 10**400, "interpolation": "two\nlines"},
        {"mean": {}, "std": True, "crop_pct": True, "interpolation": ""},
    ],
)
def test_what_says_nothing_is_passed_over_and_what_is_taken_instead_is_told(
    state: State, tmp_path: Path, settings: dict[str, Any]
) -> None:
    got = read(stored(state, tmp_path / "x.pth", **settings))
    assert got.preprocessing == Preprocess(resize=73, crop=64)
    assert (
        "no word on the preprocessing, hence as in hustvl/Vim: ImageNet's mean and std, crop ratio 0.875, bicubic"
        in got.notes
    )


@pytest.mark.parametrize("ratio", [1.5, 0.0, -1.0, 0.001, 224])
def test_a_ratio_that_cannot_be(state: State, tmp_path: Path, ratio: float) -> None:
    got = read(stored(state, tmp_path / "x.pth", crop_pct=ratio))
    assert got.preprocessing.resize == 73
    assert any(f"crop ratio is {ratio:g}, which cannot be: 0.875 is taken" in note for note in got.notes)


def test_part_of_it(state: State, tmp_path: Path) -> None:
    got = read(
        stored(
            state,
            tmp_path / "x.pth",
            mean=torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64),
            crop_pct=1.0,
            std=np.float64(0.25),
        )
    )
    assert got.preprocessing == Preprocess(resize=64, crop=64, mean=(0.1, 0.2, 0.3), std=(0.25,) * 3)
    assert "no word on the rest of the preprocessing, hence as in hustvl/Vim: bicubic" in got.notes


def test_the_official_trainer_has_no_other_values_and_nothing_is_said_of_it() -> None:
    assert not any("preprocessing" in note for note in read(MINI).notes)


def test_timm_resizes_small_images_too(state: State, tmp_path: Path) -> None:
    small = {"state_dict": state, "arch": OFFICIAL, "args": {"input_size": 28, "crop_pct": 0.875}}
    assert read(save(tmp_path / "x.pth", small)).preprocessing.resize == 32
    assert read(save(tmp_path / "x.pth", small | {"args": {"input_size": 28}})).preprocessing.resize == 28
    assert read(tmp_path / "x.pth", crop_ratio=0.5).preprocessing.resize == 56


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mean": [0.5] * 2}, ["mean 0.5, 0.5", "3 channels", "--mean"]),
        ({"std": [0.5] * 4}, ["std 0.5, 0.5, 0.5, 0.5", "3 channels", "--std"]),
        ({"std": [0.0] * 3}, ["std 0, 0, 0", "above 0", "--std"]),
        ({"mean": [123.675, 116.28, 103.53]}, ["mean 123.675", "0 to 1", "--mean"]),
        ({"interpolation": "lanczos"}, ["'lanczos'", "bicubic, bilinear, nearest", "--interpolation"]),
    ],
)
def test_settings_that_cannot_be_followed(
    state: State, tmp_path: Path, settings: dict[str, Any], words: list[str]
) -> None:
    path = stored(state, tmp_path / "x.pth", **settings)
    with pytest.raises(CheckpointError) as caught:
        read(path)
    said = f"{caught.value.message} {caught.value.hint}"
    assert str(path) in said and all(word in said for word in words), said
    read(path, mean=0.5, std=0.5, interpolation="nearest")  # what is asked wins


def test_a_crop_of_another_kind_is_told(state: State, tmp_path: Path) -> None:
    assert any(
        "crop_mode is squash" in note for note in read(stored(state, tmp_path / "x.pth", crop_mode="squash")).notes
    )
    assert not any("crop_mode" in note for note in read(stored(state, tmp_path / "x.pth", crop_mode="center")).notes)


def test_what_is_asked_wins_and_is_kept(state: State, tmp_path: Path) -> None:
    path = stored(state, tmp_path / "x.pth", **TIMM)
    options: dict[str, Any] = {"mean": (0.1, 0.2, 0.3), "std": 0.25, "crop_ratio": 1.0, "interpolation": "nearest"}
    model = stm.load_checkpoint(path, device="cpu", **options)
    assert model.config.preprocessing == Preprocess(
        resize=64, crop=64, interpolation="nearest", mean=(0.1, 0.2, 0.3), std=(0.25,) * 3
    )
    assert model.config.extra["asked"] == options | {"mean": [0.1, 0.2, 0.3], "std": [0.25]}
    assert not any("preprocessing" in note for note in model.config.extra["notes"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mean": (0.5, 0.5)}, "mean is 0.5, 0.5, expected one number per channel"),
        ({"mean": ()}, "mean is"),
        ({"mean": "x"}, "mean is 'x', expected a number"),
        ({"mean": float("nan")}, "mean is nan"),
        ({"std": 0}, "std is 0, expected one number per channel, above 0 to 1"),
        ({"std": (58.4, 57.1, 57.4)}, "std is 58.4"),
        ({"crop_ratio": 1.5}, "crop_ratio is 1.5, expected 0.1 to 1"),
        ({"crop_ratio": float("nan")}, "crop_ratio is nan"),
        ({"interpolation": "lanczos"}, "interpolation is 'lanczos', expected one of bicubic, bilinear, nearest"),
    ],
)
def test_what_is_asked_and_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(MINI, **options)
    assert said in caught.value.message


def test_other_channels(state: State, tmp_path: Path) -> None:
    grey = state | {"patch_embed.proj.weight": torch.zeros(32, 1, 16, 16)}
    got = read(stored(grey, tmp_path / "grey.pth"))
    assert "the model takes 1 channel: their mean and standard deviation are unknown, 0 and 1 are assumed" in got.notes
    got = read(stored(grey, tmp_path / "grey.pth", mean=[0.13], std=[0.31]))
    assert (got.preprocessing.mean, got.preprocessing.std) == ((0.13,), (0.31,))
    assert not any("unknown" in note for note in got.notes)
    with pytest.raises(CheckpointError, match=r"mean 0\.485, 0\.456, 0\.406, .* 1 channel"):
        read(stored(grey, tmp_path / "grey.pth", mean=IMAGENET_MEAN, std=IMAGENET_STD))
