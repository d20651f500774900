"""Official checkpoints, written: one file, whole or not at all."""

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from stm.errors import CheckpointError, UsageError


def check(path: Path, *, force: bool = False) -> None:
    """Refuse a file that cannot be written, before any work is done.

    Raises:
        UsageError: it exists and `force` is not given, it is not a file, or its folder is missing or cannot be written.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder, expected a file", "name a file with --out")
    if path.exists() and not force:
        raise UsageError(f"{path} already exists", "choose another name with --out, or replace it with --force")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(
            f"{path} cannot be written: its folder {'may not be' if path.parent.is_dir() else 'is not there to be'} written to"
        )


def write(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a state dict as hustvl/Vim loads it: under the key `model`, on the CPU.

    Raises:
        CheckpointError: the disk is full, or the system refused; a file that was there is as it was.
    """
    temporary = path.with_name(f".{path.name}.stm-tmp-{secrets.token_hex(4)}")
    try:
        torch.save({"model": {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}}, temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch's writer tells a full disk as RuntimeError
        raise CheckpointError(
            f"{path} cannot be written: {str(error).splitlines()[0]}", "make room, or choose another place with --out"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
