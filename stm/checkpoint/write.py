"""Write official checkpoints: one file, whole or not at all."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from stm.artifact import atomic
from stm.errors import CheckpointError, said


def write(path: Path, state: Mapping[str, Tensor], *, force: bool = False) -> None:
    """Write a state dict as hustvl/Vim loads it: under the key `model`, on the CPU.

    Args:
        path: the file; see `stm.artifact.atomic.check_file`.
        force: replace an existing file.

    Raises:
        UsageError: the file exists, and `force` is not given.
        CheckpointError: the disk is full, or the system refused the write. An existing file is unchanged.
    """
    # The official evaluation reads the weights under `model`, and on machines without a GPU.
    document = {"model": {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}}
    with (
        atomic.refusing(path, "make room, or choose another place with --out", CheckpointError),
        atomic.drafted(path, force=force) as draft,
    ):
        try:
            torch.save(document, draft)
        except RuntimeError as error:
            # If the disk is full, torch's writer raises RuntimeError. Its further lines are of C++.
            raise OSError(said(error)) from error
