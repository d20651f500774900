"""Bad checkpoints, refused by a sentence that names what is wrong."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.checkpoint.cases import MINI, State, forms, read, refused, save

# --- files that are none
# --------------------------------------------------------------------------------------------------------

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
        (
            {"model": {"x": torch.nested.nested_tensor([torch.zeros(1)], layout=torch.jagged)}},
            ["'x' is a nested tensor"],
        ),
    ],
)
def test_pickles_without_a_state_dict(tmp_path: Path, content: Any, words: list[str]) -> None:
    refused(save(tmp_path / "x.pth", content), *words)


# --- models that are none of ours
# -----------------------------------------------------------------------------------------------


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
        (
            lambda s: without(s, "cls_token") | {"cls_token_head": torch.zeros(1), "cls_token_tail": torch.zeros(1)},
            ["double class token"],
        ),
        (lambda s: without(s, "cls_token"), ["without a class token", "cls_token"]),
        (lambda s: s | {"layers.0.norm.bias": torch.zeros(32)}, ["LayerNorm", "layers.0.norm.bias"]),
        (lambda s: s | {"norm_f.bias": torch.zeros(32)}, ["LayerNorm"]),
        (lambda s: without(s, "conv1d_b", "x_proj_b", "dt_proj_b", "D_b"), ["bimamba v1", "conv1d_b"]),
        (lambda s: s | {"pos_embed_cls": torch.zeros(1, 12, 32)}, ["Mamba-R", "pos_embed_cls", "1 class tokens"]),
        (lambda s: s | {"register_tokens": torch.zeros(1, 4, 32)}, ["register tokens"]),
        (lambda s: s | {"reg_token": torch.zeros(1, 4, 32)}, ["register tokens"]),
        (lambda s: s | {"cls_token": torch.zeros(1, 3, 32)}, ["3 class tokens"]),
        (lambda s: without(s, "pos_embed"), ["without absolute position embeddings"]),
        (lambda s: without(s, "head."), ["without a classification head"]),
        (lambda s: s | {"temporal_pos_embedding": torch.zeros(1, 8, 32)}, ["VideoMamba for video"]),
        (lambda s: s | {"layers.2.mixer.gamma": torch.zeros(32)}, ["layer scale"]),
        (lambda s: read(MINI).tensors, ["a folder that stm wrote"]),
        (lambda s: s | {"patch_embed.proj.weight": torch.zeros(32, 3, 16, 8)}, ["16 x 8 pixels"]),
        (lambda s: s | {"head.weight": torch.zeros(0, 32), "head.bias": torch.zeros(0)}, ["head without classes"]),
    ],
)
def test_variants_are_refused_by_name(state: State, tmp_path: Path, change: Any, words: list[str]) -> None:
    error = refused(save(tmp_path / "variant.pth", change(state)), *words, image_size=64)
    assert "hustvl/Vim" in str(error.hint)


@pytest.mark.parametrize(
    "key",
    ["layers.3.mixer.conv1d_b.weight", "layers.0.mixer.A_log", "norm_f.weight", "patch_embed.proj.bias"],
)
def test_one_tensor_missing(state: State, tmp_path: Path, key: str) -> None:
    del state[key]
    refused(save(tmp_path / "x.pth", state), f"1 missing ({key})", "4 blocks", image_size=64)


def test_missing_and_unexpected_are_listed_and_counted(state: State, tmp_path: Path) -> None:
    state = without(state, "layers.2.") | {"layers.4.norm.weight": state["norm_f.weight"], "extra": torch.zeros(1)}
    refused(
        save(tmp_path / "x.pth", state),
        "17 missing (layers.2.norm.weight",
        "and 9 more",
        "2 unexpected (",
        "extra",
        image_size=64,
    )


@pytest.mark.parametrize(
    "key",
    [
        "layers.0.mixer.A_log",
        "layers.2.mixer.x_proj_b.weight",
        "layers.0.norm.weight",
        "patch_embed.proj.bias",
        "head.bias",
    ],
)
def test_a_mis_shaped_tensor(state: State, tmp_path: Path, key: str) -> None:
    wrong = torch.zeros(5, *state[key].shape[1:])
    expected = f"{key} {tuple(wrong.shape)} instead of {tuple(state[key].shape)}"
    refused(save(tmp_path / "x.pth", state | {key: wrong}), "1 mis-shaped", expected, image_size=64)


@pytest.mark.parametrize("key", ["pos_embed", "head.weight", "patch_embed.proj.weight"])
def test_a_tensor_of_the_wrong_rank(state: State, tmp_path: Path, key: str) -> None:
    refused(
        save(tmp_path / "x.pth", state | {key: torch.zeros(7)}), f"{key} is (7,), expected", "dimensions", image_size=64
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["layers.2.mixer.dt_proj_b.bias", "pos_embed"])
def test_numbers_that_are_not_finite(state: State, tmp_path: Path, key: str, value: float) -> None:
    state[key] = state[key].clone()
    state[key].view(-1)[-1] = value
    for path in (save(tmp_path / "x.pth", state), save(tmp_path / "y.pth", {k: v.double() for k, v in state.items()})):
        refused(path, f"{key} holds NaN or infinite values", image_size=64)


def test_a_double_that_float32_cannot_hold(state: State, tmp_path: Path) -> None:
    refused(
        save(tmp_path / "x.pth", state | {"head.bias": torch.full((10,), 1e300, dtype=torch.float64)}),
        "head.bias",
        image_size=64,
    )


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
    refused(
        save(tmp_path / "x.pth", state | {"head.bias": wrong}),
        "head.bias is ",
        "expected floating-point numbers",
        image_size=64,
    )
