"""From a MODEL to what is on this machine: a folder that stm wrote, or a checkpoint. What must be fetched is fetched.

No tensor is read and nothing here needs torch, so that `stm info` describes a model without waiting for it.
"""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stm.artifact import folder as artifact
from stm.artifact.provenance import TUNED
from stm.assets import EMBEDDED_MODEL, FOLDER
from stm.config import Config, Source
from stm.errors import HubError
from stm.model_names import Embedded, File, Folder, HubFile, HubRepo, parse
from stm.options import FILE_OPTIONS, ModelOptions
from stm.progress import OnProgress

if TYPE_CHECKING:
    from stm.hub.fetch import Fetched


@dataclass(frozen=True)
class Ours:
    """A folder that stm wrote. `sourced` adds to its config what its place tells of its source."""

    path: Path
    sourced: Callable[[Config], Config] = lambda config: config


def resolve(
    model: str | os.PathLike[str], options: ModelOptions = ModelOptions(), on_progress: OnProgress | None = None
) -> Ours | File | HubFile:
    """Return the folder or the checkpoint that a MODEL names.

    The folder of a repository is in the cache by then; the checkpoint of one is not fetched yet.

    Args:
        on_progress: told of downloads.

    Raises:
        StmError: as `stm.load`.
    """
    match parse(model, options):
        case Embedded():
            return Ours(FOLDER / EMBEDDED_MODEL, _embedded)
        case Folder(path):
            return Ours(path)
        case HubRepo(repo, revision):
            return _in_repo(repo, revision, options, on_progress)
        case resolved:
            return resolved


def download(
    repo: str, *, revision: str | None = None, token: str | None = None, on_progress: OnProgress | None = None
) -> "Fetched":
    """Fetch the config of a repository, and its weights beside it in the cache if stm wrote the config.

    Raises:
        HubError: they cannot be fetched, or huggingface_hub is not installed.
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


def _embedded(config: Config) -> Config:
    """Return the config of the model that comes with the package. Its source is its own weights."""
    sha256 = config.files[artifact.WEIGHTS].sha256
    return dataclasses.replace(config, source=dataclasses.replace(config.source, file=EMBEDDED_MODEL, sha256=sha256))


def _in_repo(repo: str, revision: str | None, options: ModelOptions, on_progress: OnProgress | None) -> Ours | HubFile:
    """Return what a repository holds: a folder that stm wrote, else the only checkpoint in it."""
    from stm.hub.fetch import list_files, only_checkpoint  # huggingface_hub takes a while to import

    names = list_files(repo, revision=revision, token=options.token)
    if {artifact.CONFIG, artifact.WEIGHTS} <= set(names):
        fetched = download(repo, revision=revision, token=options.token, on_progress=on_progress)
        if artifact.is_model(fetched.path.parent):
            options.refuse(repo, "a folder that stm wrote", *FILE_OPTIONS)
            return Ours(fetched.path.parent, lambda config: _of_repo(config, fetched, options.token))
    return HubFile(repo, only_checkpoint(repo, names), revision)


def _of_repo(config: Config, fetched: "Fetched", token: str | None) -> Config:
    """Return a config with the repository as the source of a dense model that knows of no other repository."""
    source = config.source
    if config.protection is not None or source.repo is not None or source.file == EMBEDDED_MODEL:
        return config
    from stm.hub.fetch import about

    return dataclasses.replace(
        config,
        source=Source(
            repo=fetched.repo,
            file=artifact.WEIGHTS,
            revision=fetched.revision,
            sha256=config.files[artifact.WEIGHTS].sha256,
            license=source.license or about(fetched.repo, fetched.revision, token=token).license,
        ),
        # the mark of a fine-tuned model goes: these are the source's own weights
        extra={key: value for key, value in config.extra.items() if key != TUNED},
    )
