"""Read sample sets in place from shards, parquet or WebDataset's tar files.

Nothing is unpacked, and nothing from the Hub is kept on disk.

    stream:hf:USER/SET[@REVISION][:SPLIT]      a set of the Hub
    set.parquet, "folder/val-*.tar"            files on this machine

Each shard is looked through once, for the position and the label of each image. In parquet that costs the column of
labels. A tar file has no list of its content, so the whole file passes by. If several processes work, each looks
through its share of the shards.

After that the set is like any other. It has a length, `limit` draws from all of it, only the process that measures a
batch reads the batch, and a run that stopped goes on without reading again what it has.
"""

import glob
import json
import os
import re
import tarfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from stm.config import Config
from stm.data.folders import Found, as_set
from stm.data.formats import SUFFIXES
from stm.data.hub_sets import (
    LABEL_NAMES,
    LABEL_QUERY,
    choose_shards,
    is_missing,
    label_indices,
    need_pyarrow,
    parquet_samples,
    sorted_names,
    split_of,
    with_split,
)
from stm.data.images import Sample, TarImage, open_shard
from stm.data.labels import spelled
from stm.data.ranges import HubFile
from stm.data.sets import SampleSet
from stm.data.unpack import Bounded, Limits
from stm.distributed import ALONE, World
from stm.errors import DataError, UsageError, listed, said
from stm.hub.aliases import read_set_name
from stm.hub.errors import Request, check_token
from stm.hub.guard import HubIsStrange
from stm.hub.reach import asking, persist
from stm.options import SetOptions
from stm.progress import OnProgress, Progress

PREFIX = "stream:"
ENDINGS = (".parquet", ".tar")
MOST_LABEL = 16 << 20  # bytes of a sample's .cls or .json


def is_stream(spec: str) -> bool:
    """Return whether a name has the form of a set that is read in place."""
    return spec.startswith(PREFIX) or spec.endswith(ENDINGS)


def open_stream(
    spec: str,
    *,
    config: Config,
    need_labels: bool = True,
    how: SetOptions = SetOptions(),
    token: str | None = None,
    world: World = ALONE,
    on_progress: OnProgress | None = None,
) -> SampleSet:
    """Return the set of a name, with its shards looked through.

    Args:
        spec: the name; the module's docstring lists the forms.
        config: of the model that will see the images.
        need_labels: if False, no image has a label.
        how: the split; the columns in parquet, or the label's key in a tar file's .json.
        world: the processes that all open this set.

    Raises:
        UsageError: the name has another form, or the set does not have the split.
        HubError: the Hub does not give the set.
        DataError: the set holds no images and labels that fit the model, or reading it needs pyarrow.
    """
    if spec.startswith(PREFIX):
        name, shards = _of_hub(spec.removeprefix(PREFIX), how.split, token)
    else:
        name, shards = _of_disk(spec, how.split)
    if any(shard.name.endswith(".parquet") for shard in shards):
        need_pyarrow(name)
    looked_at = 0

    def look(shard: Path | HubFile) -> Found:
        nonlocal looked_at
        try:
            if shard.name.endswith(".parquet"):
                content = parquet_samples(shard, _called(shard), config, need_labels, how)
            else:
                content = tar_samples(shard, _called(shard), config, need_labels, how)
        except OSError as error:
            raise DataError(f"{_called(shard)} cannot be read: {error.strerror or error}") from error
        # The other processes look through their shares as fast, so this one reports for all without asking them.
        looked_at = min(looked_at + world.size, len(shards))
        if on_progress is not None:
            on_progress(Progress("look through", looked_at, len(shards), "files"))
        return content

    return as_set(name, world.map(look, shards))


def _called(shard: Path | HubFile) -> str:
    return shard.file if isinstance(shard, HubFile) else shard.name


def _of_disk(spec: str, split: str | None) -> tuple[str, Sequence[Path | HubFile]]:
    if Path(spec).is_dir():
        raise DataError(
            f"{spec} is a folder, expected a parquet or tar file", f'name the files in it: "{spec}/*.parquet"'
        )
    # A path that exists is taken as it is, even if it has the characters of a pattern. `open_shard` refuses non-files.
    paths = (
        [Path(spec)]
        if os.path.lexists(spec)
        else sorted(Path(path) for path in glob.glob(spec) if not Path(path).is_dir())
    )
    if not paths:
        raise DataError(
            f"{spec} does not exist, expected a parquet or tar file, or a pattern of several",
            'quote a pattern: "val-*.tar"',
        )
    if split is not None:
        splits = {path: split_of(path.name) for path in paths}
        wanted = spelled(split, {*splits.values()})
        paths = [path for path in paths if splits[path] == wanted]
        if not paths:
            held = listed(dict.fromkeys(splits.values()))
            raise UsageError(f"{spec} has no split {split}, only {held}", "leave --split out, or name the files of one")
    return Path(spec).name, paths


def _of_hub(spec: str, split: str | None, token: str | None) -> tuple[str, Sequence[Path | HubFile]]:
    name = read_set_name(spec)
    if name is None or name.alias is not None:
        raise UsageError(
            f"{PREFIX}{spec} is no set that can be streamed",
            f"expected {PREFIX}hf:USER/SET, or with @REVISION or :SPLIT",
        )
    name = with_split(name, split)
    check_token(token)
    with asking(Request(name.repo, None, name.revision, kind="dataset")):
        from huggingface_hub import HfApi

        info = persist(lambda: HfApi(token=token).dataset_info(name.repo, revision=name.revision, files_metadata=True))
        if not isinstance(info.sha, str):
            raise HubIsStrange("it names no commit")
    sizes = {file.rfilename: file.size for file in info.siblings or ()}
    asked = f"hf:{name.repo}" if name.revision is None else f"hf:{name.repo}@{name.revision}"
    ending = next((ending for ending in ENDINGS if any(file.endswith(ending) for file in sizes)), ENDINGS[0])
    split, files = choose_shards(asked, sorted(sizes), name.split, ending)
    commit = info.sha  # every shard is read at this commit, although the branch may move meanwhile
    return f"hf:{name.repo}@{commit}:{split}", [
        HubFile(name.repo, commit, file, sizes[file] or 0, token) for file in files
    ]


def tar_samples(
    file: Path | HubFile, shard: str, config: Config, need_labels: bool, how: SetOptions = SetOptions()
) -> Found:
    """Return the images of a WebDataset's shard.

    Files that share their name up to the first dot are one sample. Its label is in its `.cls`, or in its `.json`.

    Args:
        how: the label's key in each `.json`; None: the file's `.cls`, or a key that looks like it.

    Raises:
        DataError: the file is no tar file that can be read in place, a sample has two images or no label, or a label is
            no class of the model.
    """
    if how.image_column is not None:
        raise UsageError(f"--image-column was given, and {shard} has no columns", "leave it out")
    # By the name that the files of a sample share:
    images: dict[str, TarImage] = {}
    names: dict[str, str] = {}  # of the image's file
    beside: dict[str, dict[str, bytes]] = defaultdict(dict)  # .cls and .json, by suffix
    skipped: list[str] = []
    length = file.size if isinstance(file, HubFile) else file.stat().st_size
    try:
        with (
            file.ahead() if isinstance(file, HubFile) else open_shard(file) as stream,
            tarfile.open(fileobj=cast(Any, Bounded(stream, Limits())), mode="r:") as tar,
        ):
            for member in tar:
                # A negative size would send the reader back for ever. A sparse file may be larger than its archive.
                if not 0 <= member.size <= length and not member.issparse():
                    raise DataError(
                        f"{shard} is damaged: {member.name} has {member.size:,} bytes, and the whole file {length:,}"
                    )
                folder, slash, base = member.name.rpartition("/")
                stem, dot, kind = base.partition(".")
                key, kind = f"{folder}{slash}{stem}", kind.lower()
                if member.isdir() or not base or (dot and not stem):  # a hidden file is no part of a set
                    continue
                if not member.isreg() or member.issparse():  # a link, or bytes that lie in several places
                    skipped.append(f"{shard}/{member.name}")
                elif f".{kind}" in SUFFIXES:
                    if key in images:
                        raise DataError(f"{shard}: {key} has two images, expected one per sample")
                    images[key], names[key] = TarImage(file, member.offset_data, member.size), member.name
                elif kind not in ("cls", "json"):
                    skipped.append(f"{shard}/{member.name}")
                elif need_labels and (part := tar.extractfile(member)) is not None:
                    if member.size > MOST_LABEL:
                        raise DataError(
                            f"{shard}: {member.name} has {member.size:,} bytes, expected a label of at most"
                            f" {MOST_LABEL:,}"
                        )
                    beside[key][kind] = part.read()
    except (tarfile.TarError, ValueError, OverflowError) as error:  # a header may hold numbers that are no offsets
        raise DataError(f"{shard} cannot be read as a tar file that is not compressed: {said(error)}") from error
    # Only now, because a sample's label may stand before its image or after it.
    if need_labels and images and not any(beside[key] for key in images):
        return Found([], skipped, unlabelled=len(images))
    names_of = LABEL_NAMES if how.label_column is None else (how.label_column,)
    indices: Mapping[int, int | None] = dict.fromkeys(range(len(images)))
    order = None
    if need_labels:
        labels = [_label(beside[key], f"{shard}: {key}", names_of) for key in images]
        known = {row: label for row, label in enumerate(labels) if not is_missing(label)}
        order = sorted_names(known, config)
        indices = label_indices(known, None, config, shard, order)
    keys = list(images)
    samples = [Sample(f"{shard}/{names[keys[row]]}", label, images[keys[row]]) for row, label in indices.items()]
    return Found(samples, skipped, order, unlabelled=len(images) - len(samples))


def _label(parts: dict[str, bytes], sample: str, keys: Sequence[str]) -> Any:
    """Return the index or the name of a sample's class, from its `.cls`, or else by one of `keys` of its `.json`."""
    try:
        if "cls" in parts and (keys == LABEL_NAMES or "cls" in keys):
            text = parts["cls"].decode().strip()
            return int(text) if re.fullmatch("[0-9]{1,9}", text) else text
        document = json.loads(parts["json"])
        return next(document[name] for name in keys if name in document)
    except (KeyError, StopIteration, TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"{sample} has no label, expected a .cls, or a .json with one of {', '.join(keys)}",
            f"name the key of the .json: SET{LABEL_QUERY}KEY",
        ) from error
