"""Checkpoints in, every form of them, and what is assumed where the tensors cannot tell.

What is expected is taken from the official trainer's file with torch.load and plain indexing, not from stm.
"""

import argparse
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from stm.checkpoint.infer import official_shapes
from stm.checkpoint.official import to_official
from stm.config import ModelConfig, Preprocess
from stm.errors import CheckpointError, UsageError
from tests.blocks import first_blocks
from tests.unit.checkpoint.cases import MINI, OFFICIAL, STRIDE8, State, forms, read, refused, save


def test_the_trainers_pickle(state: State) -> None:
    """Dimensions are those that the model was made with: D=32, depth 6, 17 tokens, 10 classes, 64 pixels, patch and
    stride 16."""
    got = read(MINI)
    assert got.model == ModelConfig(image_size=64, patch=16, stride=16, d_model=32, depth=6, dt_rank=2)
    assert got.num_classes == 10
    assert got.preprocessing == Preprocess(resize=73, crop=64)  # int(64 / 0.875) = 73
    assert got.source_sha256 == "f65d51344223b6d0a9688202a2a0602086d3e8a3c72fe38a13dee0cf308138fe"  # sha256sum
    mixer = "layers.3.mixer."
    assert torch.equal(got.tensors[f"{mixer}A_log"][0], state[f"{mixer}A_log"])
    assert torch.equal(got.tensors[f"{mixer}A_log"][1], state[f"{mixer}A_b_log"])
    assert torch.equal(got.tensors[f"{mixer}conv1d_weight"][0], state[f"{mixer}conv1d.weight"][:, 0])
    assert torch.equal(got.tensors[f"{mixer}conv1d_weight"][1], state[f"{mixer}conv1d_b.weight"][:, 0])
    assert torch.equal(got.tensors["patch_embed.weight"], state["patch_embed.proj.weight"])
    assert {key: tuple(t.shape) for key, t in got.tensors.items() if not key.startswith("layers.")} == {
        "cls_token": (1, 1, 32),
        "pos_embed": (1, 17, 32),
        "patch_embed.weight": (32, 3, 16, 16),
        "patch_embed.bias": (32,),
        "norm_f.weight": (32,),
        "head.weight": (10, 32),
        "head.bias": (10,),
    }
    assert {
        key.removeprefix("layers.5."): tuple(t.shape) for key, t in got.tensors.items() if key.startswith("layers.5.")
    } == {
        "norm.weight": (32,),
        "mixer.in_proj.weight": (128, 32),
        "mixer.out_proj.weight": (32, 64),
        "mixer.conv1d_weight": (2, 64, 4),
        "mixer.conv1d_bias": (2, 64),
        "mixer.x_proj_weight": (2, 34, 64),
        "mixer.dt_proj_weight": (2, 64, 2),
        "mixer.dt_proj_bias": (2, 64),
        "mixer.A_log": (2, 64, 16),
        "mixer.D": (2, 64),
    }
    assert all(t.dtype == torch.float32 and t.is_contiguous() and not t.requires_grad for t in got.tensors.values())


def test_overlapping_patches() -> None:
    assert read(STRIDE8).model == ModelConfig(image_size=64, patch=16, stride=8, d_model=32, depth=6, dt_rank=2)


def test_a_round_trip_is_exact(document: dict[str, Any], tmp_path: Path) -> None:
    back, state = to_official(read(MINI).tensors), document["model"]
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) and back[key].shape == state[key].shape for key in state)
    save_file(back, tmp_path / "back.safetensors")  # refuses tensors that share memory
    again = read(tmp_path / "back.safetensors", image_size=64, class_token="middle")
    assert all(torch.equal(again.tensors[key], tensor) for key, tensor in read(MINI).tensors.items())


def test_a_merge_plan_has_no_official_form() -> None:
    with pytest.raises(CheckpointError, match=r"plan\.3\.weight has no place"):
        to_official(read(MINI).tensors | {"plan.3.weight": torch.ones(17)})


def test_every_form_gives_the_same_tensors(state: State, tmp_path: Path) -> None:
    expected = first_blocks(read(MINI).tensors, 4)
    for form, path in forms(state, tmp_path).items():
        got = read(path, image_size=64, class_token="middle").tensors
        assert got.keys() == expected.keys(), form
        assert all(torch.equal(got[key], expected[key]) and got[key].is_contiguous() for key in expected), form


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_converted_and_said(state: State, tmp_path: Path, dtype: torch.dtype) -> None:
    half = save(tmp_path / "half_midclstok.pth", {key: value.to(dtype) for key, value in state.items()})
    got = read(half, image_size=64)
    assert torch.equal(got.tensors["pos_embed"], state["pos_embed"].to(dtype).float())
    assert any(str(dtype).removeprefix("torch.") in note and "float32" in note for note in got.notes)


def test_averaged_weights_on_request(state: State, tmp_path: Path) -> None:
    path = save(
        tmp_path / "ema_midclstok.pth", {"model": state, "model_ema": {key: value + 1 for key, value in state.items()}}
    )
    plain, averaged = read(path, image_size=64), read(path, image_size=64, ema=True)
    assert torch.equal(averaged.tensors["norm_f.weight"], state["norm_f.weight"] + 1)
    assert torch.equal(plain.tensors["norm_f.weight"], state["norm_f.weight"])
    assert any("model_ema" in note for note in plain.notes)
    assert not any("model_ema" in note for note in averaged.notes)
    assert "without --ema" in str(refused(MINI, "no averaged weights (model_ema)", "'model'", ema=True).hint)
    only = read(save(tmp_path / "only_midclstok.pth", {"model_ema": state, "epoch": 1}), image_size=64)
    assert any("'model_ema'" in note for note in only.notes)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_geometry_is_told_from_shapes(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any dimensions: written by the official shapes, the config comes back, and so do the tensors."""
    patch, grid = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 5))
    stride = data.draw(st.integers(1, patch))
    model = ModelConfig(
        image_size=patch + (grid - 1) * stride + data.draw(st.integers(0, stride - 1)),
        patch=patch,
        stride=stride,
        in_chans=data.draw(st.integers(1, 4)),
        d_model=data.draw(st.integers(1, 6)),
        depth=data.draw(st.integers(1, 12)),
        d_state=data.draw(st.integers(1, 5)),
        dt_rank=data.draw(st.integers(1, 3)),
        expand=data.draw(st.integers(1, 3)),
        d_conv=data.draw(st.integers(1, 5)),
    )
    shapes = official_shapes(model, 7)
    state = {
        key: torch.arange(torch.Size(shape).numel()).float().view(shape) + i
        for i, (key, shape) in enumerate(shapes.items())
    }
    args = argparse.Namespace(model=f"x_stride{stride}_with_midclstok_div2", input_size=model.image_size)
    got = read(save(tmp_path_factory.mktemp("any") / "any.pth", {"model": state, "args": args}))
    assert (got.model, got.num_classes) == (model, 7)
    assert len(got.preprocessing.mean) == model.in_chans
    back = to_official(got.tensors)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], value) for key, value in state.items())


# --- what the tensors cannot tell
# -----------------------------------------------------------------------------------------------


def with_args(state: State, path: Path, model: str = OFFICIAL, input_size: Any = 64, **others: Any) -> Path:
    return save(path, {"model": state, "args": argparse.Namespace(model=model, input_size=input_size, **others)})


@pytest.mark.parametrize(
    ("name", "class_token", "divide_out"),
    [
        (OFFICIAL, "middle", True),
        ("vim_base_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_middle_cls_token_div2", "middle", True),
        ("vim_tiny_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok", "middle", False),
        ("vim_tiny_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_cls_token_div2", "head", True),
        ("vim_tiny_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_clstok", "head", False),
        ("videomamba_tiny", "head", False),
    ],
)
def test_the_builders_name_tells(state: State, tmp_path: Path, name: str, class_token: str, divide_out: bool) -> None:
    """Names as in hustvl/Vim vim/models_mamba.py and its scripts, and OpenGVLab/VideoMamba image_sm."""
    got = read(with_args(state, tmp_path / "x.pth", name))
    assert (got.model.class_token, got.model.divide_out) == (class_token, divide_out)
    assert not any("assumed" in note for note in got.notes) and got.by_name == {}


def test_arguments_win_over_what_the_file_says(state: State, tmp_path: Path) -> None:
    got = read(MINI, class_token="head", divide_out=False)
    assert (got.model.class_token, got.model.divide_out) == ("head", False)
    assert sum("overruled" in note for note in got.notes) == 2
    assert any("by the file's own arguments the class token is in the middle: overruled" in note for note in got.notes)
    got = read(with_args(state, tmp_path / "x.pth", input_size=9999), image_size=64)
    assert got.model.image_size == 64
    got = read(
        with_args(state, tmp_path / "x.pth", model="a_stride8_midclstok_div2"), image_size=28
    )  # stride 4: (28 - 16) / 4 + 1 = 4
    assert (got.model.image_size, got.model.stride) == (28, 4)


def test_the_stored_crop_ratio_counts(state: State, tmp_path: Path) -> None:
    assert read(with_args(state, tmp_path / "x.pth", eval_crop_ratio=0.5)).preprocessing.resize == 128
    assert read(with_args(state, tmp_path / "x.pth", eval_crop_ratio=1)).preprocessing.resize == 64
    for nonsense in ("?", 5e-324, float("nan"), -1.0):
        assert read(with_args(state, tmp_path / "x.pth", eval_crop_ratio=nonsense)).preprocessing.resize == 73
    # vim/datasets.py takes images of up to 32 pixels as they are
    assert read(with_args(state, tmp_path / "x.pth", input_size=28)).preprocessing == Preprocess(resize=28, crop=28)


def test_a_stride_that_no_number_holds_is_none(state: State, tmp_path: Path) -> None:
    assert read(with_args(state, tmp_path / "x.pth", model="vim_midclstok_div2_stride" + "9" * 5000)).model.stride == 16


def test_what_torch_remarks_about_a_file_is_not_shown(state: State, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        state["head.bias"] = torch.quantize_per_tensor(state["head.bias"], 0.1, 0, torch.qint8)
        path = save(tmp_path / "x.pth", state)
    refused(path, "head.bias is qint8", image_size=64)  # a warning would be an error here


def test_the_usual_image_size_where_it_can_be(state: State, tmp_path: Path) -> None:
    """224 pixels: 14 x 14 patches of 16 edge to edge, 27 x 27 at stride 8; nothing else of these is whole."""
    for tokens, stride in ((197, 16), (730, 8)):
        path = save(tmp_path / "midclstok.pth", state | {"pos_embed": torch.zeros(1, tokens, 32)})
        got = read(path)
        assert (got.model.image_size, got.model.stride) == (224, stride)
        assert any("224 is assumed" in note for note in got.notes)
    # Where 224 leaves pixels over or does not fit at all, the patches are taken to lie edge to edge.
    odd = state | {"patch_embed.proj.weight": torch.zeros(32, 3, 15, 15), "pos_embed": torch.zeros(1, 197, 32)}
    assert read(save(tmp_path / "midclstok.pth", odd)).model.image_size == 210  # 14 at stride 15; 224 has 14 over
    for tokens, size in ((2, 16), (17, 64), (26, 80)):
        got = read(save(tmp_path / "midclstok.pth", state | {"pos_embed": torch.zeros(1, tokens, 32)}))
        assert got.model.image_size == size and f"image size {size} is assumed: edge to edge" in got.notes[0]
    by_stride = with_args(state, tmp_path / "x.pth", model="a_stride8_midclstok_div2", input_size=None)
    assert (read(by_stride).model.image_size, read(by_stride).model.stride) == (40, 8)


@pytest.mark.parametrize(("size", "stride"), [(64, 16), (70, 16), (58, 14), (28, 4), (31, 5), (17, None), (60, None)])
def test_the_stride_at_which_patches_fit(size: int, stride: int | None) -> None:
    """4 x 4 patches of 16. Edge to edge where that fits (6 pixels of 70 are over); else the stride that leaves none
    over (58 = 16 + 3 * 14, where 11 to 13 fit too); else the only one (31); of 60 it may be 12, 13 or 14, and 17 pixels
    have no room."""
    if stride is None:
        with pytest.raises(UsageError):
            read(MINI, image_size=size)
    else:
        assert read(MINI, image_size=size).model.stride == stride


def test_an_image_size_that_cannot_be(state: State, tmp_path: Path) -> None:
    for size in (0, -64, 8, 1000):
        with pytest.raises(
            UsageError, match=rf"image_size is {size}, but .*vim_mini\.pth holds 4 x 4 patches of 16 pixels"
        ) as caught:
            read(MINI, image_size=size)
        assert "--image-size 64" in str(caught.value.hint)
    refused(with_args(state, tmp_path / "x.pth", input_size=224), "input_size 224", "4 x 4 patches")
    refused(with_args(state, tmp_path / "x.pth", model="a_stride8_b"), "input_size 64 and stride 8", "4 x 4 patches")
    assert read(with_args(state, tmp_path / "x.pth", input_size="large")).model.image_size == 64


def test_a_class_token_that_no_model_has() -> None:
    with pytest.raises(UsageError, match="class_token is 'tail', expected middle or head"):
        read(MINI, class_token="tail")


# --- memory
# ---------------------------------------------------------------------------------------------------------------------

MEASURE = """
import re, stm.checkpoint.official
# ru_maxrss would begin at the parent's
peak = lambda: 1024 * int(re.search("VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
stm.checkpoint.official.read({small!r})  # what a first call pages in of libraries
before = peak()
got = stm.checkpoint.official.read({path!r})
print((peak() - before) / sum(t.nbytes for t in got.tensors.values()))
print({path!r} in open("/proc/self/maps").read())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize(("form", "limit"), [("trainer", 2.25), ("safetensors", 2.25), ("legacy", 1.75)])
def test_memory_and_the_mapping(tmp_path: Path, form: str, limit: float) -> None:
    """In times the weights: the mapped pages of the model and its copy, and no more: optimizer and averages are not
    touched. A legacy file is read whole, and each of its tensors is freed as it is copied. Afterwards, nothing is
    mapped."""
    shapes = official_shapes(ModelConfig(d_model=192, depth=24, dt_rank=12), 1000)
    state = {key: torch.zeros(shape) for key, shape in shapes.items()}
    path = tmp_path / "vim_midclstok.bin"
    if form == "trainer":
        optimizer = {
            i: {"exp_avg": torch.ones_like(value), "exp_avg_sq": torch.ones_like(value)}
            for i, value in enumerate(state.values())
        }
        save(
            path,
            {"model": state, "optimizer": optimizer, "model_ema": {key: value + 1 for key, value in state.items()}},
        )
    elif form == "safetensors":
        save_file(state, path)
    else:
        save(path, {"model": state}, _use_new_zipfile_serialization=False)
    script = MEASURE.format(small=str(MINI), path=str(path))
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]
    )
    times_the_weights, still_mapped = run.stdout.split()
    assert float(times_the_weights) < limit
    assert still_mapped == "False"
