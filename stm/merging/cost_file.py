"""Costs that earlier runs have computed, kept in the user's cache folder, so that another budget is instant.

A file is named by the hash of all that decides its numbers. The cache is a convenience: a file that cannot be read is
computed again. One that cannot be written is told of, and fails nothing.
"""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from stm.artifact import atomic
from stm.artifact.written import tell_unkept
from stm.assets import FOLDER
from stm.errors import said

_FORMAT = 1  # of the numbers: another way to compute them needs another format
_MOST_BYTES = 2**30  # of all files; the oldest go first


class Effects(NamedTuple):
    """What a fit computes from images.

    Args:
        cost: (depth - 1, L, n), float64, before the isotonic fit; see `stm.merging.costs`.
        probes: (P, depth - 1, L, n), float32: the effects of the first images; empty if nothing regroups.
    """

    cost: Tensor
    probes: Tensor


def folder() -> Path:
    """Return the folder of the cache: `stm` below XDG_CACHE_HOME, by default ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "stm" / "costs"


def key(**decisive: object) -> str:
    """Return the name for all that decides the numbers: hashes of the model and of the images, and counts."""
    text = json.dumps([_FORMAT, decisive], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def read(name: str) -> Effects | None:
    """Return the effects that are kept under a name, or None. Those of the embedded model are part of the package."""
    return _read(FOLDER / "costs" / f"{name}.safetensors") or _kept(f"{name}.safetensors")


def _kept(file: str) -> Effects | None:
    """Return what the user's cache holds."""
    with suppress(RuntimeError):  # the system knows no home folder of the user
        path = folder() / file
        effects = _read(path)
        with suppress(OSError):  # others may own the cache
            os.utime(path)  # `_make_room` deletes last what was used last
        return effects
    return None


def _read(path: Path) -> Effects | None:
    with suppress(OSError, SafetensorError, KeyError):
        tensors = load_file(path)
        return Effects(tensors["cost"].double(), tensors["probes"])
    return None


def write(name: str, effects: Effects) -> None:
    """Keep effects under a name. If that is not possible, `stm.artifact.written.tell_unkept` says so."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        with atomic.drafted(folder() / f"{name}.safetensors", kept=False) as draft:
            draft.write_bytes(save({"cost": effects.cost.contiguous(), "probes": effects.probes.contiguous()}))
    except (OSError, RuntimeError) as error:  # RuntimeError: the system knows no home folder of the user
        why = (error.strerror if isinstance(error, OSError) else None) or said(error)
        tell_unkept(f"the costs of the fit cannot be kept in {_where()} ({why}): the next fit computes them again")
        return
    with suppress(OSError):  # another run may clear up at the same time
        _make_room()


def _where() -> str:
    with suppress(RuntimeError):
        return str(folder())
    return "a cache folder"


def _make_room() -> None:
    files = sorted(folder().glob("*.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True)
    total = 0
    for path in files:
        total += path.stat().st_size
        if total > _MOST_BYTES:
            path.unlink(missing_ok=True)
