"""Sample sets in shards that are read where they are, parquet or WebDataset's tar files: nothing is unpacked, and of
the Hub nothing is kept on disk.

    stream:hf:USER/SET[@REVISION][:SPLIT]      a set of the Hub
    set.parquet, "folder/val-*.tar"            files on this machine

The shards are looked through once: where each image is, and its label. Of parquet that costs the column of labels; a
tar file of the Hub passes by whole, as it has no list of what it holds, and where several processes work each looks
through its share of the shards. After that a set is as any other: it has a length, `limit` draws from all of it, a
batch is read by the process that measures it alone, and a run that stopped goes on without reading again what it has.
"""

import glob
import json
import os
import tarfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from stm.config import Config
from stm.data.folders import Found, only
from stm.data.formats import SUFFIXES
from stm.data.hub_sets import LABEL_NAMES, choose_shards, label_indices, need_pyarrow, parquet_samples
from stm.data.images import Sample, TarImage, open_shard
from stm.data.ranges import HubFile
from stm.data.sets import SampleSet
from stm.data.unpack import Bounded, Limits
from stm.distributed import ALONE, World
from stm.errors import DataError, UsageError
from stm.hub.aliases import read_set_name
from stm.hub.errors import Request, check_token, translate_errors
from stm.progress import OnProgress, Progress

PREFIX = "stream:"
ENDINGS = (".parquet", ".tar")
MOST_LABEL = 16 << 20  # bytes of a sample's .cls or .json


def is_stream(spec: str) -> bool:
    """Whether a name claims to be that of a set that is read in place."""
    return spec.startswith(PREFIX) or spec.endswith(ENDINGS)


def open_stream(
    spec: str,
    *,
    config: Config,
    need_labels: bool = True,
    token: str | None = None,
    world: World = ALONE,
    on_progress: OnProgress | None = None,
) -> SampleSet:
    """The set that a name stands for, looked through.

    Args:
        spec: see the module's text.
        config: of the model that will see it.
        need_labels: without, no image has a label.
        world: the processes that all open this set.

    Raises:
        UsageError: a name of another form, or a split that the set does not have.
        HubError: it cannot be read.
        DataError: it holds no images and labels that fit the model, or needs pyarrow.
    """
    name, shards = _of_hub(spec.removeprefix(PREFIX), token) if spec.startswith(PREFIX) else _of_disk(spec)
    if any(shard.name.endswith(".parquet") for shard in shards):
        need_pyarrow(name)
    seen = 0

    def look(shard: Path | HubFile) -> Found:
        nonlocal seen
        try:
            if shard.name.endswith(".parquet"):
                found = Found(parquet_samples(shard, _called(shard), config, need_labels), [])
            else:
                found = tar_samples(shard, _called(shard), config, need_labels)
        except OSError as error:
            raise DataError(f"{_called(shard)} cannot be read: {error.strerror or error}") from error
        seen = min(seen + world.size, len(shards))
        if on_progress is not None:
            on_progress(Progress("look through", seen, len(shards), "files"))
        return found

    found = world.map(look, shards)
    samples = [sample for each in found for sample in each.samples]
    skipped = [file for each in found for file in each.skipped]
    if not samples:
        raise DataError(f"{name} holds no images{only(skipped)}")
    return SampleSet(name, tuple(samples), tuple(skipped))


def _called(shard: Path | HubFile) -> str:
    return shard.file if isinstance(shard, HubFile) else shard.name


def _of_disk(spec: str) -> tuple[str, Sequence[Path | HubFile]]:
    if Path(spec).is_dir():
        raise DataError(
            f"{spec} is a folder, expected a parquet or tar file", f'name the files in it: "{spec}/*.parquet"'
        )
    # What is there and no file is refused when it is opened.
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
    return Path(spec).name, paths


def _of_hub(spec: str, token: str | None) -> tuple[str, Sequence[Path | HubFile]]:
    name = read_set_name(spec)
    if name is None or name.alias is not None:
        raise UsageError(
            f"{PREFIX}{spec} is no set that can be streamed",
            f"expected {PREFIX}hf:USER/SET, or with @REVISION or :SPLIT",
        )
    check_token(token)
    with translate_errors(Request(name.repo, None, name.revision, kind="dataset")):
        from huggingface_hub import HfApi

        info = HfApi(token=token).dataset_info(name.repo, revision=name.revision, files_metadata=True)
    sizes = {each.rfilename: each.size for each in info.siblings or ()}
    asked = f"hf:{name.repo}" if name.revision is None else f"hf:{name.repo}@{name.revision}"
    ending = next((ending for ending in ENDINGS if any(file.endswith(ending) for file in sizes)), ENDINGS[0])
    split, files = choose_shards(asked, sorted(sizes), name.split, ending)
    commit = str(info.sha)
    return f"hf:{name.repo}@{commit}:{split}", [
        HubFile(name.repo, commit, file, sizes[file] or 0, token) for file in files
    ]


def tar_samples(file: Path | HubFile, shard: str, config: Config, need_labels: bool) -> Found:
    """The images of a WebDataset's shard: files of one name up to its first dot are a sample, the label is its `.cls`
    or in its `.json`.

    Raises:
        DataError: no tar file that can be read in place, a sample of two images or without a label, or a label that is
            no class.
    """
    places: dict[str, TarImage] = {}
    names: dict[str, str] = {}
    skipped: list[str] = []
    beside: dict[str, dict[str, bytes]] = defaultdict(dict)
    length = file.size if isinstance(file, HubFile) else file.stat().st_size
    try:
        with (
            file.ahead() if isinstance(file, HubFile) else open_shard(file) as stream,
            tarfile.open(fileobj=cast(Any, Bounded(stream, Limits())), mode="r:") as tar,
        ):
            for member in tar:
                if (
                    not 0 <= member.size <= length and not member.issparse()
                ):  # a negative one would send the reader back for ever
                    raise DataError(
                        f"{shard} is damaged: {member.name} has {member.size:,} bytes, and the whole file {length:,}"
                    )
                folder, slash, base = member.name.rpartition("/")
                stem, dot, kind = base.partition(".")
                key, kind = f"{folder}{slash}{stem}", kind.lower()
                if member.isdir() or not base or (dot and not stem):
                    continue
                if not member.isreg() or member.issparse():  # a link, or bytes that are in several places
                    skipped.append(f"{shard}/{member.name}")
                elif f".{kind}" in SUFFIXES:
                    if key in places:
                        raise DataError(f"{shard}: {key} has two images, expected one a sample")
                    places[key], names[key] = TarImage(file, member.offset_data, member.size), member.name
                elif kind not in ("cls", "json"):
                    skipped.append(f"{shard}/{member.name}")
                elif need_labels and (part := tar.extractfile(member)) is not None:
                    if member.size > MOST_LABEL:
                        raise DataError(
                            f"{shard}: {member.name} has {member.size:,} bytes, expected a label of at most"
                            f" {MOST_LABEL:,}"
                        )
                    beside[key][kind] = part.read()
    except (tarfile.TarError, ValueError, OverflowError) as error:  # a header's numbers may be no places in a file
        raise DataError(f"{shard} cannot be read as a tar file that is not compressed: {error}") from error
    labels: list[Any] = [_label(beside[key], f"{shard}: {key}") if need_labels else None for key in places]
    indices = label_indices(labels, None, config, shard) if need_labels else labels
    samples = [Sample(f"{shard}/{names[key]}", index, places[key]) for key, index in zip(places, indices, strict=True)]
    return Found(samples, skipped)


def _label(parts: dict[str, bytes], sample: str) -> Any:
    """A class's index or name."""
    try:
        if "cls" in parts:
            text = parts["cls"].decode().strip()
            return int(text) if text.isdigit() else text
        document = json.loads(parts["json"])
        return next(document[name] for name in LABEL_NAMES if name in document)
    except (KeyError, StopIteration, TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"{sample} has no label, expected a .cls, or a .json with one of {', '.join(LABEL_NAMES)}"
        ) from error
