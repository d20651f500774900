"""Read sample sets from the Hub, by the same cache, resume and offline rules as models.

    imagenet-v2[@REVISION]                an alias: an archive of images, one folder per class
    hf:USER/SET[@REVISION][:SPLIT]        images and labels in parquet, as the Hub's image sets are kept

The name of an open set holds the commit that was read. So a measurement names exactly its data, and its name can be
pasted.
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stm.config import Config
from stm.data.folders import Found, as_set, labelled_folder, unlabelled_folder
from stm.data.images import ParquetImage, Sample, open_parquet, read_column
from stm.data.labels import SPLITS, NoLabels, class_indices, imagenet, names_in_order, spelled
from stm.data.ranges import HubFile
from stm.data.sets import SampleSet
from stm.data.unpack import unpack
from stm.distributed import ALONE, World
from stm.errors import DataError, UsageError, brief, listed, said
from stm.hub.aliases import ARCHIVES, SetName, read_set_name
from stm.hub.errors import Request, translate_errors
from stm.hub.fetch import check_hash, fetch, list_files
from stm.options import SetOptions
from stm.progress import OnProgress

LABEL_NAMES = ("label", "labels", "class", "target", "cls", "class_label", "fine_label")
LABEL_QUERY = "?label="  # after the name of a set: the column of its labels
ONE_CLASS = "expected one class for each image: its index or its name"


def open_hub_set(
    spec: str,
    *,
    config: Config,
    need_labels: bool = True,
    how: SetOptions = SetOptions(),
    token: str | None = None,
    world: World = ALONE,
    on_progress: OnProgress | None = None,
) -> SampleSet:
    """Return the set of a name. It is downloaded once.

    Args:
        spec: the name; the module's docstring lists the forms.
        config: of the model that will see the images.
        need_labels: if False, no image has a label.
        how: the split, and the columns of a set that is kept in parquet.
        world: the processes that all open this set.

    Raises:
        UsageError: the name has another form, or the set does not have the split.
        HubError: the Hub does not give the set.
        DataError: the set holds no images and labels that fit the model, or reading it needs pyarrow.
    """
    name = read_set_name(spec)
    if name is None:
        raise UsageError(
            f"{spec!r} is no name of a sample set on the Hub",
            "it is hf:USER/SET, hf:USER/SET:SPLIT or hf:USER/SET@REVISION:SPLIT",
        )
    if name.alias is None:
        return _from_parquet(with_split(name, how.split), config, need_labels, how, token, on_progress)
    how.refuse_reading(f", and {spec} is one folder per class, without parts or columns", "leave it out")
    return _from_archive(name, config, need_labels, token, on_progress)


def _from_archive(
    name: SetName, config: Config, need_labels: bool, token: str | None, on_progress: OnProgress | None
) -> SampleSet:
    file = ARCHIVES[name.alias or ""].file
    # Not checked yet: a hash over a gigabyte takes seconds, and is for nothing if the archive was unpacked before.
    archive = fetch(
        name.repo, file, kind="dataset", revision=name.revision, token=token, check=False, on_progress=on_progress
    )
    with translate_errors(Request(name.repo)):
        from huggingface_hub import cached_assets_path

        folder = Path(cached_assets_path("stm", namespace=name.repo)).parent / archive.revision
    if not folder.is_dir():
        check_hash(archive)
        unpack(archive.path, folder, on_progress=on_progress)
    # Archives wrap their content in a folder of their own, and some in several.
    root = folder
    while len(inside := [path for path in root.iterdir() if not path.name.startswith(".")]) == 1 and inside[0].is_dir():
        root = inside[0]
    images = labelled_folder(root, config.num_classes, config.label_names) if need_labels else unlabelled_folder(root)
    return as_set(f"{name.alias}@{archive.revision}", [images])


def with_split(name: SetName, split: str | None) -> SetName:
    """Return the name of a set with the split that was asked for beside it.

    Raises:
        UsageError: the name has another split.
    """
    if split is not None and name.split not in (None, split):
        raise UsageError(f"split is {split}, and the set's name says {name.split}", "give one of the two")
    return name if split is None else replace(name, split=split)


def _from_parquet(
    name: SetName,
    config: Config,
    need_labels: bool,
    how: SetOptions,
    token: str | None,
    on_progress: OnProgress | None,
) -> SampleSet:
    need_pyarrow(f"hf:{name.repo}")
    asked = f"hf:{name.repo}" if name.revision is None else f"hf:{name.repo}@{name.revision}"
    split, shards = choose_shards(
        asked, list_files(name.repo, kind="dataset", revision=name.revision, token=token), name.split
    )
    revision, contents = name.revision, list[Found]()
    for shard in shards:
        file = fetch(name.repo, shard, kind="dataset", revision=revision, token=token, on_progress=on_progress)
        revision = file.revision  # the first file's commit for all, although the branch may move meanwhile
        contents.append(parquet_samples(file.path, shard, config, need_labels, how))
    return as_set(f"hf:{name.repo}@{revision}:{split}", contents)


def need_pyarrow(name: str) -> None:
    """Raise DataError if pyarrow is not installed, before a set in parquet is downloaded."""
    try:
        import pyarrow.parquet  # noqa: F401 - an extra
    except ImportError as error:
        raise DataError(f"{name} is kept in parquet, and reading it needs pyarrow", "pip install pyarrow") from error


def choose_shards(
    name: str, files: Sequence[str], split: str | None, ending: str = ".parquet"
) -> tuple[str, list[str]]:
    """Return the split that is meant, and its files, by the rules for names that the Hub's sets follow."""
    splits: dict[str, list[str]] = defaultdict(list)
    for file in files:
        if file.endswith(ending):
            splits[split_of(file)].append(file)
    if not splits:
        bare = name.partition("@")[0]
        hint = f"the Hub converts many sets: try {bare}@refs/convert/parquet"
        raise DataError(f"{name} holds no parquet files, only {listed(files) or 'nothing'}", hint)
    names = sorted(splits)
    # No default among several: the split decides what a number means.
    if split is None and len(names) > 1:
        raise UsageError(f"{name} has the splits {listed(names)}", f"name one: {name}:{names[-1]}")
    chosen = spelled(split or names[0], names)
    if chosen not in splits:
        raise UsageError(f"{name} has no split {chosen}, only {listed(names)}", f"name one: {name}:{names[-1]}")
    folders = sorted({file.rpartition("/")[0] for file in splits[chosen]})
    if len(folders) > 1:
        raise DataError(
            f"{name}:{chosen} is in several folders, {listed(folders)}: only sets of one configuration are read"
        )
    # Offline, the cache may hold some of the files. A part of a split would be measured as if it were all of it.
    numbers = {int(total[1]) for file in splits[chosen] if (total := re.search(r"-of-([0-9]{5})", file))}
    if numbers and numbers != {len(splits[chosen])}:
        raise DataError(
            f"{name}:{chosen} has {max(numbers)} files, and {len(splits[chosen])} of them are here",
            "run it once online",
        )
    return chosen, sorted(splits[chosen])


def split_of(file: str) -> str:
    """Return the split of a file by its name; "train" if the name tells none.

    `data/test-00000-of-00002.parquet`, `default/test/0000.parquet` and `test.parquet` are of split "test".
    """
    *folders, base = file.removesuffix(".parquet").removesuffix(".tar").split("/")
    if numbered := re.fullmatch(r"(.+?)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?", base):
        return numbered[1]
    # The nearest word wins: the whole name, then its parts, then the folders from the innermost.
    words = [base, *re.split(r"[^A-Za-z]+", base), *reversed(folders)]
    return next((word for word in words if word in SPLITS), "train")


def parquet_samples(
    path: Path | HubFile, shard: str, config: Config, need_labels: bool, how: SetOptions = SetOptions()
) -> Found:
    """Return the images of a parquet file, without those that have no label. Only the column of labels is read now.

    Args:
        how: the columns; None: those that look like it.

    Raises:
        NoLabels: the file has no column of labels.
        DataError: the file cannot be read, or holds no images and labels that fit the model.
    """
    from pyarrow import ArrowException

    places: list[tuple[int, int]] = []
    values: list[Any] = []
    try:
        with open_parquet(path) as file:
            features = _features(file.schema_arrow)
            image = _image_column(file.schema_arrow, features, shard, how.image_column)
            label, names = None, None
            if need_labels:
                label, names = _label_column(file.schema_arrow, features, shard, how.label_column)
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                places += ((group, row) for row in range(rows))
                values += [None] * rows if label is None else read_column(file, group, label).to_pylist()
    except (ArrowException, UnicodeDecodeError, OSError) as error:  # names and labels need not be UTF-8
        raise DataError(f"{shard} cannot be read as parquet: {said(error)}") from error
    # A row without a label says nothing about the others, nor does a row group of such rows.
    labelled = {row: value for row, value in enumerate(values) if label is None or not is_missing(value)}
    indices, order = labelled, None
    if label is not None:
        order = sorted_names(labelled, config)
        indices = label_indices(labelled, names, config, f"{shard}, {label}", order)
    # The images stay in the file: a sample knows its row, and `ParquetImage.open` reads it.
    samples = [Sample(f"{shard}[{row}]", indices[row], ParquetImage(path, image, *places[row])) for row in labelled]
    own = tuple(names) if names is not None and label is not None and _decide(names, config) else None
    return Found(samples, [], names=order, own_names=own, unlabelled=len(values) - len(labelled))


def sorted_names(labels: Mapping[int, Any], config: Config) -> tuple[str, ...] | None:
    """Return the names among labels in sorted order, if that order tells the classes; see `names_in_order`."""
    names = {*labels.values()} if all(isinstance(label, str) for label in labels.values()) else set()
    return names_in_order(names, config.num_classes, config.label_names) if names else None


def is_missing(label: Any) -> bool:
    """Return whether a label says that there is none, as those of test splits do."""
    return label is None or (label == -1 and not isinstance(label, bool))


def _decide(names: Sequence[str], config: Config) -> bool:
    """Return whether a set's names are the model's classes, which then get these names."""
    unknown = config.label_names is None and len(names) == config.num_classes != len(imagenet().labels)
    return unknown and list(names) != [str(index) for index in range(len(names))]


def _features(schema: Any) -> dict[str, Any]:
    """Return the `datasets` library's description of the columns, or {} if the file has none."""
    # {"label": {"_type": "ClassLabel", "names": [...]}, ...}
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    if not isinstance(features, dict):
        return {}
    return {name: kind for name, kind in features.items() if isinstance(kind, dict)}


def _image_column(schema: Any, features: dict[str, Any], shard: str, column: str | None) -> str:
    """Return the column of the encoded images: a struct of bytes and a path, or bytes alone."""
    from pyarrow import types

    columns = {}  # from a field's name to the column of its bytes
    for field in schema:
        if types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            columns[field.name] = f"{field.name}.bytes"
        elif types.is_binary(field.type) or types.is_large_binary(field.type):
            columns[field.name] = field.name
    # Other bytes may stand beside the image, such as a mask's. If the file describes its columns, that decides.
    images = [name for name in columns if features.get(name, {}).get("_type") == "Image"] or list(columns)
    if column is not None:
        images = [name for name in columns if name == column]
    if len(images) != 1:
        called = "one" if column is None else f"one called {column}"
        raise DataError(
            f"{shard} has {len(images)} columns of images among {listed(schema.names)}, expected {called}",
            f"name the column: --image-column {next(iter(columns))}" if columns else "images are in it as bytes",
        )
    return columns[images[0]]


def _label_column(
    schema: Any, features: dict[str, Any], shard: str, column: str | None
) -> tuple[str, list[str] | None]:
    """Return the column of labels, and the names of the classes if they are known."""
    from pyarrow import types

    classes = [name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"]
    called = [name for name in schema.names if name in LABEL_NAMES]
    candidates = classes if len(classes) == 1 else [name for name in called if name in classes] or called or classes
    if column is not None:
        candidates = [column] if column in schema.names else []
    if not candidates and column is None:
        raise NoLabels(
            f"{shard} has no column of labels among {listed(schema.names)}", f"name the column: SET{LABEL_QUERY}COLUMN"
        )
    if len(candidates) != 1:
        called_for = "one called label" if column is None else f"one called {column}"
        raise DataError(
            f"{shard} has {len(candidates)} columns of labels among {listed(schema.names)}, expected {called_for}",
            f"name one of its columns: SET{LABEL_QUERY}{(candidates or ['COLUMN'])[0]}",
        )
    label = candidates[0]
    kind = schema.field(label).type
    values = kind.value_type if types.is_dictionary(kind) else kind
    single = (
        types.is_integer,
        types.is_floating,
        types.is_boolean,
        types.is_null,
        types.is_string,
        types.is_large_string,
    )
    if not any(fits(values) for fits in single):  # lists, mappings, dates
        raise DataError(f"{shard}, {label}: {kind}, {ONE_CLASS}")
    names = features.get(label, {}).get("names")
    return label, [str(name) for name in names] if isinstance(names, list) and names else None


def label_indices(
    labels: Mapping[int, Any],
    names: list[str] | None,
    config: Config,
    where: str,
    order: Sequence[str] | None = None,
) -> dict[int, int]:
    """Return the model's class of each label, by row. A label is a name, a number into `names`, or the index itself.

    Args:
        order: the names of the classes by index, if the set decides; see `sorted_names`.
    """
    if order is not None:
        place = {name: index for index, name in enumerate(order)}
        return {row: place[label] for row, label in labels.items()}
    classes, values = config.num_classes, labels.values()
    if classes != 2 and any(isinstance(value, bool) for value in values):
        raise DataError(f"{where}: true and false tell two classes, and the model has {classes}, {ONE_CLASS}")
    if values and all(isinstance(value, str) for value in values):
        table: dict[Any, int] = dict(class_indices(dict.fromkeys(values, where), classes, config.label_names))
    # A number is the index itself if nothing names the numbers, or if the names cannot be compared: a model without
    # labels has none, and ImageNet's classes have one order but many names.
    elif names is None or (len(names) == classes and (config.label_names is None or classes == len(imagenet().labels))):
        table = {index: index for index in range(classes)}
    else:
        indices = class_indices(dict.fromkeys(names, where), classes, config.label_names)
        table = {number: indices[name] for number, name in enumerate(names)}
    for row, value in labels.items():
        if isinstance(value, list | dict):
            raise DataError(f"{where}, row {row}: a {'list' if isinstance(value, list) else 'mapping'}, {ONE_CLASS}")
        if value not in table:
            raise DataError(f"{where}, row {row}: {brief(repr(value))} is not one of the {len(table)} classes")
    return {row: table[value] for row, value in labels.items()}
