"""Convert official ViM checkpoints (hustvl/Vim) to a config and tensors in stm's names, and back.

The two directions of a mixer, `conv1d` and `conv1d_b` and so on, are stacked on a leading axis K = 2, forward first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stm.artifact.tensors import dtype_name
from stm.checkpoint import file as checkpoint_file
from stm.checkpoint.class_names import Named, names_in
from stm.checkpoint.find import choose, find, largest, settings, trunk_of
from stm.checkpoint.infer import DIRECTED, infer, official_shapes
from stm.checkpoint.stored import Asked, Stored
from stm.config import ModelConfig, Preprocess, Size, spread
from stm.errors import CheckpointError, UsageError, listed
from stm.merging.schedule import others
from stm.model.positions import interpolated, joined
from stm.options import ModelOptions

_STATES = ("model", "state_dict")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read.

    Args:
        model: the shape of the model.
        trained: the model that the weights are of, if its images have another size: the table of positions was
            interpolated.
        tensors: its parameters by stm's names, float32, none of them a view of the file.
        preprocessing: from a photograph to the input of the model.
        source_sha256: of the file's bytes.
        notes: sentences about what was taken from names, assumed or ignored.
        by_name: the options that a name decided; given to `read`, they make the same model of a renamed file.
        label_names: of the classes, by index, if the file has them.
    """

    model: ModelConfig
    num_classes: int
    tensors: dict[str, Tensor]
    preprocessing: Preprocess
    source_sha256: str
    notes: tuple[str, ...]
    by_name: dict[str, Any] = field(default_factory=dict)
    label_names: tuple[str, ...] | None = None
    trained: ModelConfig | None = None


def read(
    path: str | Path,
    *,
    image_size: Size | None = None,
    class_token: str | None = None,
    divide_out: bool | None = None,
    backbone: bool = False,
    ema: bool = False,
    weights_key: str | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    crop_ratio: float | None = None,
    interpolation: str | None = None,
    repo: str | None = None,
) -> Checkpoint:
    """Read a ViM checkpoint: a trainer's pickle, a bare state dict or safetensors. Nothing in it is run.

    Args:
        image_size, class_token, divide_out: properties that the tensors do not show; these arguments win over the
            file's settings and its name. For another size than the file's own the table of positions is interpolated.
        backbone: take the backbone alone, without a head, and without a class token if the file has none.
        ema: take the averaged weights (`model_ema`).
        weights_key: where the weights are, if the file holds several: `teacher`, `model_ema.module`.
        mean, std, crop_ratio, interpolation: of the preprocessing; they win over the file's settings.
        repo: the file's repository on the Hub; its name is read too, after the file's.

    Raises:
        CheckpointError: the file is no checkpoint, no ViM that stm runs, incomplete, or not finite.
        Question: the file fits two models, and nothing tells which one it is. A subclass of CheckpointError.
        UsageError: an argument is not valid, or the tensors contradict it.
    """
    path = Path(path)
    where = str(path)
    colours = {name: _tuple(name, value) for name, value in (("mean", mean), ("std", std))}
    asked = Asked(
        image_size=ModelOptions.size(image_size),
        class_token=class_token,
        divide_out=divide_out,
        backbone=backbone,
        crop_ratio=crop_ratio,
        interpolation=interpolation,
        **colours,
    )
    state, document, ignored = _state_dict(where, checkpoint_file.load(path), ema, weights_key, backbone)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    inferred = infer(where, shapes, Stored.of(document, path.name, repo), asked)
    other = sorted({dtype_name(tensor) for tensor in state.values()} - {"float32"})
    named = names_in(document, inferred.num_classes) if inferred.num_classes else None
    # The document may hold an optimizer's state, twice as large as the weights. Let it go before they are copied.
    del document
    # A backbone has no head, and perhaps no class token: those are empty.
    parts = official_shapes(inferred.model, inferred.num_classes)
    state.update({name: torch.empty(shape) for name, shape in parts.items() if not all(shape)})
    tensors = _stack(where, state)
    if inferred.trained is not None:
        tensors["pos_embed"] = interpolated(tensors["pos_embed"], inferred.trained, inferred.model)
    # Asked last: whoever has a damaged file should not have to answer first.
    if inferred.question is not None:
        raise inferred.question
    notes = inferred.notes
    if other:
        notes += (f"{' and '.join(other)} weights are computed with in float32",)
    labels = None if named is None or len(named.names) != inferred.num_classes else named.names
    if named is not None:
        notes += (_names_note(named, inferred.num_classes),)
    return Checkpoint(
        model=inferred.model,
        num_classes=inferred.num_classes,
        tensors=tensors,
        preprocessing=inferred.preprocessing,
        source_sha256=checkpoint_file.sha256(path),
        notes=notes + ignored,
        by_name=inferred.by_name,
        label_names=labels,
        trained=inferred.trained,
    )


def _names_note(named: Named, classes: int) -> str:
    """Say that the file names its classes, or why its names are not taken."""
    if len(named.names) == classes:
        return f"the classes are named by the file's own {named.key}: {listed(named.names)}"
    return f"the file's own {named.key} does not fit, with {len(named.names)} names for {classes} classes: left out"


def _tuple(name: str, value: Any) -> tuple[float, ...] | None:
    """Return one number or several as a tuple."""
    if value is None:
        return None
    several = value if isinstance(value, list | tuple) else (value,)
    if not several or not all(type(number) in (int, float) for number in several):  # `type`, because True is an int
        raise UsageError(f"{name} is {value!r}, expected a number, or one per channel")
    return tuple(map(float, several))


def to_official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the official state dict of a dense model's parameters, which are given by stm's names.

    No tensor shares memory with another. The directions are views of one stack here; whoever loads the file would get
    views too, which safetensors refuses to save.

    Raises:
        CheckpointError: the official format has no place for a tensor, such as that of a merge plan.
    """
    names = _names(tensors)
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


def _names(held: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """Return, for stm's name of each tensor, the official name, or the official names of the two that it joins.

    Two directions are stacked. The positions of patches and of several class tokens are one table, in the order of the
    sequence.

    Args:
        held: the model's tensors by either names.
    """
    depth = len({name.split(".")[1] for name in held if name.startswith("layers.")})
    names: dict[str, tuple[str, ...]] = {
        name: (name,) for name in ("cls_token", "pos_embed", "norm_f.weight", "head.weight", "head.bias")
    }
    if held["cls_token"].shape[1] > 1:
        names["pos_embed"] = ("pos_embed", "pos_embed_cls")
        names |= {name: (name,) for name in ("neck.weight", "norm_neck.weight") if name in held}
    names |= {f"patch_embed.{kind}": (f"patch_embed.proj.{kind}",) for kind in ("weight", "bias")}
    for block in (f"layers.{i}" for i in range(depth)):
        names |= {
            name: (other,)
            for kind in ("weight", "bias")
            for name, other in [(f"{block}.mixer.scan_norm.{kind}", f"{block}.mixer.layernorm.{kind}")]
            if name in held or other in held
        }
        names |= {
            f"{block}.{name}": (f"{block}.{name}",)
            for name in ("norm.weight", "mixer.in_proj.weight", "mixer.out_proj.weight")
        }
        for name in DIRECTED:
            ours = name.replace("{}", "").replace(".", "_")
            names[f"{block}.mixer.{ours}"] = (f"{block}.mixer.{name.format('')}", f"{block}.mixer.{name.format('_b')}")
    return names


def _state_dict(
    where: str, loaded: checkpoint_file.Loaded, ema: bool, key: str | None, backbone: bool
) -> tuple[dict[str, Tensor], Any, tuple[str, ...]]:
    """Return a checkpoint's weights, the settings beside them (None: there are none), and notes on where they were."""
    document = loaded.document
    if vims := find(where, document):
        one, notes = choose(where, vims, document, ema=ema, key=key)
        if one.question is not None and not backbone:
            raise CheckpointError(f"{where} holds {one.question}", "save the model with the head that classifies alone")
        nested = next((name for name, value in one.state.items() if value.is_nested), None)
        if nested is not None:
            raise CheckpointError(f"{where}: {listed([repr(nested)])} is a nested tensor, expected a tensor")
        if loaded.inert:
            notes += (f"left out, as neither tensors nor plain settings: values of {listed(loaded.inert)}",)
        state = dict(one.state)
        if backbone:
            state, remarks = trunk_of(one)
            notes += remarks
        return state, settings(document, one.holder), notes
    # No ViM at all. The largest state dict tells best what the file is instead.
    if other := largest(where, document):
        return dict(other), None, ()
    raise loaded.unsafe or _no_state(where, document)


def _no_state(where: str, document: Any) -> CheckpointError:
    """Return the error for a document that holds no state dict."""
    if not isinstance(document, dict):
        return CheckpointError(
            f"{where} holds a {type(document).__name__}, expected a state dict, or a dict with one under 'model'"
        )
    key = next((key for key in _STATES if isinstance(document.get(key), dict)), None)
    state = document if key is None else document[key]
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.is_nested:
            kind = "nested tensor" if isinstance(value, Tensor) and value.is_nested else type(value).__name__
            what = (
                f"is a {kind}, expected a tensor" if isinstance(name, str) else "is the name of a tensor, expected text"
            )
            return CheckpointError(f"{where}: {listed([repr(name)])} {what}", f"it holds {listed(map(repr, state))}")
    if state:
        return CheckpointError(f"{where} is not a ViM: it holds {listed(map(repr, state))}")
    return CheckpointError(f"{where} holds no tensors" + (f" under {key!r}" if key else ""))


def _stack(where: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters by stm's names, float32, and empty `state` on the way.

    Each official tensor leaves `state` when it is copied, so that memory never holds two whole models.
    """
    tensors = {}
    for ours, theirs in _names(state).items():
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
    if tensor.layout != torch.strided or tensor.dtype not in _DTYPES or tensor.device.type != "cpu":
        kind = f"{tensor.dtype} {tensor.layout} on {tensor.device}".replace("torch.", "")
        raise CheckpointError(
            f"{where}: {name} is {kind}, expected floating-point numbers", "save the float weights of the model"
        )
    tensor = tensor.detach().to(torch.float32)
    if not torch.isfinite(tensor).all():
        raise CheckpointError(
            f"{where}: {name} holds NaN or infinite values", "training diverged or the file is damaged: use another"
        )
    return tensor
