"""Checkpoints in, every form of them; bad ones refused by a sentence that names what is wrong, and nothing in them run.

The base of all is `vim_mini.pth`, which the official trainer's code wrote (hustvl/Vim: `model`, `optimizer`, `args` and so on). What
is expected of it is taken from there with torch.load and plain indexing, not from stm.
"""

import argparse
import collections
import io
import pathlib
import pickle
import subprocess
import sys
import types
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from stm.checkpoint import read, to_official
from stm.checkpoint_infer import official_shapes
from stm.config import ModelConfig, Preprocess
from stm.errors import CheckpointError, UsageError

MINI = Path(__file__).parents[1] / "golden" / "dense-mini" / "vim_mini.pth"
STRIDE8 = MINI.with_name("vim_mini_stride8.pth")
OFFICIAL = "vim_tiny_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(MINI, weights_only=True)


@pytest.fixture
def state(document: dict[str, Any]) -> State:
    return dict(document["model"])


def save(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def refused(path: Path, *words: str, **options: Any) -> CheckpointError:
    """Reading fails with one sentence that has all these words, the file's name among them."""
    with pytest.raises(CheckpointError) as caught:
        read(path, **options)
    message = caught.value.message
    assert str(path) in message
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert caught.value.exit_code == 1
    return caught.value


# --- what is read ---------------------------------------------------------------------------------------------------------------


def test_the_trainers_pickle(state: State) -> None:
    """Dimensions are those that the model was made with: D=32, depth 6, 17 tokens, 10 classes, 64 pixels, patch and stride 16."""
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
    assert {key.removeprefix("layers.5."): tuple(t.shape) for key, t in got.tensors.items() if key.startswith("layers.5.")} == {
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


def test_a_round_trip_is_exact(state: State, tmp_path: Path) -> None:
    back = to_official(read(MINI).tensors)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) and back[key].shape == state[key].shape for key in state)
    save_file(back, tmp_path / "back.safetensors")  # refuses tensors that share memory
    again = read(tmp_path / "back.safetensors", image_size=64)
    assert all(torch.equal(again.tensors[key], tensor) for key, tensor in read(MINI).tensors.items())


def test_a_merge_plan_has_no_official_form() -> None:
    with pytest.raises(CheckpointError, match=r"plan\.3\.weight has no place"):
        to_official(read(MINI).tensors | {"plan.3.weight": torch.ones(17)})


def forms(state: State, tmp_path: Path) -> dict[str, Path]:
    bare = save(tmp_path / "bare.pth", state)
    with zipfile.ZipFile(bare) as stored, zipfile.ZipFile(tmp_path / "deflated.pth", "w", zipfile.ZIP_DEFLATED) as deflated:
        for name in stored.namelist():
            deflated.writestr(name, stored.read(name))
    save_file(state, tmp_path / "model.safetensors")
    return {
        "bare": bare,
        "deflated": tmp_path / "deflated.pth",
        "safetensors": tmp_path / "model.safetensors",
        "legacy": save(tmp_path / "legacy.pth", {"model": state}, _use_new_zipfile_serialization=False),
        "module": save(tmp_path / "module.pth", {"model": {f"module.{key}": value for key, value in state.items()}}),
        "compiled": save(tmp_path / "compiled.pth", {f"module._orig_mod.{key}": value for key, value in state.items()}),
        "compiled outside": save(tmp_path / "outside.pth", {f"_orig_mod.module.{key}": value for key, value in state.items()}),
        "timm": save(tmp_path / "timm.pth", {"state_dict": collections.OrderedDict(state), "arch": "vim"}),
        "parameters": save(tmp_path / "parameters.pth", {key: torch.nn.Parameter(value) for key, value in state.items()}),
        "strided": save(
            tmp_path / "strided.pth", {key: value.mT.contiguous().mT if value.ndim > 1 else value for key, value in state.items()}
        ),
        "no suffix": save(tmp_path / "checkpoint", state),
    }


def test_every_form_gives_the_same_tensors(state: State, tmp_path: Path) -> None:
    expected = read(MINI).tensors
    for form, path in forms(state, tmp_path).items():
        got = read(path, image_size=64).tensors
        assert got.keys() == expected.keys(), form
        assert all(torch.equal(got[key], expected[key]) and got[key].is_contiguous() for key in expected), form


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_converted_and_said(state: State, tmp_path: Path, dtype: torch.dtype) -> None:
    got = read(save(tmp_path / "half.pth", {key: value.to(dtype) for key, value in state.items()}), image_size=64)
    assert torch.equal(got.tensors["pos_embed"], state["pos_embed"].to(dtype).float())
    assert any(str(dtype).removeprefix("torch.") in note and "float32" in note for note in got.notes)


def test_averaged_weights_on_request(state: State, tmp_path: Path) -> None:
    path = save(tmp_path / "ema.pth", {"model": state, "model_ema": {key: value + 1 for key, value in state.items()}})
    plain, averaged = read(path, image_size=64), read(path, image_size=64, ema=True)
    assert torch.equal(averaged.tensors["norm_f.weight"], state["norm_f.weight"] + 1)
    assert torch.equal(plain.tensors["norm_f.weight"], state["norm_f.weight"])
    assert any("model_ema" in note for note in plain.notes)
    assert not any("model_ema" in note for note in averaged.notes)
    assert "without --ema" in str(refused(MINI, "no averaged weights (model_ema)", "'model'", ema=True).hint)
    refused(save(tmp_path / "only.pth", {"model_ema": state, "epoch": 1}), "no 'model'")


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
    state = {key: torch.arange(torch.Size(shape).numel()).float().view(shape) + i for i, (key, shape) in enumerate(shapes.items())}
    args = argparse.Namespace(model=f"x_stride{stride}_with_midclstok_div2", input_size=model.image_size)
    got = read(save(tmp_path_factory.mktemp("any") / "any.pth", {"model": state, "args": args}))
    assert (got.model, got.num_classes) == (model, 7)
    assert len(got.preprocessing.mean) == model.in_chans
    back = to_official(got.tensors)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], value) for key, value in state.items())


# --- what the tensors cannot tell -----------------------------------------------------------------------------------------------


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
        ("my_own_builder", "middle", True),
    ],
)
def test_the_builders_name_tells(state: State, tmp_path: Path, name: str, class_token: str, divide_out: bool) -> None:
    """Names as in hustvl/Vim vim/models_mamba.py and its scripts, and OpenGVLab/VideoMamba image_sm."""
    got = read(with_args(state, tmp_path / "x.pth", name))
    assert (got.model.class_token, got.model.divide_out) == (class_token, divide_out)
    assert any("assumed" in note for note in got.notes) == (name == "my_own_builder")


def test_what_is_assumed_is_said(state: State, tmp_path: Path) -> None:
    got = read(save(tmp_path / "bare.pth", state), image_size=64)
    assert (got.model.class_token, got.model.divide_out) == ("middle", True)
    (note,) = [note for note in got.notes if "assumed" in note]
    assert all(word in note for word in ("class token in the middle", "averaged", "VideoMamba", "--class-token head --no-divide-out"))
    got = read(tmp_path / "bare.pth", image_size=64, class_token="head", divide_out=False)
    assert (got.model.class_token, got.model.divide_out) == ("head", False)
    assert not any("assumed" in note for note in got.notes)


def test_arguments_win_over_what_the_file_says(state: State, tmp_path: Path) -> None:
    got = read(MINI, class_token="head", divide_out=False)
    assert (got.model.class_token, got.model.divide_out) == ("head", False)
    assert sum("overruled" in note for note in got.notes) == 2
    got = read(with_args(state, tmp_path / "x.pth", input_size=9999), image_size=64)
    assert got.model.image_size == 64
    got = read(with_args(state, tmp_path / "x.pth", model="a_stride8_b"), image_size=28)  # stride 4: (28 - 16) / 4 + 1 = 4
    assert (got.model.image_size, got.model.stride) == (28, 4)


def test_the_stored_crop_ratio_counts(state: State, tmp_path: Path) -> None:
    assert read(with_args(state, tmp_path / "x.pth", eval_crop_ratio=0.5)).preprocessing.resize == 128
    assert read(with_args(state, tmp_path / "x.pth", eval_crop_ratio=1)).preprocessing.resize == 64
    for nonsense in ("?", 5e-324, float("nan"), -1.0):
        assert read(with_args(state, tmp_path / "x.pth", eval_crop_ratio=nonsense)).preprocessing.resize == 73
    # vim/datasets.py takes images of up to 32 pixels as they are
    assert read(with_args(state, tmp_path / "x.pth", input_size=28)).preprocessing == Preprocess(resize=28, crop=28)


def test_a_stride_that_no_number_holds_is_none(state: State, tmp_path: Path) -> None:
    assert read(with_args(state, tmp_path / "x.pth", model="vim_stride" + "9" * 5000)).model.stride == 16


def test_what_torch_remarks_about_a_file_is_not_shown(state: State, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        state["head.bias"] = torch.quantize_per_tensor(state["head.bias"], 0.1, 0, torch.qint8)
        path = save(tmp_path / "x.pth", state)
    refused(path, "head.bias is qint8", image_size=64)  # a warning would be an error here


def test_the_usual_image_size_where_it_can_be(state: State, tmp_path: Path) -> None:
    """224 pixels: 14 x 14 patches of 16 edge to edge, 27 x 27 at stride 8; nothing else of these is whole."""
    for tokens, stride in ((197, 16), (730, 8)):
        path = save(tmp_path / "x.pth", state | {"pos_embed": torch.zeros(1, tokens, 32)})
        got = read(path)
        assert (got.model.image_size, got.model.stride) == (224, stride)
        assert any("224 is assumed" in note for note in got.notes)
    odd = state | {"patch_embed.proj.weight": torch.zeros(32, 3, 15, 15), "pos_embed": torch.zeros(1, 197, 32)}
    refused(save(tmp_path / "x.pth", odd), "14 x 14 patches of 15 pixels", "does not say the image size")  # 14 at stride 15, 14 over
    for tokens in (2, 17, 26):
        error = refused(save(tmp_path / "x.pth", state | {"pos_embed": torch.zeros(1, tokens, 32)}), "does not say the image size")
        assert "--image-size" in str(error.hint)


@pytest.mark.parametrize(("size", "stride"), [(64, 16), (70, 16), (58, 14), (28, 4), (31, 5), (17, None), (60, None)])
def test_the_stride_at_which_patches_fit(size: int, stride: int | None) -> None:
    """4 x 4 patches of 16. Edge to edge where that fits (6 pixels of 70 are over); else the stride that leaves none over (58 = 16 +
    3 * 14, where 11 to 13 fit too); else the only one (31); of 60 it may be 12, 13 or 14, and 17 pixels have no room."""
    if stride is None:
        with pytest.raises(UsageError):
            read(MINI, image_size=size)
    else:
        assert read(MINI, image_size=size).model.stride == stride


def test_an_image_size_that_cannot_be(state: State, tmp_path: Path) -> None:
    for size in (0, -64, 8, 1000):
        with pytest.raises(UsageError, match=rf"image_size is {size}, but .*vim_mini\.pth holds 4 x 4 patches of 16 pixels") as caught:
            read(MINI, image_size=size)
        assert "--image-size 64" in str(caught.value.hint)
    refused(with_args(state, tmp_path / "x.pth", input_size=224), "input_size 224", "4 x 4 patches")
    refused(with_args(state, tmp_path / "x.pth", model="a_stride8_b"), "input_size 64 and stride 8", "4 x 4 patches")
    refused(with_args(state, tmp_path / "x.pth", input_size="large"), "does not say the image size")


def test_a_class_token_that_no_model_has() -> None:
    with pytest.raises(UsageError, match="class_token is 'tail', expected middle or head"):
        read(MINI, class_token="tail")


# --- pickles --------------------------------------------------------------------------------------------------------------------


class Renamed:
    """Pickles as a call of `module.name` with `args`, whether or not that exists here."""

    def __init__(self, module: str, name: str, *args: Any) -> None:
        self.module, self.name, self.args = module, name, args


def dumps(content: Any, protocol: int = 2) -> bytes:
    """Pickle in pure Python, so that a `Renamed` is written by the name it bears."""

    class Pickler(pickle._Pickler):
        def save(self, obj: Any, save_persistent_id: bool = True) -> None:
            if isinstance(obj, Renamed):
                self.write(f"c{obj.module}\n{obj.name}\n".encode())
                self.save(obj.args)
                self.write(b"R")
            else:
                super().save(obj, save_persistent_id)

    out = io.BytesIO()
    Pickler(out, protocol).dump(content)
    return out.getvalue()


def repickled(source: Path, target: Path, content: Any) -> Path:
    """The zip checkpoint `source` with another pickle in it."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, dumps(content) if name.endswith("/data.pkl") else old.read(name))
    return target


def test_settings_that_a_trainer_stores(state: State, tmp_path: Path) -> None:
    """Paths of any system and numpy scalars, beside the tensors; paths become pure ones."""
    args = argparse.Namespace(
        model=OFFICIAL,
        input_size=64,
        output_dir=pathlib.PosixPath("/out"),
        data=pathlib.PurePosixPath("a/b"),
        windows=pathlib.PureWindowsPath("C:/x"),
        lr=np.float32(1e-3),
        best=np.float64(76.1),
        seed=np.int64(3),
        flag=np.bool_(True),
        dtype=np.dtype("float32"),
        betas=(0.9, 0.999),
        nested=argparse.Namespace(a=None),
    )
    content = {"model": state, "args": args, "epoch": 3, "best": np.float64(0.5)}
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        assert read(save(tmp_path / "x.pth", content, **options)).model.image_size == 64


@pytest.mark.parametrize(
    "stored",
    [
        Renamed("pathlib", "PosixPath", "/", "out"),
        Renamed("pathlib._local", "PosixPath", "/", "out"),
        Renamed("pathlib", "WindowsPath", "C:\\", "out"),
        Renamed("pathlib._local", "PureWindowsPath", "out"),
        Renamed("numpy.core.multiarray", "scalar", np.dtype("float64"), b"\0" * 8),
        Renamed("numpy._core.multiarray", "scalar", np.dtype("int32"), b"\1\0\0\0"),
    ],
    ids=lambda stored: f"{stored.module}.{stored.name}",
)
def test_settings_by_the_names_of_other_versions(tmp_path: Path, stored: Renamed) -> None:
    """The names that Python 3.13's pathlib, Windows and numpy 1 write; tensors are left out, so the refusal comes after the pickle."""
    base = save(tmp_path / "base.pth", {})
    refused(repickled(base, tmp_path / "x.pth", {"model": {}, "stored": stored}), "holds no tensors under 'model'")


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "it-ran"


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("container", ["plain", "zip", "legacy"])
def test_a_payload_is_named_and_does_not_run(tmp_path: Path, canary: Path, state: State, container: str, protocol: int) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            import os

            return os.system, (f"touch {canary}",)

    path = tmp_path / "payload.pth"
    if container == "plain":
        path.write_bytes(pickle.dumps({"model": Payload()}, protocol))
    else:
        save(path, {"model": state, "x": Payload()}, pickle_protocol=protocol, _use_new_zipfile_serialization=container == "zip")
    error = refused(path, "wants posix.system (os.system)", "not read")
    assert "state_dict" in str(error.hint)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Payload(), protocol))  # the payload is live: run, it leaves its mark
    assert canary.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("torch.hub", "load"),
        ("models_mamba", "VisionMamba"),
        ("numpy.core.multiarray", "_reconstruct"),
    ],
)
def test_anything_else_is_refused_by_its_name(tmp_path: Path, module: str, name: str) -> None:
    base = save(tmp_path / "base.pth", {})
    refused(repickled(base, tmp_path / "x.pth", {"model": Renamed(module, name, "1")}), f"wants {module}.{name}")


def test_a_whole_module_is_refused_by_its_name(tmp_path: Path) -> None:
    refused(save(tmp_path / "module.pth", torch.nn.Linear(2, 2)), "wants ", "torch.nn.modules.linear.Linear")


def test_a_name_that_comes_out_of_the_memo(tmp_path: Path) -> None:
    """Protocol 4 may take both parts of a name from what was pickled before."""
    data = pickle.PROTO + b"\x04" + b"".join(pickle.SHORT_BINUNICODE + bytes([len(t)]) + t + pickle.MEMOIZE for t in (b"posix", b"system"))
    data += pickle.POP * 2 + pickle.BINGET + b"\0" + pickle.BINGET + b"\1" + pickle.STACK_GLOBAL + pickle.STOP
    (tmp_path / "x.pth").write_bytes(data)
    refused(tmp_path / "x.pth", "wants posix.system")


def test_nothing_is_allowed_for_others() -> None:
    """The allow-list is taken back, and what the caller had allowed stays."""
    with torch.serialization.safe_globals([types.SimpleNamespace, (argparse.Namespace, "argparse.Namespace")]):
        before = set(torch.serialization.get_safe_globals())
        read(MINI)
        assert set(torch.serialization.get_safe_globals()) == before
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_reading_prints_nothing_and_leaves_the_file(capfd: pytest.CaptureFixture[str]) -> None:
    before = MINI.stat()
    read(MINI)
    assert capfd.readouterr() == ("", "")
    assert (MINI.stat().st_mtime_ns, MINI.stat().st_size) == (before.st_mtime_ns, before.st_size)


# --- files that are none --------------------------------------------------------------------------------------------------------

TEXT = "weights: see the link\n" * 400


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["is empty"]),
        (TEXT.encode(), ["is a text file"]),
        (("ä" * 2047 + "x" + "ö" * 99).encode(), ["is a text file"]),  # a character is cut where the head ends
        (b"\n <!DOCTYPE html><html><body>404</body></html>", ["is a web page"]),
        (b"<html></html>", ["is a web page"]),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", ["is a Git LFS pointer"]),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), ["is not a checkpoint"]),
        (bytes(5000), ["is not a checkpoint"]),
        (b"\x80", ["cannot be read as a checkpoint"]),
        (pickle.dumps({"model": {"a": 1}}), ["cannot be read as a checkpoint"]),  # not written by torch.save
    ],
)
def test_files_that_are_no_checkpoints(tmp_path: Path, content: bytes, words: list[str]) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    assert refused(tmp_path / "weights.pth", *words).hint


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    refused(tmp_path / "missing.pth", "does not exist")
    refused(tmp_path, "is a directory")
    refused(Path("/dev/null"), "is not a regular file")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(tmp_path / "loop", "does not exist")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    path = save(tmp_path / "x.pth", {})
    monkeypatch.setattr(Path, "open", denied)
    refused(path, "cannot be read: Permission denied")


@pytest.mark.parametrize("keep", [0.001, 0.3, 0.97, 0.999])
@pytest.mark.parametrize("form", ["bare", "deflated", "legacy", "safetensors"])
def test_files_that_are_cut_off(state: State, tmp_path: Path, form: str, keep: float) -> None:
    path = forms(state, tmp_path)[form]
    data = path.read_bytes()
    path.write_bytes(data[: max(10, int(len(data) * keep))])
    assert refused(path).hint


def test_other_zip_files(state: State, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("folder/readme.txt", "no weights")
    assert "unzip" in str(refused(tmp_path / "a.zip", "is a zip archive").hint)
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("m/data.pkl", b"")
        archive.writestr("m/constants.pkl", b"")
    refused(tmp_path / "script.pt", "is a TorchScript program")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], ["holds a list"]),
        (torch.zeros(3), ["holds a Tensor"]),
        ({}, ["holds no tensors"]),
        ({"model": {}}, ["holds no tensors under 'model'"]),
        ({"epoch": 3}, ["'epoch' is a int, expected a tensor"]),
        ({"model": {"cls_token": [1.0]}}, ["'cls_token' is a list, expected a tensor"]),
        ({"model": {3: torch.zeros(1)}}, ["3 is the name of a tensor, expected text"]),
        ({"model": {"x": torch.nested.nested_tensor([torch.zeros(1)], layout=torch.jagged)}}, ["'x' is a nested tensor"]),
    ],
)
def test_pickles_without_a_state_dict(tmp_path: Path, content: Any, words: list[str]) -> None:
    refused(save(tmp_path / "x.pth", content), *words)


# --- models that are none of ours -----------------------------------------------------------------------------------------------


def deit() -> State:
    keys = [
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "blocks.0.norm1.weight",
        "blocks.0.attn.qkv.weight",
        "norm.weight",
        "head.weight",
    ]
    return {key: torch.zeros(1) for key in keys}


def without(state: State, *parts: str) -> State:
    return {key: value for key, value in state.items() if not any(part in key for part in parts)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: deit(), ["a vision transformer (DeiT, ViT)", "blocks.0.attn.qkv.weight"]),
        (lambda s: {"conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, ["is not a ViM", "conv1.weight"]),
        (lambda s: s | {"rope.freqs_cos": torch.zeros(196, 32)}, ["rotary", "rope.freqs_cos"]),
        (lambda s: without(s, "cls_token") | {"cls_token_head": torch.zeros(1), "cls_token_tail": torch.zeros(1)}, ["double class token"]),
        (lambda s: without(s, "cls_token"), ["without a class token", "cls_token"]),
        (lambda s: s | {"layers.0.norm.bias": torch.zeros(32)}, ["LayerNorm", "layers.0.norm.bias"]),
        (lambda s: s | {"norm_f.bias": torch.zeros(32)}, ["LayerNorm"]),
        (lambda s: without(s, "conv1d_b", "x_proj_b", "dt_proj_b", "D_b"), ["bimamba v1", "conv1d_b"]),
        (lambda s: s | {"pos_embed_cls": torch.zeros(1, 12, 32)}, ["register tokens (Mamba-R)", "pos_embed_cls"]),
        (lambda s: s | {"register_tokens": torch.zeros(1, 4, 32)}, ["register tokens"]),
        (lambda s: s | {"reg_token": torch.zeros(1, 4, 32)}, ["register tokens"]),
        (lambda s: s | {"cls_token": torch.zeros(1, 3, 32)}, ["3 class tokens"]),
        (lambda s: without(s, "pos_embed"), ["without absolute position embeddings"]),
        (lambda s: without(s, "head."), ["without a classification head"]),
        (lambda s: s | {"temporal_pos_embedding": torch.zeros(1, 8, 32)}, ["VideoMamba for video"]),
        (lambda s: s | {"layers.2.mixer.gamma": torch.zeros(32)}, ["layer scale"]),
        (lambda s: read(MINI).tensors, ["a folder that stm wrote"]),
        (lambda s: s | {"pos_embed": torch.zeros(1, 16, 32)}, ["16 positions", "square grid"]),
        (lambda s: s | {"pos_embed": torch.zeros(1, 15 * 20 + 1, 32)}, ["301 positions", "square grid"]),
        (lambda s: s | {"patch_embed.proj.weight": torch.zeros(32, 3, 16, 8)}, ["16 x 8 pixels"]),
        (lambda s: s | {"head.weight": torch.zeros(0, 32), "head.bias": torch.zeros(0)}, ["head without classes"]),
    ],
)
def test_variants_are_refused_by_name(state: State, tmp_path: Path, change: Any, words: list[str]) -> None:
    error = refused(save(tmp_path / "variant.pth", change(state)), *words, image_size=64)
    assert "hustvl/Vim" in str(error.hint)


@pytest.mark.parametrize(
    "key", ["layers.3.mixer.conv1d_b.weight", "layers.0.mixer.A_log", "norm_f.weight", "patch_embed.proj.bias", "head.bias"]
)
def test_one_tensor_missing(state: State, tmp_path: Path, key: str) -> None:
    del state[key]
    refused(save(tmp_path / "x.pth", state), f"1 missing ({key})", "6 blocks", image_size=64)


def test_missing_and_unexpected_are_listed_and_counted(state: State, tmp_path: Path) -> None:
    state = without(state, "layers.4.") | {"layers.6.norm.weight": state["norm_f.weight"], "extra": torch.zeros(1)}
    refused(save(tmp_path / "x.pth", state), "17 missing (layers.4.norm.weight", "and 9 more", "2 unexpected (", "extra", image_size=64)


@pytest.mark.parametrize(
    "key", ["layers.0.mixer.A_log", "layers.2.mixer.x_proj_b.weight", "layers.0.norm.weight", "patch_embed.proj.bias", "head.bias"]
)
def test_a_mis_shaped_tensor(state: State, tmp_path: Path, key: str) -> None:
    wrong = torch.zeros(5, *state[key].shape[1:])
    expected = f"{key} {tuple(wrong.shape)} instead of {tuple(state[key].shape)}"
    refused(save(tmp_path / "x.pth", state | {key: wrong}), "1 mis-shaped", expected, image_size=64)


@pytest.mark.parametrize("key", ["pos_embed", "head.weight", "patch_embed.proj.weight"])
def test_a_tensor_of_the_wrong_rank(state: State, tmp_path: Path, key: str) -> None:
    refused(save(tmp_path / "x.pth", state | {key: torch.zeros(7)}), f"{key} is (7,), expected", "dimensions", image_size=64)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["layers.2.mixer.dt_proj_b.bias", "pos_embed"])
def test_numbers_that_are_not_finite(state: State, tmp_path: Path, key: str, value: float) -> None:
    state[key] = state[key].clone()
    state[key].view(-1)[-1] = value
    for path in (save(tmp_path / "x.pth", state), save(tmp_path / "y.pth", {k: v.double() for k, v in state.items()})):
        refused(path, f"{key} holds NaN or infinite values", image_size=64)


def test_a_double_that_float32_cannot_hold(state: State, tmp_path: Path) -> None:
    refused(save(tmp_path / "x.pth", state | {"head.bias": torch.full((10,), 1e300, dtype=torch.float64)}), "head.bias", image_size=64)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(10, dtype=torch.int64),
        torch.zeros(10, dtype=torch.complex64),
        torch.zeros(10, dtype=torch.float8_e5m2),
        torch.zeros(10).to_sparse(),
        torch.zeros(10, device="meta"),
    ],
    ids=["int64", "complex64", "float8", "sparse", "meta"],
)
def test_numbers_that_are_not_weights(state: State, tmp_path: Path, wrong: Tensor) -> None:
    refused(save(tmp_path / "x.pth", state | {"head.bias": wrong}), "head.bias is ", "expected floating-point numbers", image_size=64)


# --- memory ---------------------------------------------------------------------------------------------------------------------

MEASURE = """
import re, stm.checkpoint
peak = lambda: 1024 * int(re.search("VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])  # ru_maxrss would begin at the parent's
stm.checkpoint.read({small!r})  # what a first call pages in of libraries
before = peak()
got = stm.checkpoint.read({path!r})
print((peak() - before) / sum(t.nbytes for t in got.tensors.values()))
print({path!r} in open("/proc/self/maps").read())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize(("form", "limit"), [("trainer", 2.25), ("safetensors", 2.25), ("legacy", 1.75)])
def test_memory_and_the_mapping(tmp_path: Path, form: str, limit: float) -> None:
    """In times the weights: the mapped pages of the model and its copy, and no more: optimizer and averages are not touched. A
    legacy file is read whole, and each of its tensors is freed as it is copied. Afterwards, nothing is mapped."""
    shapes = official_shapes(ModelConfig(d_model=192, depth=24, dt_rank=12), 1000)
    state = {key: torch.zeros(shape) for key, shape in shapes.items()}
    path = tmp_path / "model.bin"
    if form == "trainer":
        optimizer = {i: {"exp_avg": torch.ones_like(value), "exp_avg_sq": torch.ones_like(value)} for i, value in enumerate(state.values())}
        save(path, {"model": state, "optimizer": optimizer, "model_ema": {key: value + 1 for key, value in state.items()}})
    elif form == "safetensors":
        save_file(state, path)
    else:
        save(path, {"model": state}, _use_new_zipfile_serialization=False)
    script = MEASURE.format(small=str(MINI), path=str(path))
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    times_the_weights, still_mapped = run.stdout.split()
    assert float(times_the_weights) < limit
    assert still_mapped == "False"
