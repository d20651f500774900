"""Read a file of weights without running anything in it.

Pickles go through PyTorch's restricted unpickler and nothing else. It may build the tensor types of its own list, and
what `inert.allowed` adds. Other names become inert stand-ins (`stm.checkpoint.inert`), or are refused. Before anything
is built, the sizes that a pickle claims are compared with the size of its file (`stm.checkpoint.claims`). Zip files and
safetensors are mapped, not read, so that only the tensors that are used cost memory.

Torch takes seconds to import. Who only asks what a file holds gets headers in place of tensors
(`stm.checkpoint.headers`).
"""

import codecs
import contextlib
import hashlib
import io
import json
import mmap
import re
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

from stm.checkpoint import headers
from stm.checkpoint.claims import Claim, Reader
from stm.checkpoint.inert import Buildable, Inert, allowed, is_forbidden, renamed
from stm.checkpoint.names import INDEX
from stm.errors import CheckpointError, check_name, damage, listed, said

_DOWNLOAD_AGAIN = "download or copy it again, and compare its size with the source's"
_WHAT = "give a checkpoint that torch.save or safetensors wrote"
_HEAD = 4096  # bytes that tell what a file is
_DAMAGED = "its pickle is damaged, or not of the protocol that torch.save uses"

# How much more than the file a deflated zip may unpack to. Weights hardly shrink, but the zeros of an optimizer do. A
# zip bomb makes 1000 bytes of each byte.
_UNPACKED, _UNPACKED_ANYWAY = 32, 1 << 22

# The same of torch's own list, apart from what has to do with tensors.
_PLAIN: dict[str, Any] = {
    "_codecs.encode": codecs.encode,
    "builtins.set": set,
    "builtins.bytearray": bytearray,
    "builtins.complex": complex,
}


class Loaded(NamedTuple):
    """What a checkpoint file holds.

    Args:
        document: whatever was saved, or a dict of tensors for safetensors. Its tensors are torch's or headers.
        inert: the names in the pickle that an `Inert` stands for.
        unsafe: the error to raise if the weights are not found without those.
    """

    document: Any
    inert: tuple[str, ...] = ()
    unsafe: CheckpointError | None = None


def load(path: Path, *, values: bool = True) -> Loaded:
    """Return the object that a checkpoint file holds: whatever was saved, or a dict of tensors for safetensors.

    Its tensors may be views of the mapped file. Copy those that are kept, and drop the rest.

    Args:
        values: whether the tensors are to be torch's. Without, they are headers where the file is plain enough, and
            torch is not imported; whatever the file is refused for, torch's way of reading it says.

    Raises:
        CheckpointError: the file does not exist, holds no weights, is cut off or damaged, or wants something to be run.
    """
    if not values:
        with contextlib.suppress(CheckpointError, headers.NotPlain):
            return _load(path, values=False)
    return _load(path, values=True)


def _load(path: Path, *, values: bool) -> Loaded:
    try:
        head = _head(path)
        if path.name.endswith(INDEX):
            return Loaded(_load_shards(path, values))
        # By the first bytes, because names lie: .bin, .pt and .pth are each used for several of these formats.
        if 2 <= int.from_bytes(head[:8], "little") <= 100_000_000 and head[8:9] == b"{":
            return Loaded(_load_safetensors(path, values))
        if head.startswith(b"PK\x03\x04"):
            return _load_zip(path, values)
        if not values:
            raise headers.NotPlain
        if head.startswith(b"\x80"):
            return _load_pickle(path, path.stat().st_size, archive=False, mapped=False)
        raise _not_weights(path, head)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, read in pieces; of an index, that of the digests of it and of its shards."""
    if path.name.endswith(INDEX):
        parts = [path, *(path.with_name(name) for name in shards(path))]
        return hashlib.sha256("".join(map(_digest, parts)).encode()).hexdigest()
    return _digest(path)


def shards(index: Path) -> list[str]:
    """Return the names of the files that an index of safetensors names, which lie beside it.

    Raises:
        CheckpointError: it is no such index, or names a file elsewhere.
    """
    return sorted(set(_weight_map(index).values()))


def _weight_map(index: Path) -> dict[str, str]:
    try:
        document = json.loads(index.read_bytes())
        weights = document["weight_map"]
        names = {str(tensor): shard for tensor, shard in weights.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is not an index of safetensors: it has no weight_map", _WHAT) from error
    for shard in names.values():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(f"{index} names the shard {shard!r}, expected a safetensors file beside it", _WHAT)
    return names


def _load_shards(index: Path, values: bool) -> dict[str, Any]:
    """Return every tensor that an index names, each from the shard that the index says."""
    weights = _weight_map(index)
    tensors: dict[str, Any] = {}
    for shard in sorted(set(weights.values())):
        path = index.with_name(shard)
        _head(path)
        held = _load_safetensors(path, values)
        wanted = [name for name, where in weights.items() if where == shard]
        if missing := [name for name in wanted if name not in held]:
            raise CheckpointError(f"{path} lacks {listed(missing)}, which {index.name} says it has", _DOWNLOAD_AGAIN)
        tensors |= {name: held[name] for name in wanted}
    return tensors


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _head(path: Path) -> bytes:
    check_name(path, CheckpointError)
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist: expected a checkpoint file", "check the path; ls shows what is there"
        )
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a directory: expected a checkpoint file", f"name the file in it: {path / 'FILE.pth'}"
        )
    if not path.is_file():
        raise CheckpointError(f"{path} is not a regular file: expected a checkpoint file", _WHAT)
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        raise CheckpointError(f"{path} is empty: expected a checkpoint file", _DOWNLOAD_AGAIN)
    return head


def _not_weights(path: Path, head: bytes) -> CheckpointError:
    text = head.lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return CheckpointError(f"{path} is a Git LFS pointer, not the weights that it points to", "run: git lfs pull")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return CheckpointError(f"{path} is a web page, not a checkpoint: the download led to a page", _DOWNLOAD_AGAIN)
    if wanted := _wanted(path):  # a pickle of the first protocol is text
        return _unsafe(path, wanted)
    if _is_text(head):
        return CheckpointError(f"{path} is a text file, not a checkpoint", _WHAT)
    return CheckpointError(
        f"{path} is not a checkpoint: it begins like neither torch.save's files nor safetensors", _WHAT
    )


def _is_text(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # incremental: the last character may be cut
    except UnicodeDecodeError:
        return False
    return b"\0" not in head


def _load_safetensors(path: Path, values: bool) -> dict[str, Any]:
    if not values:
        return headers.safetensors(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except OSError:
        raise
    except Exception as error:  # the parser's own type, and others for dtypes that torch does not have
        raise CheckpointError(f"{path} is cut off or damaged: {said(error)}", _DOWNLOAD_AGAIN) from error


def _load_zip(path: Path, values: bool) -> Loaded:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise CheckpointError(
            f"{path} is cut off or damaged: its zip directory cannot be read ({said(error)})", _DOWNLOAD_AGAIN
        ) from error
    names = {entry.filename.partition("/")[2] for entry in entries}
    if "constants.pkl" in names:
        raise CheckpointError(
            f"{path} is a TorchScript program, not weights: reading it would run it", "save the model's state_dict()"
        )
    if "data.pkl" not in names:
        raise CheckpointError(
            f"{path} is a zip archive, not a checkpoint", f"if it holds one, unpack it first: unzip {path}"
        )
    size, unpacked = path.stat().st_size, sum(entry.file_size for entry in entries)
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if unpacked > (size if stored else size * _UNPACKED + _UNPACKED_ANYWAY):
        raise _too_much(path, size, f"records of {unpacked:,} bytes")
    if not values:
        return _load_headers(path, unpacked)
    return _load_pickle(path, unpacked, archive=True, mapped=stored)


def _load_headers(path: Path, held: int) -> Loaded:
    """Return what `_load_pickle` does, with headers for tensors."""
    archive, reader = headers.Archive(path), Reader(held)
    try:
        reader.read(io.BytesIO(archive.pickle))
    except MemoryError:
        raise
    except Exception as error:  # claims too much, or is damaged: torch's way of reading it says so
        raise headers.NotPlain from error
    unknown = _unknown(reader.names)
    inert = {each: Inert for name in unknown for each in (name, renamed(name))}
    # What the caller has torch build more than it does by itself, only torch can build.
    if any(map(is_forbidden, inert)) or ("torch" in sys.modules and inert.keys() & _registered().keys()):
        raise headers.NotPlain
    known = _PLAIN | {name: kind for kind, name in allowed(reader.names)}
    document = headers.document(archive, reader, inert | known)
    return Loaded(document, tuple(unknown), _unsafe(path, unknown) if unknown else None)


def _registered() -> dict[str, Buildable]:
    """Return what torch builds for the caller beside its own list, by name."""
    import torch

    known = torch.serialization.get_safe_globals()
    return {each[1] if isinstance(each, tuple) else f"{each.__module__}.{each.__qualname__}": each for each in known}


def _load_pickle(path: Path, held: int, *, archive: bool, mapped: bool) -> Loaded:
    """Return what torch loads from a file of `held` unpacked bytes, after the claims of its pickles were checked."""
    import torch

    reader = Reader(held)
    try:
        _follow(path, reader, archive)
    except (OSError, MemoryError):
        raise
    except Claim as claim:
        raise _too_much(path, path.stat().st_size, str(claim)) from claim
    except Exception as error:  # damaged bytes make it raise anything at all
        if wanted := _unknown(reader.names):
            raise _unsafe(path, wanted) from error
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint of torch.save: {_DAMAGED}", _DOWNLOAD_AGAIN
        ) from error
    unknown = _unknown(reader.names)
    if forbidden := [name for name in unknown if is_forbidden(name) or is_forbidden(renamed(name))]:
        raise _unsafe(path, forbidden)
    known = _registered()
    # Only entries that the caller does not have: when the context ends, torch removes every entry that it was given.
    ours: list[Buildable] = [pair for pair in allowed(reader.names) if pair not in known.values()]
    inert = tuple(name for name in unknown if not {name, renamed(name)} & known.keys())
    ours += [(Inert, each) for name in inert for each in {name, renamed(name)}]
    with warnings.catch_warnings(), torch.serialization.safe_globals(ours):
        warnings.simplefilter("ignore")  # torch's remarks are about its own old formats
        try:
            document = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # damaged bytes make the unpickler raise anything at all
            if wanted := _unknown(reader.names) or re.findall(r"GLOBAL (\S+)", str(error)):
                raise _unsafe(path, wanted) from error
            what = damage(error) if isinstance(error, RuntimeError) else _DAMAGED
            raise CheckpointError(
                f"{path} cannot be read as a checkpoint of torch.save: {what}", _DOWNLOAD_AGAIN
            ) from error
    return Loaded(document, inert, _unsafe(path, list(inert)) if inert else None)


def _too_much(path: Path, size: int, claimed: str) -> CheckpointError:
    return CheckpointError(
        f"{path} asks for {claimed}: no checkpoint of its {size:,} bytes does, so it was not read",
        "it is damaged, or was made to exhaust memory: get the original",
    )


def _unsafe(path: Path, wanted: list[str]) -> CheckpointError:
    # A pickle names os.system by the module that implements it, posix or nt, which few readers know.
    names = listed(
        f"{name} (os.{name.partition('.')[2]})" if name.startswith(("posix.", "nt.")) else name for name in wanted
    )
    return CheckpointError(
        f"{path} wants {names}, which is neither a tensor nor a plain setting: reading it would run code, so it was not"
        " read",
        "if it is yours, save the state dict alone: torch.save(model.state_dict(), FILE); else ask its author for that",
    )


def _wanted(path: Path) -> list[str]:
    """Return the forbidden names, as `_unknown` does, of a file that may be a pickle."""
    reader = Reader(path.stat().st_size)
    with contextlib.suppress(Exception):  # if the file is no pickle, the names up to the first byte that is not one
        _follow(path, reader, archive=False)
    return _unknown(reader.names)


def _unknown(names: list[str]) -> list[str]:
    """Return the names, in order, that a pickle refers to and that may not be built."""
    safe = {name for _, name in allowed(names)} | {"collections.OrderedDict", "collections.Counter", "_codecs.encode"}
    safe |= {f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("set", "bytearray", "complex")}
    return list(dict.fromkeys(name for name in names if name not in safe and not name.startswith("torch.")))


def _follow(path: Path, reader: Reader, archive: bool) -> None:
    """Have `reader` follow every pickle of the file that torch would load."""
    if archive:
        # By torch's own reader: two readers of zip files can find two different records in one file, and what is
        # checked must be what is loaded.
        import torch

        with path.open("rb") as file:
            reader.read(io.BytesIO(torch._C.PyTorchFileReader(file).get_record("data.pkl")))
        return
    # Mapped, because a pickle may state any length: reading from a file would reserve that much memory first.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for _ in range(5):  # a legacy file is five pickles in a row, then raw bytes
            if data.tell() < len(data):
                reader.read(data)  # type: ignore[arg-type]  # it has what a reader of pickles needs
