"""The one door to a model: whatever a MODEL names becomes tensors here, and a model in evaluation mode.

A folder of ours needs torch and safetensors alone. What reads checkpoints or asks the Hub is imported when it is
needed.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from stm import backends
from stm.artifact import folder as artifact
from stm.artifact.provenance import mark
from stm.artifact.shapes import check_claims
from stm.artifact.tensors import check_tensors
from stm.config import DTYPES, Config, Size, Source, dense_schedule, in_pixels
from stm.device import pick
from stm.errors import ArtifactError, CheckpointError, HubError, UsageError, check_choice
from stm.model.positions import INTERPOLATED, interpolated, interpolation_note, interpolation_record
from stm.model.vim import ViM
from stm.model_names import File, HubFile
from stm.options import ModelOptions, as_typed
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
        case File(path):
            return _from_file(path, Source(file=path.name), options)
        case HubFile():
            try:
                return _from_hub_file(resolved, options, on_progress)
            except HubError as error:
                if resolved.path is None:
                    raise
                raise CheckpointError(
                    f"{resolved.path} is no file here, and on the Hub {error.message}", error.hint
                ) from error


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
    return _from_file(Path(path), Source(file=Path(path).name), options)


def _from_folder(folder: Path, options: ModelOptions) -> ViM:
    device = pick(options.device)
    config, tensors = artifact.read(folder)
    weights = str(folder / artifact.WEIGHTS)
    # before a model of the sizes that the config claims exists
    check_claims(config, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, weights, ArtifactError)
    config = _with_labels(config, options)
    model = ViM(config, backends.choose(options.backend, device.type))
    check_tensors(model.state_dict(), tensors, weights, ArtifactError)
    if options.image_size not in (None, config.model.image_size):
        at = _at_another_size(str(folder), config, options.image_size)
        tensors = tensors | {"pos_embed": interpolated(tensors["pos_embed"], config.model, at.model)}
        model = ViM(at, model.backend)
    return _filled(model, tensors, device, options.dtype)


def _at_another_size(where: str, config: Config, image_size: Size) -> Config:
    """Return the config of a dense folder's model at another image size.

    Raises:
        UsageError: the folder's model is compressed, or no whole number of patches fits.
    """
    own = config.model
    if config.schedule.steps:
        raise UsageError(
            f"image_size is {in_pixels(image_size)}, but the schedule of {where} is for the {own.patches} patches of"
            f" {in_pixels(own.image_size)} pixels",
            "compress the dense model at the new size instead",
        )
    if INTERPOLATED in config.extra:
        raise UsageError(
            f"image_size is {in_pixels(image_size)}, but the table of positions of {where} is interpolated already",
            "read the model that it was made of at the new size instead",
        )
    try:
        model = dataclasses.replace(own, image_size=image_size)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: {error}") from error
    over = [(side - own.patch) % own.stride for side in model.input_shape[1:]]
    if any(over):
        less = [side - part for side, part in zip(model.input_shape[1:], over, strict=True)]
        raise UsageError(
            f"image_size is {in_pixels(image_size)}, but {where} has patches of {own.patch} pixels at stride"
            f" {own.stride}, which leave pixels over",
            f"the nearest smaller size is {as_typed('image_size', less)}",
        )
    asked = config.extra.get("asked")
    notes = [*config.extra_texts("notes"), interpolation_note(own, model)]
    return dataclasses.replace(
        config,
        model=model,
        schedule=dense_schedule(model),
        preprocessing=config.preprocessing.at(image_size),
        protection=None,
        recipe=None,
        measured=(),  # at the other size
        extra=config.extra
        | {"notes": notes, INTERPOLATED: interpolation_record(own)}
        | {"asked": (asked if isinstance(asked, dict) else {}) | {"image_size": _as_json(image_size)}},
    )


def _as_json(size: Size) -> Any:
    return list(size) if isinstance(size, tuple) else size


def _from_file(path: Path, source: Source, options: ModelOptions) -> ViM:
    """Return the dense model of a checkpoint. What was asked and what was assumed stays in the config's `extra`.

    What a name told counts as asked from then on: the same file is then the same model under any name.
    """
    from stm.checkpoint.class_names import labels_beside  # none of these are part of the runtime
    from stm.checkpoint.official import read
    from stm.data.class_names import plain_names
    from stm.data.labels import imagenet

    device = pick(options.device)
    asked: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value for name, value in options.checkpoint.items()
    }
    checkpoint = read(path, **asked, repo=source.repo)
    labels = checkpoint.label_names or labels_beside(path, checkpoint.num_classes)
    if labels is None and checkpoint.num_classes == len(imagenet().labels):
        labels = imagenet().labels
    config = Config(
        model=checkpoint.model,
        num_classes=checkpoint.num_classes,
        schedule=dense_schedule(checkpoint.model),
        preprocessing=checkpoint.preprocessing,
        label_names=None if labels is None else plain_names(labels),
        source=dataclasses.replace(source, sha256=checkpoint.source_sha256),
        extra={"asked": checkpoint.by_name | asked, "notes": list(checkpoint.notes)}
        | ({} if checkpoint.trained is None else {INTERPOLATED: interpolation_record(checkpoint.trained)}),
    )
    return _filled(
        ViM(_with_labels(config, options), backends.choose(options.backend, device.type)),
        checkpoint.tensors,
        device,
        options.dtype or "float32",
    )


def _from_hub_file(checkpoint: HubFile, options: ModelOptions, on_progress: OnProgress | None) -> ViM:
    repo, file = checkpoint.repo, checkpoint.file
    from stm.checkpoint.file import shards
    from stm.checkpoint.names import INDEX
    from stm.hub.fetch import about, fetch, optional

    fetched = fetch(repo, file, revision=checkpoint.revision, token=options.token, on_progress=on_progress)
    if file.endswith(INDEX):
        for shard in shards(fetched.path):
            name = str(PurePosixPath(file).with_name(shard))
            fetch(repo, name, revision=fetched.revision, token=options.token, on_progress=on_progress)
    if checkpoint.license is None:  # the class names beside somebody's model; those of a short name are ImageNet's
        beside = str(PurePosixPath(file).with_name(artifact.CONFIG))
        optional(repo, beside, fetched.revision, token=options.token)
    card = about(repo, fetched.revision, token=options.token)
    source = Source(
        repo=repo, file=PurePosixPath(file).name, revision=fetched.revision, license=card.license or checkpoint.license
    )
    model = _from_file(fetched.path, source, options)
    extra: dict[str, Any] = {"path": file} if file != source.file else {}
    if card.datasets:
        extra["datasets"] = list(card.datasets)
    model.config = dataclasses.replace(model.config, extra=model.config.extra | extra)
    return model


def _with_labels(config: Config, options: ModelOptions) -> Config:
    """Return the config of a model whose classes have the names that were asked for."""
    if options.labels is None:
        return config
    from stm.data.class_names import given_names  # not part of the runtime

    return dataclasses.replace(config, label_names=given_names(options.labels, config.num_classes))


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
