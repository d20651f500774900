"""Return the config that loading a model would give it. No tensor is made, and nothing here needs torch.

The config of a folder is read and held to the hash and the header of its weights. That of a checkpoint follows from
the headers of its tensors, and from the settings beside them.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from stm.artifact import folder as artifact
from stm.config import Config, Size, Source, dense_schedule, in_pixels
from stm.errors import CheckpointError, HubError, StmError, UsageError
from stm.model.positions import INTERPOLATED, interpolation_note, interpolation_record
from stm.model_names import File, HubFile
from stm.options import ModelOptions, as_typed
from stm.progress import OnProgress
from stm.resolving import Ours, resolve

if TYPE_CHECKING:
    from stm.checkpoint.contents import Contents


class Local(NamedTuple):
    """A checkpoint on this machine, where it is from, and what its config's `extra` says beside."""

    path: Path
    source: Source
    extra: Mapping[str, Any] = MappingProxyType({})

    @contextmanager
    def named(self) -> Iterator[None]:
        """Within it, an error of a file of the Hub names the repository and the file, not the path in the cache."""
        try:
            yield
        except StmError as error:
            if self.source.repo is not None:
                own = f"{self.source.repo}/{self.extra.get('path', self.source.file)}"
                error.message = error.message.replace(str(self.path), own)
                error.hint = None if error.hint is None else error.hint.replace(str(self.path), own)
                error.args = (error.message,)
            raise


def describe(
    model: str | os.PathLike[str], options: ModelOptions = ModelOptions(), on_progress: OnProgress | None = None
) -> Config:
    """Return the config of the model that a MODEL names, as loading it would.

    Raises:
        StmError: as `stm.load`.
    """
    match resolve(model, options, on_progress):
        case Ours(path, sourced):
            return sourced(as_asked(str(path), artifact.describe(path), options))
        case checkpoint:
            from stm.checkpoint.contents import describe as contents_of  # not part of the runtime

            here = local(checkpoint, options, on_progress)
            with here.named():
                contents = contents_of(here.path, **options.checkpoint, repo=here.source.repo)
                return of_checkpoint(here, contents, options)


def local(resolved: File | HubFile, options: ModelOptions, on_progress: OnProgress | None = None) -> Local:
    """Return the checkpoint that `resolve` returned, fetched if it is on the Hub.

    Raises:
        StmError: as `stm.load`.
    """
    if isinstance(resolved, File):
        return Local(resolved.path, Source(file=resolved.path.name))
    try:
        return _fetched(resolved, options, on_progress)
    except HubError as error:
        if resolved.path is None:
            raise
        raise CheckpointError(f"{resolved.path} is no file here, and on the Hub {error.message}", error.hint) from error


def of_checkpoint(checkpoint: Local, contents: "Contents", options: ModelOptions) -> Config:
    """Return the config of a checkpoint's dense model. What was asked and what was assumed stays in its `extra`.

    What a name told counts as asked from then on: the same file is then the same model under any name.
    """
    from stm.checkpoint.class_names import labels_beside  # none of these are part of the runtime
    from stm.data.class_names import plain_names
    from stm.data.labels import imagenet

    asked = {name: list(value) if isinstance(value, tuple) else value for name, value in options.checkpoint.items()}
    labels = contents.label_names or labels_beside(checkpoint.path, contents.num_classes)
    if labels is None and contents.num_classes == len(imagenet().labels):
        labels = imagenet().labels
    config = Config(
        model=contents.model,
        num_classes=contents.num_classes,
        schedule=dense_schedule(contents.model),
        preprocessing=contents.preprocessing,
        label_names=None if labels is None else plain_names(labels),
        source=dataclasses.replace(checkpoint.source, sha256=contents.source_sha256),
        extra={"asked": contents.by_name | asked, "notes": list(contents.notes)}
        | ({} if contents.trained is None else {INTERPOLATED: interpolation_record(contents.trained)})
        | dict(checkpoint.extra),
    )
    return _with_labels(config, options)


def as_asked(where: str, config: Config, options: ModelOptions) -> Config:
    """Return a folder's config at the image size and with the class names that were asked for.

    Raises:
        UsageError: the folder's model is compressed, or no whole number of patches fits; or the names do not.
    """
    config = _with_labels(config, options)
    if options.image_size in (None, config.model.image_size):
        return config
    return _at_another_size(where, config, options.image_size)


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


def _with_labels(config: Config, options: ModelOptions) -> Config:
    """Return the config of a model whose classes have the names that were asked for."""
    if options.labels is None:
        return config
    from stm.data.class_names import given_names  # not part of the runtime

    return dataclasses.replace(config, label_names=given_names(options.labels, config.num_classes))


def _fetched(checkpoint: HubFile, options: ModelOptions, on_progress: OnProgress | None) -> Local:
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
    extra: dict[str, Any] = {"path": file} if file != source.file else {}
    if card.datasets:
        extra["datasets"] = list(card.datasets)
    return Local(fetched.path, source, extra)
