"""What MODEL on a command line stands for, and that model ready to run."""

import dataclasses
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from stm.artifact import folder as artifact
from stm.artifact.provenance import TUNED
from stm.assets import EMBEDDED_MODEL
from stm.backends import choose
from stm.config import Config, ModelConfig, Preprocess, Source, dense_schedule
from stm.data.labels import imagenet
from stm.data.open import is_embedded
from stm.device import pick
from stm.errors import CheckpointError, UsageError
from stm.hub.aliases import ALIASES
from stm.hub.links import is_link, read_link
from stm.loading import download, is_repo, load, load_embedded, read_checkpoint, ready
from stm.model.initialize import initialize
from stm.model.vim import ViM
from stm.options import CHECKPOINT_OPTIONS, command, flag, words
from stm.progress import OnProgress

if TYPE_CHECKING:
    from stm.hub.fetch import Fetched

_FILE = re.compile(r".*\.(pth|pt|bin|ckpt|tar|safetensors)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class From:
    """How to read a model: the options that every command with a MODEL has.

    Args:
        file, revision, token: of a Hub repository.
        image_size, class_token, divide_out, ema, mean, std, crop_ratio, interpolation: of a checkpoint; see
            `stm.load_checkpoint`.
        device, dtype, backend: see `stm.load`.
    """

    file: str | None = None
    revision: str | None = None
    token: str | None = None
    image_size: int | None = None
    class_token: str | None = None
    divide_out: bool | None = None
    ema: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_ratio: float | None = None
    interpolation: str | None = None
    device: str = "auto"
    dtype: str | None = None
    backend: str = "auto"

    def given(self, name: str) -> bool:
        """Whether an option was given at all."""
        return bool(getattr(self, name) != getattr(From, name))

    def words(self) -> list[str]:
        """The options that were given, as the command line takes them; a token is not repeated."""
        return words({name: getattr(self, name) for name in From.__dataclass_fields__ if self.given(name)})


def name_of(model: str) -> str:
    """The short name of a MODEL, which a folder made of it begins with."""
    if is_link(model):
        link = read_link(model)
        model = link.file or link.repo
    path = Path(model)
    if _FILE.fullmatch(path.name):
        return path.name.removesuffix("".join(path.suffixes[-1:])) or path.name
    return Path(os.path.abspath(path)).name


def model_of(folder: str) -> str:
    """The MODEL that means a folder, also where an alias has its name."""
    return f"./{folder}" if folder == EMBEDDED_MODEL or folder in ALIASES else folder


def find_default() -> str:
    """The folder to evaluate where none is named: the current one, else the only one below it, else the embedded model.

    Raises:
        UsageError: several folders below the current one hold a model.
    """
    if artifact.is_model("."):
        return "."
    below = sorted(
        entry.name
        for entry in os.scandir(".")
        if entry.is_dir() and not entry.name.startswith(".") and artifact.is_model(entry.path)
    )
    if len(below) > 1:
        raise UsageError(
            f"no model was named, and {len(below)} folders here hold one: {', '.join(below)}",
            command("eval", model_of(below[0]), {}),
        )
    return model_of(below[0]) if below else EMBEDDED_MODEL


def open_model(model: str, options: From, on_progress: OnProgress | None = None) -> ViM:
    """The model that MODEL names: an alias, a folder, a checkpoint file, a Hub repository with either, or a link to
    one.

    A name of an alias means the alias; write `./NAME` for a file or folder of that name. `on_progress` is told of
    downloads.

    Raises:
        UsageError: options that do not belong to what MODEL is.
        CheckpointError, ArtifactError, HubError: it cannot be read.
    """
    if model == EMBEDDED_MODEL:
        _refuse(model, options, "the embedded model", "file", "revision", *CHECKPOINT_OPTIONS)
        return load_embedded(device=options.device, dtype=options.dtype, backend=options.backend)
    if model in ALIASES:
        alias = ALIASES[model]
        return _from_hub(
            alias.repo, dataclasses.replace(options, file=options.file or alias.file), alias.license, on_progress
        )
    if is_link(model):
        link = read_link(model)
        for name in ("file", "revision"):
            if getattr(link, name) is not None:
                _refuse(model, options, f"a link that says its {name}", name)
        file, revision = link.file or options.file, link.revision or options.revision
        return _from_hub(link.repo, dataclasses.replace(options, file=file, revision=revision), None, on_progress)
    path = Path(model)
    if path.is_dir() or artifact.is_model(path):
        _refuse(model, options, "a folder", "file", "revision", *CHECKPOINT_OPTIONS)
        return load(path, device=options.device, dtype=options.dtype, backend=options.backend)
    if path.exists() or not is_repo(model) or _FILE.fullmatch(model):
        _refuse(model, options, "a file", "file", "revision")
        if not path.exists() and os.sep not in model and not _FILE.fullmatch(model):
            known = ", ".join((EMBEDDED_MODEL, *ALIASES))
            raise CheckpointError(
                f"{model} is neither a file or folder here nor an alias",
                f"the aliases are {known}; a Hub repository is user/name",
            )
        return _from_file(path, Source(file=path.name), options)
    return _from_hub(model, options, None, on_progress)


def draw_model(model: str, options: From) -> ViM:
    """The model that an alias names, with fresh weights: for what depends on its shape alone. Nothing is downloaded.

    Raises:
        UsageError: MODEL is no alias of a checkpoint, or options that do not belong to it.
    """
    if model not in ALIASES:
        raise UsageError(f"--random-weights was given, but {model} is not one of {', '.join(ALIASES)}", "leave it out")
    alias = ALIASES[model]
    _refuse(
        model,
        options,
        "drawn with random weights",
        "file",
        "revision",
        "ema",
        "mean",
        "std",
        "crop_ratio",
        "interpolation",
    )
    place = pick(options.device)
    try:
        shape = ModelConfig(
            image_size=options.image_size or alias.image_size,
            patch=alias.patch,
            stride=alias.stride,
            d_model=alias.d_model,
            depth=24,
            dt_rank=math.ceil(alias.d_model / 16),
            class_token=options.class_token or "middle",
            divide_out=options.divide_out is not False,
        )
    except ValueError as error:
        raise UsageError(f"{model}: {error}") from error
    config = Config(
        model=shape,
        num_classes=len(imagenet().labels),
        schedule=dense_schedule(shape),
        preprocessing=Preprocess.official(shape.image_size),
        source=Source(repo=alias.repo, license=alias.license),
        extra={"notes": ["its weights are random: only its speed means anything"]},
    )
    return ready(initialize(ViM(config, choose(options.backend, place.type))), place, options.dtype)


def _refuse(model: str, options: From, what: str, *names: str) -> None:
    """No option is ignored."""
    for name in names:
        if options.given(name):
            raise UsageError(
                f"{flag(name, getattr(options, name))} was given, but {model} is {what}, which does not take it"
            )


def _from_hub(repo: str, options: From, license: str | None, on_progress: OnProgress | None) -> ViM:
    from stm.hub.fetch import about, fetch, list_files, only_checkpoint  # huggingface_hub takes a while to import

    file, revision, token = options.file, options.revision, options.token
    if file is None:
        names = list_files(repo, revision=revision, token=token)
        if {artifact.CONFIG, artifact.WEIGHTS} <= set(names):
            config = download(repo, revision=revision, token=token, on_progress=on_progress)
            if artifact.is_model(config.path.parent):
                return _from_hub_folder(config, options)
        file = only_checkpoint(repo, names)
    found = fetch(repo, file, revision=revision, token=token, on_progress=on_progress)
    card = about(repo, found.revision, token=token)
    source = Source(repo=repo, file=PurePosixPath(file).name, revision=found.revision, license=card.license or license)
    model = _from_file(found.path, source, options)
    extra: dict[str, Any] = {"path": file} if file != source.file else {}
    if card.datasets:
        extra["datasets"] = list(card.datasets)
    model.config = dataclasses.replace(model.config, extra=model.config.extra | extra)
    return model


def _from_hub_folder(config: "Fetched", options: From) -> ViM:
    """A model that stm wrote. The repository is the source of a dense one that knows of no other repository."""
    _refuse(config.repo, options, "a folder that stm wrote", *CHECKPOINT_OPTIONS)
    model = load(config.path.parent, device=options.device, dtype=options.dtype, backend=options.backend)
    if model.plan is None and model.config.source.repo is None and not is_embedded(model.config):
        from stm.hub.fetch import about

        known, sha256 = model.config.source, model.config.files[artifact.WEIGHTS].sha256
        license = known.license or about(config.repo, config.revision, token=options.token).license
        source = Source(
            repo=config.repo, file=artifact.WEIGHTS, revision=config.revision, sha256=sha256, license=license
        )
        extra = {
            key: value for key, value in model.config.extra.items() if key != TUNED
        }  # these are the source's own weights
        model.config = dataclasses.replace(model.config, source=source, extra=extra)
    return model


def read_recipe(folder_or_repo: str | Path, options: From) -> Config:
    """What a model's folder says, on this machine or in a Hub repository."""
    text = str(folder_or_repo)
    if not Path(text).exists() and is_repo(text):
        return artifact.read_config(download(text, token=options.token).path.parent)
    return artifact.read_config(text)


def _from_file(path: Path, source: Source, options: From) -> ViM:
    asked = {name: getattr(options, name) for name in CHECKPOINT_OPTIONS} | {"ema": options.ema or None}
    return read_checkpoint(
        path, source, asked, device=options.device, dtype=options.dtype or "float32", backend=options.backend
    )
