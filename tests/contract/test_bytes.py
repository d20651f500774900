"""Two runs write the same bytes, and model.safetensors is the file that safetensors itself would write."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import stm
from stm.artifact import folder as artifact
from stm.config import Config, ModelConfig, Preprocess, dense_schedule
from stm.model.initialize import initialize
from stm.model.vim import ViM
from tests.hang import HANG

ROOT = Path(__file__).resolve().parents[2]


def make(folder: str, dtype: str, method: str) -> None:
    """Compress a small model, always the same."""
    torch.set_num_threads(1)
    model = ModelConfig(image_size=16, patch=4, stride=4, d_model=8, depth=4, d_state=4, dt_rank=2)
    prep = Preprocess(resize=16, crop=16)
    dense = ViM(Config(model=model, num_classes=3, schedule=dense_schedule(model), preprocessing=prep, dtype=dtype))
    static = {"weights": "hsp", "hsp": "static", "calibration": torch.ones(2, 3, 16, 16)}
    stm.compress(initialize(dense, seed=1), rate=0.4, **(static if method == "static" else {})).save_pretrained(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    """In two processes that order sets differently, into folders of one name. One process writes both models.

    Each process has a cache of its own, so that both fit.
    """
    models = (("bfloat16", "stm"), ("float32", "static"))
    for hash_seed in ("1", "2"):
        folders = [tmp_path / hash_seed / dtype / "out" for dtype, _ in models]
        words = [word for folder, model in zip(folders, models, strict=True) for word in (str(folder), *model)]
        code = (
            "import sys; from tests.contract.test_bytes import make\n"
            "for first in range(1, len(sys.argv), 3): make(*sys.argv[first : first + 3])"
        )
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"}
        environment |= {"XDG_CACHE_HOME": str(tmp_path / hash_seed / "cache")}
        subprocess.run([sys.executable, "-c", code, *words], check=True, env=environment, timeout=HANG)
    for dtype, _ in models:
        first, second = (contents(tmp_path / hash_seed / dtype / "out") for hash_seed in ("1", "2"))
        assert first.keys() == set(artifact.FILES) - {artifact.RESULTS}
        assert first == second


def test_what_is_loaded_and_saved_again_is_the_same(tmp_path: Path) -> None:
    make(str(tmp_path / "out"), "float32", "stm")
    stm.load(tmp_path / "out", device="cpu").save_pretrained(tmp_path / "again" / "out")
    assert contents(tmp_path / "again" / "out") == contents(tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_weights_are_what_safetensors_writes(tmp_path: Path, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(2, 3, generator=g) for name in ("z", "a", "plan.10.scale", "plan.9.scale", "blocks.0.D")
    }
    tensors |= {f"gemm.{i}": torch.randn(i, 3, generator=g).to(dtype) for i in range(12)} | {
        "one": torch.tensor(1.0),
        "no": torch.ones(0),
    }
    model = ModelConfig(image_size=4, patch=2, stride=2, d_model=2, depth=2, d_state=2, dt_rank=1)
    config = Config(
        model=model, num_classes=2, schedule=dense_schedule(model), preprocessing=Preprocess(resize=4, crop=4)
    )
    artifact.write(tmp_path / "out", config, tensors, "")
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    ours = tmp_path / "out" / "model.safetensors"
    assert ours.read_bytes() == (tmp_path / "theirs").read_bytes()
    found = load_file(ours)
    assert all(found[name].equal(tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items())
    with safe_open(ours, "pt") as file:
        assert file.metadata() == {"format": "pt"}, "one entry: safetensors writes several in random order"


def test_every_tensor_is_aligned(tmp_path: Path) -> None:
    make(str(tmp_path / "out"), "bfloat16", "stm")
    data = (tmp_path / "out" / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    del header["__metadata__"]
    assert {entry["dtype"] for entry in header.values()} == {"F32", "BF16"}
    for name, entry in header.items():
        assert (8 + length + entry["data_offsets"][0]) % {"F32": 4, "BF16": 2}[entry["dtype"]] == 0, name
