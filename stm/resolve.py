"""What MODEL on a command line stands for, and that model ready to run."""

import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path

from stm import artifact
from stm.assets import FOLDER
from stm.config import Source
from stm.errors import CheckpointError, UsageError
from stm.hub.aliases import ALIASES
from stm.loading import load, read_checkpoint
from stm.measure.data import EMBEDDED_MODEL
from stm.model import ViM
from stm.reports import OnProgress

CHECKPOINT_OPTIONS = ("image_size", "class_token", "divide_out", "ema")
_FILE = re.compile(r".*\.(pth|pt|bin|ckpt|tar|safetensors)", re.IGNORECASE)
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class From:
    """How to read a model: the options that every command with a MODEL has.

    Args:
        file, revision, token: of a Hub repository.
        image_size, class_token, divide_out, ema: of a checkpoint; see `stm.load_checkpoint`.
        device, dtype, backend: see `stm.load`.
    """

    file: str | None = None
    revision: str | None = None
    token: str | None = None
    image_size: int | None = None
    class_token: str | None = None
    divide_out: bool | None = None
    ema: bool = False
    device: str = "auto"
    dtype: str | None = None
    backend: str = "auto"

    def given(self, name: str) -> bool:
        """Whether an option was given at all."""
        return bool(getattr(self, name) != getattr(From, name))


def name_of(model: str) -> str:
    """The short name of a MODEL, which a folder made of it begins with."""
    path = Path(model)
    if _FILE.fullmatch(path.name):
        return path.name.removesuffix("".join(path.suffixes[-1:])) or path.name
    return Path(os.path.abspath(path)).name


def find_default() -> str:
    """The folder to evaluate where none is named: the current one, else the only one below it, else the embedded model.

    Raises:
        UsageError: several folders below the current one hold a model.
    """
    if artifact.is_model("."):
        return "."
    below = sorted(
        entry.name for entry in os.scandir(".") if entry.is_dir() and not entry.name.startswith(".") and artifact.is_model(entry.path)
    )
    if len(below) > 1:
        raise UsageError(f"no model was named, and {len(below)} folders here hold one: {', '.join(below)}", f"stm eval {below[0]}")
    return below[0] if below else EMBEDDED_MODEL


def open_model(model: str, options: From, on_progress: OnProgress | None = None) -> ViM:
    """The model that MODEL names: an alias, a folder, a checkpoint file, or a checkpoint in a Hub repository.

    A name of an alias means the alias; write `./NAME` for a file or folder of that name. `on_progress` is told of downloads.

    Raises:
        UsageError: options that do not belong to what MODEL is.
        CheckpointError, ArtifactError, HubError: it cannot be read.
    """
    if model == EMBEDDED_MODEL:
        _refuse(model, options, "the embedded model", "file", "revision", *CHECKPOINT_OPTIONS)
        return _embedded(options)
    if model in ALIASES:
        alias = ALIASES[model]
        return _from_hub(alias.repo, dataclasses.replace(options, file=options.file or alias.file), alias.license, on_progress)
    path = Path(model)
    if path.is_dir() or artifact.is_model(path):
        _refuse(model, options, "a folder", "file", "revision", *CHECKPOINT_OPTIONS)
        return load(path, device=options.device, dtype=options.dtype, backend=options.backend)
    if path.exists() or not _REPO.fullmatch(model) or _FILE.fullmatch(model):
        _refuse(model, options, "a file", "file", "revision")
        if not path.exists() and os.sep not in model and not _FILE.fullmatch(model):
            known = ", ".join((EMBEDDED_MODEL, *ALIASES))
            raise CheckpointError(
                f"{model} is neither a file or folder here nor an alias", f"the aliases are {known}; a Hub repository is user/name"
            )
        return _from_file(path, Source(file=path.name), options)
    return _from_hub(model, options, None, on_progress)


def _refuse(model: str, options: From, what: str, *names: str) -> None:
    """No option is ignored."""
    for name in names:
        if options.given(name):
            flag = "no-divide-out" if name == "divide_out" else name.replace("_", "-")
            raise UsageError(f"--{flag} was given, but {model} is {what}, which does not take it")


def _embedded(options: From) -> ViM:
    folder = FOLDER / EMBEDDED_MODEL
    model = load(folder, device=options.device, dtype=options.dtype, backend=options.backend)
    weights = model.config.files[artifact.WEIGHTS]
    source = dataclasses.replace(model.config.source, file=EMBEDDED_MODEL, sha256=weights.sha256)
    model.config = dataclasses.replace(model.config, source=source)
    return model


def _from_hub(repo: str, options: From, license: str | None, on_progress: OnProgress | None) -> ViM:
    from stm.hub.fetch import fetch, find_checkpoint  # huggingface_hub takes a while to import

    file = options.file or find_checkpoint(repo, revision=options.revision, token=options.token)
    found = fetch(repo, file, revision=options.revision, token=options.token, on_progress=on_progress)
    source = Source(repo=repo, file=Path(found.file).name, revision=found.revision, license=found.license or license)
    return _from_file(found.path, source, options)


def _from_file(path: Path, source: Source, options: From) -> ViM:
    asked = {name: getattr(options, name) for name in CHECKPOINT_OPTIONS} | {"ema": options.ema or None}
    return read_checkpoint(path, source, asked, device=options.device, dtype=options.dtype or "float32", backend=options.backend)
