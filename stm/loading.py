"""The one door to a model: whatever a MODEL names becomes tensors here, and a model in evaluation mode.

A folder of ours needs torch and safetensors alone. What reads checkpoints or asks the Hub is imported when it is
needed.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stm import backends
from stm.artifact import folder as artifact
from stm.artifact.provenance import mark
from stm.artifact.shapes import check_claims
from stm.artifact.tensors import check_tensors
from stm.config import DTYPES, Size, Source
from stm.describing import Local, as_asked, local, of_checkpoint
from stm.device import pick
from stm.errors import ArtifactError, check_choice
from stm.model.positions import interpolated
from stm.model.vim import ViM
from stm.model_names import File, HubFile
from stm.options import ModelOptions
from stm.progress import OnProgress
from stm.resolving import Ours, resolve


def load(
    model: str | os.PathLike[str],
    *,
    file: str | None = None,
    revision: str | None = None,
    token: str | None = None,
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
    labels: str | os.PathLike[str] | Sequence[str] | Mapping[Any, Any] | None = None,
    device: str = "auto",
    dtype: str | None = None,
    backend: str = "auto",
) -> ViM:
    """Return the model that a MODEL names, in evaluation mode; its weights require a gradient, as elsewhere in PyTorch.

    Args:
        model: a folder that stm wrote; a checkpoint file; `user/name` or a link on the Hub; or a short name:
            `vim-digits`, the model that comes with the package, or one that `stm models` lists. A short name wins over
            a folder of that name: write `./vim-s`, or pass a `pathlib.Path`, for the folder.
        file: the checkpoint in a repository, if it holds several.
        revision: of a repository: a branch, tag or commit.
        token: of the Hub, for a repository that needs one.
        image_size, class_token, divide_out, backbone, ema, weights_key, mean, std, crop_ratio, interpolation: of a
            checkpoint; see `load_checkpoint`.
        labels: the names of the classes: a list by index, a dict by index or by name, or a file of them (one per line,
            JSON, or a CSV with a column of indices). They replace those that the model has.
        device: as torch names it; "auto" takes a GPU if there is one.
        dtype: of the weights of the matrix products: float32, bfloat16 or float16; by default what is stored, and
            float32 for a checkpoint.
        backend: who computes the scan; see `stm env`.

    Raises:
        ArtifactError: the folder is incomplete or not what was written.
        CheckpointError: there is no such model, or its file cannot be read.
        HubError: the repository cannot be read.
        UsageError: an option that this kind of MODEL does not take.

    Examples:
        >>> model = stm.load("vim-digits")
        >>> model.config.num_classes
        10
    """
    options = ModelOptions(
        file=file,
        revision=revision,
        token=token,
        image_size=ModelOptions.size(image_size),
        class_token=class_token,
        divide_out=divide_out,
        backbone=backbone,
        ema=ema,
        weights_key=weights_key,
        mean=ModelOptions.per_channel(mean),
        std=ModelOptions.per_channel(std),
        crop_ratio=crop_ratio,
        interpolation=interpolation,
        labels=labels if labels is None or not isinstance(labels, os.PathLike) else Path(labels),
        device=device,
        dtype=dtype,
        backend=backend,
    )
    return open_model(model, options)


def open_model(
    model: str | os.PathLike[str], options: ModelOptions = ModelOptions(), on_progress: OnProgress | None = None
) -> ViM:
    """Return the model that a MODEL names; `load` with its options in one value.

    Args:
        on_progress: told of downloads.

    Raises:
        StmError: as `load`.
    """
    return open_resolved(resolve(model, options, on_progress), options, on_progress)


def open_classifier(
    model: str | os.PathLike[str], options: ModelOptions = ModelOptions(), on_progress: OnProgress | None = None
) -> ViM:
    """Return what `open_model` returns, for whoever reads logits.

    Raises:
        StmError: as `load`; or the model is a backbone without a head.
    """
    opened = open_model(model, options, on_progress)
    opened.config.check_head()
    return opened


def open_resolved(resolved: Ours | File | HubFile, options: ModelOptions, on_progress: OnProgress | None = None) -> ViM:
    """Return the model of what `resolve` returned.

    Raises:
        StmError: as `load`.
    """
    match resolved:
        case Ours(path, sourced):
            model = _from_folder(path, options)
            model.config = sourced(model.config)
            return model
        case checkpoint:
            return _from_file(local(checkpoint, options, on_progress), options)


def load_checkpoint(
    path: str | os.PathLike[str],
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
    labels: str | os.PathLike[str] | Sequence[str] | Mapping[Any, Any] | None = None,
    dtype: str = "float32",
    device: str = "auto",
    backend: str = "auto",
) -> ViM:
    """Return a dense model from a ViM checkpoint file: a trainer's pickle, a state dict or safetensors.

    The shape comes from the tensors. What they cannot tell comes from the arguments, else from the trainer's settings
    in the file, else from the file's name: `vim_..._midclstok`, `videomamba_..._res224to448`.

    Args:
        image_size: side of the input in pixels, or (height, width). For another size than the file's own, the table of
            positions is interpolated.
        class_token: "middle" (ViM) or "head" (VideoMamba).
        divide_out: whether the two directions are averaged (ViM) or added (VideoMamba).
        backbone: take the backbone alone, for `features`: that of a segmentation or detection checkpoint, or all but
            the head.
        ema: take the trainer's averaged weights (`model_ema`).
        weights_key: where the weights are, if the file holds several ViMs: "teacher", "model_ema.module".
        mean, std: of the images in 0 to 1: a number, or one per channel.
        crop_ratio: of the crop's side to the resized short side, 0.1 to 1.
        interpolation: "bicubic", "bilinear" or "nearest".
        labels: the names of the classes, as for `load`; by default those in the file or beside it.
        dtype, device, backend: as for `load`.

    Raises:
        CheckpointError: not a checkpoint, not a ViM that is run, or damaged; or nothing tells which of the two it is:
            give `class_token` and `divide_out`.
        UsageError: an argument that cannot be, or that the tensors contradict.

    Examples:
        >>> model = stm.load_checkpoint("vim_s_midclstok_80p5acc.pth")
        >>> model.save_pretrained("vim-s")
    """
    options = ModelOptions(
        image_size=ModelOptions.size(image_size),
        class_token=class_token,
        divide_out=divide_out,
        backbone=backbone,
        ema=ema,
        weights_key=weights_key,
        mean=ModelOptions.per_channel(mean),
        std=ModelOptions.per_channel(std),
        crop_ratio=crop_ratio,
        interpolation=interpolation,
        labels=labels if labels is None or not isinstance(labels, os.PathLike) else Path(labels),
        device=device,
        dtype=dtype,
        backend=backend,
    )
    return _from_file(Local(Path(path), Source(file=Path(path).name)), options)


def _from_folder(folder: Path, options: ModelOptions) -> ViM:
    device = pick(options.device)
    config, tensors = artifact.read(folder)
    weights = str(folder / artifact.WEIGHTS)
    # before a model of the sizes that the config claims exists
    check_claims(config, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, weights, ArtifactError)
    model = ViM(config, backends.choose(options.backend, device.type))
    check_tensors(model.state_dict(), tensors, weights, ArtifactError)
    asked = as_asked(str(folder), config, options)
    if asked.model != config.model:
        tensors = tensors | {"pos_embed": interpolated(tensors["pos_embed"], config.model, asked.model)}
        model = ViM(asked, model.backend)
    model.config = asked
    return _filled(model, tensors, device, options.dtype)


def _from_file(checkpoint: Local, options: ModelOptions) -> ViM:
    """Return the dense model of a checkpoint."""
    from stm.checkpoint.official import read  # not part of the runtime

    device = pick(options.device)
    with checkpoint.named():
        contents = read(checkpoint.path, **options.checkpoint, repo=checkpoint.source.repo)
        config = of_checkpoint(checkpoint, contents, options)
    return _filled(
        ViM(config, backends.choose(options.backend, device.type)),
        contents.tensors,
        device,
        options.dtype or "float32",
    )


def _filled(model: ViM, tensors: dict[str, Tensor], device: torch.device, dtype: str | None) -> ViM:
    """Give a model its weights, without a copy of them."""
    model.load_state_dict(tensors, assign=True)
    return ready(model, device, dtype)


def ready(model: ViM, device: torch.device, dtype: str | None) -> ViM:
    """Return a model that has its weights on the device and in the dtype that were asked for, in evaluation mode.

    Raises:
        UsageError: a dtype that no model has.
    """
    if dtype is not None:
        check_choice("dtype", dtype, DTYPES)
        model.cast(dtype)
    if model.mark is None:
        model.mark = mark(model, model.config)
    return model.to(device).eval()
