"""Checkpoints for the tests of this folder, and how they are read.

All are made from `vim_mini.pth`, which hustvl/Vim's own trainer wrote: `model`, `optimizer`, `args` and so on.
"""

import collections
import dataclasses
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from stm.checkpoint import official
from stm.checkpoint.contents import Contents, describe
from stm.errors import CheckpointError, StmError

MINI = Path(__file__).parents[2] / "golden" / "dense-mini" / "vim_mini.pth"
STRIDE8 = MINI.with_name("vim_mini_stride8.pth")
OFFICIAL = "vim_tiny_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2"
State = dict[str, Tensor]


def read(path: Path, **options: Any) -> official.Checkpoint:
    """Read a checkpoint, once with torch's tensors and once with headers.

    Both ways must return the same contents, or raise the same error.
    """
    checkpoint = outcome(official.read, path, **options)
    described = outcome(describe, path, **options)
    if isinstance(checkpoint, StmError):
        assert repr((type(described), vars(described))) == repr((type(checkpoint), vars(checkpoint)))
        raise checkpoint
    contents = {each.name: getattr(checkpoint, each.name) for each in dataclasses.fields(Contents)}
    assert described == Contents(**contents)
    return checkpoint


def outcome(of: Callable[..., Any], *args: Any, **options: Any) -> Any:
    try:
        return of(*args, **options)
    except StmError as error:
        return error


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


def forms(state: State, tmp_path: Path) -> dict[str, Path]:
    bare = save(tmp_path / "bare.pth", state)
    with (
        zipfile.ZipFile(bare) as stored,
        zipfile.ZipFile(tmp_path / "deflated.pth", "w", zipfile.ZIP_DEFLATED) as deflated,
    ):
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
        "compiled outside": save(
            tmp_path / "outside.pth", {f"_orig_mod.module.{key}": value for key, value in state.items()}
        ),
        "timm": save(tmp_path / "timm.pth", {"state_dict": collections.OrderedDict(state), "arch": "vim"}),
        "parameters": save(
            tmp_path / "parameters.pth", {key: torch.nn.Parameter(value) for key, value in state.items()}
        ),
        "strided": save(
            tmp_path / "strided.pth",
            {key: value.mT.contiguous().mT if value.ndim > 1 else value for key, value in state.items()},
        ),
        "no suffix": save(tmp_path / "checkpoint", state),
    }
