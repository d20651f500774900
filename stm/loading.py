"""From files to a model and back: folders, Hub repositories, checkpoints."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stm import backends
from stm.artifact import atomic
from stm.artifact import folder as artifact
from stm.artifact.provenance import mark
from stm.artifact.tensors import check_claims, check_tensors
from stm.assets import EMBEDDED_MODEL, FOLDER
from stm.config import DTYPES, Config, Source, dense_schedule
from stm.device import pick
from stm.errors import ArtifactError, HubError, UsageError
from stm.model.vim import ViM
from stm.progress import OnProgress

if TYPE_CHECKING:
    from stm.hub.fetch import Fetched


def load(
    folder_or_repo: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    device: str = "auto",
    dtype: str | None = None,
    backend: str = "auto",
) -> ViM:
    """A model from a folder that stm wrote, or from a Hub repository that holds one; in evaluation mode.

    Its weights require a gradient, as everywhere in PyTorch: `train()` and an optimizer train it.

    Args:
        folder_or_repo: a folder; else `user/name`, or `vim-digits`, the model that comes with the package.
        revision: of a repository: a branch, tag or commit.
        token: of the Hub, for a repository that needs one.
        device: as torch names it; "auto" takes a GPU where there is one.
        dtype: of the GEMMs' weights: float32, bfloat16 or float16; by default what the folder holds.
        backend: who computes the scan; see `stm env`.

    Raises:
        ArtifactError: the folder is missing, incomplete or not what was written.
        HubError: the repository cannot be read.
        UsageError: a revision of a local folder.
    """
    if str(folder_or_repo) == EMBEDDED_MODEL and not atomic.find(Path(EMBEDDED_MODEL)).exists():
        return load_embedded(device=device, dtype=dtype, backend=backend)
    folder = Path(folder_or_repo)
    if not atomic.find(folder).exists() and is_repo(str(folder_or_repo)):
        folder = download(str(folder_or_repo), revision=revision, token=token).path.parent
    elif revision is not None:
        raise UsageError(f"revision was given, but {folder} is no repository of the Hub (user/name)")
    place = pick(device)
    config, tensors = artifact.read(folder)
    weights = str(folder / artifact.WEIGHTS)
    check_claims(config, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, weights, ArtifactError)
    model = ViM(config, backends.choose(backend, place.type))
    check_tensors(model.state_dict(), tensors, weights, ArtifactError)
    return _ready(model, tensors, place, dtype)


def load_embedded(*, device: str = "auto", dtype: str | None = None, backend: str = "auto") -> ViM:
    """The model that comes with the package; options as for `load`. Its source is its own weights."""
    model = load(FOLDER / EMBEDDED_MODEL, device=device, dtype=dtype, backend=backend)
    source = dataclasses.replace(
        model.config.source, file=EMBEDDED_MODEL, sha256=model.config.files[artifact.WEIGHTS].sha256
    )
    model.config = dataclasses.replace(model.config, source=source)
    return model


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    class_token: str | None = None,
    divide_out: bool | None = None,
    ema: bool = False,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    crop_ratio: float | None = None,
    interpolation: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    backend: str = "auto",
) -> ViM:
    """A dense model from a ViM checkpoint: a trainer's pickle, a state dict or safetensors; in evaluation mode.

    The shape comes from the tensors. What they cannot tell comes from the arguments, else from the trainer's settings
    in the file, else from the file's name: `vim_..._midclstok`, `videomamba_..._res224to448`.

    Args:
        image_size: side of the input, in pixels.
        class_token: "middle" (ViM) or "head" (VideoMamba).
        divide_out: whether the two directions are averaged (ViM) or added (VideoMamba).
        ema: take the trainer's averaged weights (`model_ema`).
        mean, std: of the images in 0 to 1: a number, or one per channel.
        crop_ratio: of the crop's side to the resized short side, 0.1 to 1.
        interpolation: "bicubic", "bilinear" or "nearest".
        dtype, device, backend: as for `load`.

    Raises:
        CheckpointError: not a checkpoint, not a ViM that is run, or damaged; or nothing tells which of the two it is:
            give `class_token` and `divide_out`.
        UsageError: an argument that cannot be, or that the tensors contradict.
    """
    asked = {
        "image_size": image_size,
        "class_token": class_token,
        "divide_out": divide_out,
        "ema": ema or None,
        "mean": mean,
        "std": std,
        "crop_ratio": crop_ratio,
        "interpolation": interpolation,
    }
    return read_checkpoint(path, Source(file=Path(path).name), asked, device=device, dtype=dtype, backend=backend)


def read_checkpoint(
    path: str | os.PathLike[str],
    source: Source,
    asked: Mapping[str, Any],
    *,
    device: str = "auto",
    dtype: str = "float32",
    backend: str = "auto",
) -> ViM:
    """As `load_checkpoint`, from a known source. What was asked (None: nothing) and assumed is kept in the config's
    `extra`.

    What a name told is kept as if it was asked: the same file is then the same model under any name.
    """
    from stm.checkpoint.official import read  # not part of the runtime
    from stm.data.labels import imagenet

    place = pick(device)
    asked = {
        name: list(value) if isinstance(value, tuple) else value for name, value in asked.items() if value is not None
    }
    checkpoint = read(Path(path), **asked, repo=source.repo)
    config = Config(
        model=checkpoint.model,
        num_classes=checkpoint.num_classes,
        schedule=dense_schedule(checkpoint.model),
        preprocessing=checkpoint.preprocessing,
        label_names=imagenet().labels if checkpoint.num_classes == len(imagenet().labels) else None,
        source=dataclasses.replace(source, sha256=checkpoint.source_sha256),
        extra={"asked": checkpoint.by_name | asked, "notes": list(checkpoint.notes)},
    )
    return _ready(ViM(config, backends.choose(backend, place.type)), checkpoint.tensors, place, dtype)


def _ready(model: ViM, tensors: dict[str, Tensor], place: torch.device, dtype: str | None) -> ViM:
    """The model with its weights, where and as they were asked for, in evaluation mode."""
    model.load_state_dict(tensors, assign=True)
    return ready(model, place, dtype)


def ready(model: ViM, place: torch.device, dtype: str | None) -> ViM:
    """A model that has its weights, where and as they were asked for, in evaluation mode.

    Raises:
        UsageError: a dtype that no model has.
    """
    if dtype is not None:
        if dtype not in DTYPES:
            raise UsageError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
        model.cast(dtype)
    if model.mark is None:
        model.mark = mark(model, model.config)
    return model.to(place).eval()


def is_repo(name: str) -> bool:
    """Whether a name has the form of a Hub repository's: user/name."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def download(
    repo: str, *, revision: str | None = None, token: str | None = None, on_progress: OnProgress | None = None
) -> "Fetched":
    """The config of a repository, with its weights beside it in the cache where the config is one that stm wrote.

    Raises:
        HubError: they cannot be had, or huggingface_hub is not installed.
    """
    try:
        from stm.hub.fetch import fetch  # the runtime does without
    except ImportError as error:
        raise HubError(
            f"{repo} is not a local folder, and reading it from the Hub needs huggingface_hub",
            "pip install huggingface_hub",
        ) from error
    config = fetch(repo, artifact.CONFIG, revision=revision, token=token, on_progress=on_progress)
    if artifact.is_model(config.path.parent):
        fetch(repo, artifact.WEIGHTS, revision=config.revision, token=token, on_progress=on_progress)
    return config
