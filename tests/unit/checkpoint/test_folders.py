"""Folders as trainers leave them: shards with an index, optimizers beside the weights, class names in config.json."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import stm
from stm.checkpoint.names import weights_among
from tests.unit.checkpoint.cases import State, read, refused


def sharded(state: State, folder: Path) -> Path:
    """Two shards and their index, as transformers writes them."""
    names, half = list(state), len(state) // 2
    where = {}
    for i, part in enumerate((names[:half], names[half:]), 1):
        shard = f"model-0000{i}-of-00002.safetensors"
        save_file({name: state[name].clone() for name in part}, folder / shard)
        where |= dict.fromkeys(part, shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    return index


def test_shards_are_one_model(state: State, tmp_path: Path) -> None:
    index = sharded(state, tmp_path)
    got = read(index, image_size=64, class_token="middle")
    assert torch.equal(got.tensors["head.bias"], state["head.bias"])
    shard = tmp_path / "model-00002-of-00002.safetensors"
    save_file({name: value.clone() + 1 for name, value in state.items()}, shard)
    assert read(index, image_size=64, class_token="middle").source_sha256 != got.source_sha256
    save_file({"x": torch.zeros(1)}, shard)
    with pytest.raises(stm.StmError, match="lacks"):
        read(index, image_size=64)
    shard.unlink()
    with pytest.raises(stm.StmError, match="does not exist"):
        read(index, image_size=64)


@pytest.mark.parametrize(
    "content", [{}, {"weight_map": 3}, [], {"weight_map": {"x": "../a.safetensors"}}, {"weight_map": {"x": 3}}]
)
def test_an_index_that_is_none_or_points_elsewhere(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(content))
    refused(path, "index")


def test_weights_by_their_names() -> None:
    left = ["README.md", "config.json", "model.safetensors", "optimizer.pt", "rng_state_0.pth", "scheduler.pt"]
    assert weights_among([*left, "training_args.bin", "pytorch_model.bin"]) == ["model.safetensors"]
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    assert weights_among(shards) == ["model.safetensors.index.json"]
    assert weights_among(["a.ckpt", "model_best.pth.tar", "x.tar", "data.onnx"]) == ["a.ckpt", "model_best.pth.tar"]


@pytest.mark.parametrize(
    ("labels", "first"),
    [
        ({str(i): f"class {i}" for i in range(10)}, "class 0"),
        ({str(i): f"LABEL_{i}" for i in range(10)}, None),
        ({str(i): f"class {i}" for i in range(9)}, None),
        ({str(i): i for i in range(10)}, None),
        ([], None),
    ],
)
def test_a_trainers_folder_with_class_names(state: State, tmp_path: Path, labels: Any, first: str | None) -> None:
    save_file(state, tmp_path / "model.safetensors")
    torch.save({"state": {}}, tmp_path / "optimizer.pt")
    (tmp_path / "config.json").write_text(json.dumps({"id2label": labels}))
    model = stm.load(tmp_path, image_size=64, class_token="middle")
    names = model.config.label_names
    assert (names and names[0]) == first
