"""Read a checkpoint's document with headers in place of tensors (`leaves`), without torch.

Only what `torch.save` and safetensors write today is read: stored zip archives of plain strided tensors. Whatever is
otherwise raises `NotPlain`, and is left to torch, which reads more and refuses in its own words.
"""

import collections
import io
import json
import math
import mmap
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from stm.checkpoint.claims import Reader
from stm.checkpoint.inert import renamed
from stm.checkpoint.leaves import DTYPES, Header, header

_SAFE_DTYPES = {"BF16": "bfloat16", "BOOL": "bool", "U8": "uint8"}
_SAFE_DTYPES |= {f"F{n}": f"float{n}" for n in (16, 32, 64)} | {f"I{n}": f"int{n}" for n in (8, 16, 32, 64)}
_STORAGES = {
    f"torch.{name}Storage": dtype
    for name, dtype in (
        *(("Double", "float64"), ("Float", "float32"), ("Half", "float16"), ("BFloat16", "bfloat16"), ("Bool", "bool")),
        *(("Long", "int64"), ("Int", "int32"), ("Short", "int16"), ("Char", "int8"), ("Byte", "uint8")),
        *(("ComplexFloat", "complex64"), ("ComplexDouble", "complex128")),
    )
}
_FLOATING = ("float", "bfloat", "complex")  # what may require a gradient
# The opcodes that torch.load knows too: others are refused, and torch says how.
_OPCODES = frozenset(
    (
        *("GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "APPEND", "APPENDS", "SETITEM", "SETITEMS"),
        *("MARK", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "NONE", "NEWFALSE", "NEWTRUE"),
        *("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "BINPERSID", "BININT", "BININT1", "BININT2"),
        *("BINFLOAT", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT", "BINUNICODE", "SHORT_BINSTRING", "LONG1"),
        *("PROTO", "STOP"),
    )
)
# Bytes of a zip record's own header, of its entry in the directory, and of that one's end without a comment.
_LOCAL, _ENTRY, _END = 30, 46, 22
_FLAGS = 0x0808  # of a record: its size stands behind it, its name is UTF-8


class NotPlain(Exception):
    """The file may be a checkpoint, but not one that is described without torch."""


def safetensors(path: Path) -> dict[str, Any]:
    """Return the headers of a safetensors file, by name.

    Raises:
        NotPlain: it is damaged, or holds a dtype that is not described here.
    """
    try:
        data = _mapped(path)
        start = 8 + int.from_bytes(data[:8], "little")
        text = data[8:start].decode()
        # safetensors' own parser takes no name twice, nor a number as 1.0, -0 or NaN.
        entries = json.loads(text, object_pairs_hook=_once, parse_int=_count, parse_float=_never, parse_constant=_never)
        about = entries.pop("__metadata__", {})
        if not all(isinstance(each, str) for pair in about.items() for each in pair):
            raise NotPlain
        parts = []
        for name, entry in entries.items():
            if entry.keys() != {"dtype", "shape", "data_offsets"}:
                raise NotPlain
            first, last = entry["data_offsets"]
            dtype, shape = _SAFE_DTYPES[entry["dtype"]], entry["shape"]
            if any(type(each) is not int for each in (first, last, *shape)):
                raise NotPlain
            if math.prod(shape) * DTYPES[dtype].itemsize != last - first:
                raise NotPlain
            name.encode()  # half of a surrogate pair is no name
            parts.append((first, last, name, header(data, start + first, start + last, dtype, shape)))
        # One behind the other, from the header to the end of the file.
        parts.sort(key=lambda part: part[:2])
        ends = [0, *(last for _, last, *_ in parts)]
        if [first for first, *_ in parts] != ends[:-1] or start + ends[-1] != len(data):
            raise NotPlain
        return dict(sorted((name, tensor) for *_, name, tensor in parts))
    except OSError:
        raise
    except Exception as error:  # whatever a damaged header leads to
        raise NotPlain from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise NotPlain
    return members


def _count(digits: str) -> int:
    if not digits.isdigit():
        raise NotPlain
    return int(digits)


def _never(_: str) -> NoReturn:
    raise NotPlain


class Archive:
    """A zip checkpoint as torch.save writes it: every record stored once, under one folder.

    Raises:
        NotPlain: it is otherwise, so that another reader of zip files might find other records in it.
    """

    def __init__(self, path: Path) -> None:
        self._data = _mapped(path)
        try:
            with zipfile.ZipFile(path) as archive:
                records = archive.infolist()
                self.pickle = archive.read(next(each for each in records if each.filename.endswith("/data.pkl")))
            plain = self._ends_plainly(len(records), archive.start_dir)
            folder = records[0].filename.partition("/")[0]
            self._records: dict[str, tuple[int, int]] = {}
            for each in records:
                top, _, name = each.filename.partition("/")
                # where the record's own header says that its bytes begin, as torch looks it up
                at = each.header_offset
                head = self._data[at : at + _LOCAL]
                names, more = int.from_bytes(head[26:28], "little"), int.from_bytes(head[28:30], "little")
                start = at + _LOCAL + names
                same = self._data[at + _LOCAL : start] == each.orig_filename.encode()
                stored = each.compress_type == zipfile.ZIP_STORED and each.file_size == each.compress_size
                usual = not (each.flag_bits & ~_FLAGS or each.volume) and head[:4] == b"PK\x03\x04" and same
                if top != folder or name in self._records or not stored or not usual:
                    plain = False
                self._records[name] = start + more, each.file_size
            numbers = (self._text(name) or b"0" for name in (".format_version", ".storage_alignment"))
            if not plain or not all(map(bytes.isdigit, numbers)):
                raise NotPlain
            if self._text("byteorder") not in (None, b"little") or self._text("version") != b"3\n":
                raise NotPlain
        except (OSError, MemoryError):
            raise
        except Exception as error:  # a damaged directory leads anywhere
            raise NotPlain from error

    def _ends_plainly(self, count: int, start: int) -> bool:
        """Return whether the directory of `count` records, which begins at `start`, ends as torch.save writes it.

        That is with both forms of its end, which agree: one disk, all records, nothing between and nothing behind.
        """
        end = self._data[-_END:]
        size = int.from_bytes(end[12:16], "little")
        whole = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, count, count, size, start, 0)
        wide = struct.pack("<QIIQQQQ", 44, 0, 0, count, count, size, start)
        locator = struct.pack("<4sIQI", b"PK\6\7", 0, start + size, 1)
        behind = self._data[start + size : -_END]
        versions = behind[12:16]
        directory, at = self._data[start : start + size], 0
        for _ in range(count):
            at += _ENTRY + sum(struct.unpack_from("<HHH", directory, at + 28))  # its name, more and a comment
        return at == size and end == whole and behind == b"PK\6\6" + wide[:8] + versions + wide[8:] + locator

    def _text(self, name: str) -> bytes | None:
        if name not in self._records:
            return None
        at, size = self._records[name]
        return self._data[at : at + size]

    def storage(self, key: str, dtype: str, count: int) -> "Span":
        """Return where a storage lies in the file."""
        at, size = self._records[f"data/{key}"]
        if size != count * DTYPES[dtype].itemsize or at + size > len(self._data):
            raise NotPlain
        return Span(self._data, at, at + size, dtype)


class Span(NamedTuple):
    """The bytes of a mapped file from `at` to `end`, which hold numbers of one dtype."""

    data: mmap.mmap | bytes
    at: int
    end: int
    dtype: str


def document(archive: Archive, reader: Reader, known: Mapping[str, Any]) -> Any:
    """Return what a zip checkpoint holds, with headers for its tensors.

    Args:
        reader: that has followed the archive's pickle, and found that it claims no more than the file holds.
        known: what may stand for each name in the pickle, beside torch's own.

    Raises:
        NotPlain: the pickle asks for something else.
    """
    if not reader.opcodes <= _OPCODES:
        raise NotPlain
    try:
        return _Unpickler(archive, known).load()
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make it raise anything at all
        raise NotPlain from error


class _Unpickler(pickle.Unpickler):
    """Build what is in `known` and headers, and nothing else."""

    def __init__(self, archive: Archive, known: Mapping[str, Any]) -> None:
        super().__init__(io.BytesIO(archive.pickle), encoding="bytes")
        self._archive, self._known = archive, known

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        for each in (full, renamed(full)):
            if each in TORCH:
                return TORCH[each]
            if each in self._known:
                return self._known[each]
        raise NotPlain(full)

    def persistent_load(self, pid: Any) -> Any:
        kind, storage, key, location, count = pid
        if kind != "storage" or not isinstance(storage, _Storage) or type(count) is not int:
            raise NotPlain
        if not isinstance(location, str) or location.partition(":")[0] not in ("cpu", "cuda"):
            raise NotPlain
        return self._archive.storage(str(key), storage.dtype, count)


class _Storage:
    def __init__(self, dtype: str) -> None:
        self.dtype = dtype


def _tensor(
    storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], grad: bool = False, *_: Any
) -> Header:
    """Return the header of what `torch._utils._rebuild_tensor_v2` makes of these arguments."""
    data, at, end, dtype = storage
    if any(type(each) is not int for each in (offset, *size, *stride)) or offset < 0:
        raise NotPlain
    if grad and not dtype.startswith(_FLOATING):
        raise NotPlain
    return header(data, at + offset * DTYPES[dtype].itemsize, end, dtype, size, stride)


def _parameter(data: Any, *_: Any) -> Header:
    if not isinstance(data, Header):
        raise NotPlain
    return data


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


# What stands for torch's own names.
TORCH: dict[str, Any] = {
    "collections.OrderedDict": collections.OrderedDict,
    "collections.Counter": collections.Counter,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": tuple,
    "torch.device": lambda *_: object(),
    **{name: _Storage(dtype) for name, dtype in _STORAGES.items()},
    **{f"torch.{dtype}": object() for dtype in DTYPES},
}
