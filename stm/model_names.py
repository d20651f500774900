"""What MODEL means: the grammar of a model's name, on the command line and in Python, is parsed here and nowhere else.

A MODEL is the embedded model, a short name, a link, a repository of the Hub, a folder that stm wrote, or a checkpoint
file.
"""

import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from stm.artifact import folder as artifact
from stm.assets import EMBEDDED_MODEL
from stm.errors import CheckpointError
from stm.hub.aliases import ALIASES, ENDINGS
from stm.options import CHECKPOINT_OPTIONS, FILE_OPTIONS, ModelOptions

_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_IN_REPO = re.compile(r"(\w[\w.-]*/\w[\w.-]*)/(.+)")
_LINK = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class Embedded:
    """The model that comes with the package."""


@dataclass(frozen=True)
class Folder:
    """A folder that stm wrote."""

    path: Path


@dataclass(frozen=True)
class File:
    """A checkpoint on this machine."""

    path: Path


@dataclass(frozen=True)
class HubFile:
    """A checkpoint in a repository of the Hub.

    Args:
        revision: a branch, tag or commit; None: the main branch.
        license: what the table of short names says, for a card whose header says nothing.
        path: the name as it was given, if it may also be that of a file on this machine that is not there.
    """

    repo: str
    file: str
    revision: str | None
    license: str | None = None
    path: str | None = None


@dataclass(frozen=True)
class HubRepo:
    """A repository of the Hub: what it holds decides whether it is a folder of ours or a checkpoint."""

    repo: str
    revision: str | None


ModelName = Embedded | Folder | File | HubFile | HubRepo


def parse(model: str | os.PathLike[str], options: ModelOptions) -> ModelName:
    """Return what a MODEL names; nothing is asked of the Hub.

    A short name wins over a file or folder of that name: write `./NAME` for those. A `pathlib.Path` is always a path.

    Raises:
        UsageError: options that this kind of MODEL does not take, or a link to another host than the Hub.
        CheckpointError: the name is none of these.
    """
    text = os.fspath(model)
    if isinstance(model, str):
        if text == EMBEDDED_MODEL:
            options.refuse(text, "the embedded model", "file", "revision", *CHECKPOINT_OPTIONS)
            return Embedded()
        if text in ALIASES:
            alias = ALIASES[text]
            return HubFile(alias.repo, options.file or alias.file, options.revision, alias.license)
        if _LINK.match(text):
            return _linked(text, options)
    path = Path(text)
    if path.is_dir() and not artifact.is_model(path) and (file := _weights_in(path)) is not None:
        options.refuse(text, "a folder", "file", "revision")
        return File(file)
    if path.is_dir() or artifact.is_model(path):
        options.refuse(text, "a folder", "file", "revision", *FILE_OPTIONS)
        return Folder(path)
    if isinstance(model, str) and not path.exists() and is_repo(text) and not _is_file(text):
        return (
            HubRepo(text, options.revision) if options.file is None else HubFile(text, options.file, options.revision)
        )
    inside = _IN_REPO.fullmatch(text) if isinstance(model, str) and _is_file(text) else None
    # A path in a folder that is here is a path. Elsewhere it reads as the Hub's own names of files.
    if inside is not None and not path.exists() and not Path(path.parts[0]).exists() and ".." not in path.parts:
        options.refuse(text, "a file in a repository", "file")
        return HubFile(inside[1], inside[2], options.revision, path=text)
    options.refuse(text, "a file", "file", "revision")
    if isinstance(model, str) and not path.exists() and os.sep not in text and not _is_file(text):
        aliases = (EMBEDDED_MODEL, *ALIASES)
        near = get_close_matches(text.lower(), aliases, n=1)
        raise CheckpointError(
            f"{text} is neither a file or folder here nor an alias",
            f"{f'did you mean {near[0]}? ' if near else ''}the aliases are {', '.join(aliases)}; a Hub repository is"
            " user/name",
        )
    return File(path)


def _weights_in(folder: Path) -> Path | None:
    """Return the one file of weights in a folder that a trainer left; None if there is none or several."""
    from stm.checkpoint.names import weights_among  # not part of the runtime

    if (folder / artifact.WEIGHTS).exists() and not (folder / artifact.CONFIG).exists():
        return None  # what is left of a folder of ours
    weights = weights_among(sorted(each.name for each in folder.iterdir() if each.is_file()))
    return folder / weights[0] if len(weights) == 1 else None


def _linked(text: str, options: ModelOptions) -> ModelName:
    from stm.hub.links import read_link  # the runtime does without the Hub

    link = read_link(text)
    for name in ("file", "revision"):
        if getattr(link, name) is not None:
            options.refuse(text, f"a link that says its {name}", name)
    file, revision = link.file or options.file, link.revision or options.revision
    return HubRepo(link.repo, revision) if file is None else HubFile(link.repo, file, revision)


def _is_file(name: str) -> bool:
    """Return whether a name is that of a file of weights."""
    return name.lower().endswith((*ENDINGS, ".tar"))  # a .tar of shards has no name among MODELs


def is_repo(name: str) -> bool:
    """Return whether a name has the form of a Hub repository's: user/name."""
    return _REPO.fullmatch(name) is not None


def name_of(model: str) -> str:
    """Return the short name of a MODEL, with which the name of a folder made of it begins."""
    if _LINK.match(model):
        from stm.hub.links import read_link

        link = read_link(model)
        model = link.file or link.repo
    path = Path(model)
    if _is_file(path.name):
        return path.name.removesuffix("".join(path.suffixes[-1:])) or path.name
    return Path(os.path.abspath(path)).name


def model_of(folder: str) -> str:
    """Name a folder unambiguously: prefix `./` if its name is also a short name."""
    return f"./{folder}" if folder == EMBEDDED_MODEL or folder in ALIASES else folder
