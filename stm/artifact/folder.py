"""Read and write a model on disk: a folder of `model.safetensors`, `config.json` and `README.md` (the card).

If the model was measured on a sample set of the Hub, `.eval_results/stm.yaml` holds the result in the format that the
Hub's leaderboards read.

A folder is written whole or not at all (`stm.artifact.atomic`). It is read only if it is exactly what was written:
`config.json` holds the size and the SHA-256 of the weights. The same model gives the same bytes.
"""

import ctypes
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stm import __version__
from stm.artifact import atomic
from stm.artifact.shapes import check_claims
from stm.config import REWRITE_HINT, Config, FileInfo
from stm.config_file import FORMAT, dumps, loads
from stm.errors import ArtifactError, UsageError, check_name, said

if TYPE_CHECKING:  # a folder is described without torch
    from torch import Tensor

WEIGHTS, CONFIG, CARD, RESULTS = "model.safetensors", "config.json", "README.md", ".eval_results/stm.yaml"
FILES = (WEIGHTS, CONFIG, CARD, RESULTS)  # all that stm puts into a folder, and all that --force may delete
_DTYPES = {"torch.float32": "F32", "torch.bfloat16": "BF16", "torch.float16": "F16", "torch.int8": "I8"}


def check_output(folder: str | os.PathLike[str], *, force: bool = False) -> None:
    """Refuse an output folder that cannot be written, before any work is done.

    Args:
        folder: where the model is to go; missing parents will be made.
        force: replace an existing folder, if it holds a model that stm wrote and nothing else.

    Raises:
        UsageError: the folder exists and `force` is not given; it holds something else, or is a file, a symbolic link,
            a mount point, the current folder or one that holds it; or nothing can be written there.
        ArtifactError: the disk is full.
    """
    path = atomic.check(folder, FILES, force=force)
    # README.md and config.json are names that other projects use too, so the names alone do not make a folder ours.
    if path.exists() and any(path.iterdir()) and not is_model(path):
        raise UsageError(
            f"{folder} holds no model that stm wrote ({CONFIG} does not say so), and --force replaces nothing else",
            "choose another name with --out",
        )


def is_model(folder: str | os.PathLike[str]) -> bool:
    """Return whether the folder's config.json says that stm wrote it. The rest of the folder is not looked at."""
    try:
        document = json.loads((atomic.find(Path(folder)) / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("format") == FORMAT


def write(
    folder: str | os.PathLike[str],
    config: Config,
    tensors: Mapping[str, "Tensor"],
    card: str,
    *,
    results: str | None = None,
    force: bool = False,
) -> Config:
    """Write a model's folder, whole or not at all.

    Args:
        folder: where the model goes; refused as `check_output` says.
        config: the model's description.
        tensors: every tensor of the model, on any device, by the names of its state dict.
        card: the text of README.md.
        results: the text of .eval_results/stm.yaml, if there is one.
        force: replace an existing folder of a model.

    Returns:
        The config as it was written: with `files` and `stm_version`.

    Raises:
        UsageError: see `check_output`.
        ArtifactError: a tensor holds NaN or infinity, the disk is full, or the system refused a write. Nothing is left
            behind, and an existing folder is unchanged.
    """
    from stm.artifact.tensors import check_finite

    check_output(folder, force=force)
    check_finite(tensors, str(folder), ArtifactError)
    with atomic.replacing(folder, FILES, force=force) as new:
        # The weights first: config.json holds their hash, which is taken from the bytes while they are written.
        weights = _write_weights(new / WEIGHTS, tensors)
        written = dataclasses.replace(config, files={WEIGHTS: weights}, stm_version=__version__)
        _write_text(new / CONFIG, dumps(written))
        _write_text(new / CARD, card)
        if results is not None:
            (new / RESULTS).parent.mkdir()
            _write_text(new / RESULTS, results)
    return written


def read_config(folder: str | os.PathLike[str]) -> Config:
    """Return the config of a model's folder, without reading the weights.

    Raises:
        ArtifactError: there is no such folder, it holds no config.json that stm wrote, or the config is not valid.
    """
    return _read_config(_stored(folder), folder)


def read(folder: str | os.PathLike[str]) -> tuple[Config, dict[str, "Tensor"]]:
    """Return a model's config and its tensors. The tensors are mapped from the file, not copied.

    Whether the tensors fit the config is not checked here: `ViM` checks that when it takes them.

    Raises:
        ArtifactError: as `read_config`; or the weights are missing, or their size or SHA-256 is not what was written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config, path = _checked(folder)
    try:
        return config, load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{Path(folder) / WEIGHTS} cannot be read: {said(error)}", REWRITE_HINT) from error


def describe(folder: str | os.PathLike[str]) -> Config:
    """Return a model's config, and hold its weights to it by their hash, names and shapes. No tensor is made.

    This needs no torch. Whether the values are finite and of the right dtype is seen when the model is loaded.

    Raises:
        ArtifactError: as `read`; or the weights do not hold the tensors that the config tells of.
    """
    config, path = _checked(folder)
    name = str(Path(folder) / WEIGHTS)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            if length > os.fstat(file.fileno()).st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
            shapes = {key: tuple(entry["shape"]) for key, entry in header.items() if key != "__metadata__"}
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{name} cannot be read: it has no header of safetensors", REWRITE_HINT) from error
    check_claims(config, shapes, name, ArtifactError)
    return config


def _checked(folder: str | os.PathLike[str]) -> tuple[Config, Path]:
    """Return the config, and the path of the weights, which are those that it was written with."""
    stored = _stored(folder)
    config = _read_config(stored, folder)
    name = Path(folder) / WEIGHTS
    # A file that is not named here would be loaded without its hash having been compared.
    if config.files.keys() != {WEIGHTS}:
        raise ArtifactError(f"{Path(folder) / CONFIG}: files names {sorted(config.files)}, expected exactly {WEIGHTS}")
    try:
        _check_written(stored / WEIGHTS, name, config.files[WEIGHTS])
    except FileNotFoundError as error:
        raise ArtifactError(f"{folder} has no {WEIGHTS}", REWRITE_HINT) from error
    except OSError as error:
        raise ArtifactError(f"{name} cannot be read: {said(error)}", REWRITE_HINT) from error
    return config, stored / WEIGHTS


def weights_size(tensors: Mapping[str, "Tensor"]) -> int:
    """Return the size in bytes of the model.safetensors that would hold these tensors. Meta tensors will do."""
    return len(_header(tensors)) + sum(tensor.nbytes for tensor in tensors.values())


def _stored(folder: str | os.PathLike[str]) -> Path:
    """Return the folder to read, which may have another name for a moment: see `atomic.find`."""
    check_name(folder, ArtifactError)
    try:
        stored = atomic.find(Path(folder))
        if stored.is_dir():
            return stored
        raise ArtifactError(
            f"{folder} is a file, expected a folder" if stored.exists() else f"there is no folder {folder}"
        )
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be read: {error.strerror}") from error


def _read_config(stored: Path, folder: str | os.PathLike[str]) -> Config:
    name = Path(folder) / CONFIG
    try:
        return loads((stored / CONFIG).read_text(encoding="utf-8"), str(name))
    except FileNotFoundError as error:
        raise ArtifactError(f"{folder} has no {CONFIG}: it is not a folder that stm wrote") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{name} cannot be read: {said(error)}", REWRITE_HINT) from error


def _check_written(path: Path, name: Path, expected: FileInfo) -> None:
    """Raise ArtifactError unless the weights are those that config.json was written with."""
    with open(path, "rb") as file:
        # The size first: it costs nothing, and tells a pointer of Git LFS from weights that were changed.
        size = os.fstat(file.fileno()).st_size
        if size != expected.bytes:
            pointer = file.read(24) == b"version https://git-lfs."
            hint = "it is a Git LFS pointer: run git lfs pull in that folder" if pointer else REWRITE_HINT
            raise ArtifactError(f"{name} has {size} bytes, expected the {expected.bytes} that were written", hint)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != expected.sha256:
        both = f"{sha256[:12]}..., expected {expected.sha256[:12]}..."
        raise ArtifactError(f"{name} is not the file that was written: its SHA-256 is {both}", REWRITE_HINT)


# We write safetensors ourselves. The package's writer needs numpy, reports a full disk as text out of Rust, and leaves
# the hash to a second pass over the file. The format is simple: the length of the header in 8 bytes, the header as
# JSON, the bytes of the tensors. Our files equal those of safetensors.torch.save_file byte for byte
# (tests/contract/test_bytes.py). Tensors are written one at a time, so that saving needs no copy of the weights. The
# metadata has one entry only, because safetensors writes several in random order (its issue 584).


def _write_weights(path: Path, tensors: Mapping[str, "Tensor"]) -> FileInfo:
    header = _header(tensors)
    digest = hashlib.sha256(header)
    with open(path, "wb") as file:
        file.write(header)
        for name in _order(tensors):
            tensor = tensors[name].detach().cpu().contiguous()
            data = (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())  # its memory, not a copy
            digest.update(data)
            file.write(data)
    return FileInfo(sha256=digest.hexdigest(), bytes=weights_size(tensors))


def _header(tensors: Mapping[str, "Tensor"]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in _order(tensors):
        tensor = tensors[name]
        begin, end = end, end + tensor.nbytes
        entries[name] = {"dtype": _DTYPES[str(tensor.dtype)], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8 bytes, so that they can be mapped
    return len(text).to_bytes(8, "little") + text


def _order(tensors: Mapping[str, "Tensor"]) -> list[str]:
    """Return the names in the order of the file: larger items first, so that every tensor is aligned; then by name."""
    return sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))


def _write_text(path: Path, text: str) -> None:
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.end + 20]
        raise ArtifactError(
            f"{path.name} cannot hold {around!r}, which is not valid Unicode: rename that file or label"
        ) from error
    path.write_bytes(data)
