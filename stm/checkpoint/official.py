"""Convert official ViM checkpoints (hustvl/Vim) to a config and tensors in stm's names, and back.

The two directions of a mixer, `conv1d` and `conv1d_b` and so on, are stacked on a leading axis K = 2, forward first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from stm.checkpoint import file as checkpoint_file
from stm.checkpoint.contents import Contents, Options, check_kind, names_of, not_finite, understand
from stm.config import spread
from stm.errors import CheckpointError
from stm.merging.schedule import others
from stm.model.positions import interpolated, joined


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Contents):
    """A checkpoint that was read.

    Args:
        tensors: its parameters by stm's names, float32, none of them a view of the file.
    """

    tensors: dict[str, Tensor]


def read(path: str | Path, **options: Unpack[Options]) -> Checkpoint:
    """Read a ViM checkpoint: a trainer's pickle, a bare state dict or safetensors. Nothing in it is run.

    Args:
        options: see `contents.Options`.

    Raises:
        CheckpointError: the file is no checkpoint, no ViM that stm runs, incomplete, or not finite.
        Question: the file fits two models, and nothing tells which one it is. A subclass of CheckpointError.
        UsageError: an argument is not valid, or the tensors contradict it.
    """
    path = Path(path)
    # The document may hold an optimizer's state, twice as large as the weights. It goes before they are copied.
    understood = understand(path, checkpoint_file.load(path), **options)
    said = understood.contents
    state: dict[str, Any] = understood.state
    tensors = _stack(str(path), state)
    if said.trained is not None:
        tensors["pos_embed"] = interpolated(tensors["pos_embed"], said.trained, said.model)
    return Checkpoint(**vars(understood.answered(path)), tensors=tensors)


def to_official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the official state dict of a dense model's parameters, which are given by stm's names.

    No tensor shares memory with another. The directions are views of one stack here; whoever loads the file would get
    views too, which safetensors refuses to save.

    Raises:
        CheckpointError: the official format has no place for a tensor, such as that of a merge plan.
    """
    names = names_of(tensors)
    if unknown := sorted(tensors.keys() - names.keys()):
        raise CheckpointError(f"{unknown[0]} has no place in an official ViM checkpoint: only a dense model has one")
    state: dict[str, Tensor] = {}
    for ours, theirs in names.items():
        parts = [tensors[ours]] if len(theirs) == 1 else [part.clone() for part in tensors[ours]]
        if ours.endswith("conv1d_weight"):
            parts = [part.unsqueeze(1) for part in parts]  # (E, 1, W), as torch's depthwise Conv1d has it
        elif len(theirs) == 2 and ours == "pos_embed":
            n = tensors["cls_token"].shape[1]
            places = spread(tensors[ours].shape[1] - n, n)
            parts = [tensors[ours][:, others(tensors[ours].shape[1], places)], tensors[ours][:, list(places)]]
        state.update(zip(theirs, parts, strict=True))
    return {name: tensor for name, tensor in state.items() if tensor.numel()}  # a backbone has no head


def _stack(where: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters by stm's names, float32, and empty `state` on the way.

    Each official tensor leaves `state` when it is copied, so that memory never holds two whole models.
    """
    tensors = {}
    for ours, theirs in names_of(state).items():
        parts = [_float32(where, name, state.pop(name)) for name in theirs]
        # Copied in either case: a view would keep the mapped file alive, and change if the file does.
        if ours == "pos_embed" and len(parts) == 2:
            patches, class_tokens = parts
            tensors[ours] = joined(patches, class_tokens, spread(patches.shape[1], class_tokens.shape[1]))
            continue
        one = len(parts) == 1
        tensor = parts[0].clone(memory_format=torch.contiguous_format) if one else torch.stack(parts)  # (K, ...)
        tensors[ours] = tensor.squeeze(2) if ours.endswith("conv1d_weight") else tensor  # (K, E, 1, W) to (K, E, W)
    return tensors


def _float32(where: str, name: str, tensor: Tensor) -> Tensor:
    """Return a tensor in float32, or refuse it. Float16 and bfloat16 widen exactly, float64 is rounded."""
    check_kind(where, name, tensor)
    tensor = tensor.detach().to(torch.float32)
    if not torch.isfinite(tensor).all():
        raise not_finite(where, name)
    return tensor
