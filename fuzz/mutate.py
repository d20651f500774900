"""Mutators that know a format: what they make gets past the format's own parser, to the code that reads its content.

Each takes the bytes of a file and a generator, and raises any exception if the bytes are no such file.
"""

import csv
import gzip
import io
import json
import pickletools
import random
import re
import struct
import zipfile
import zlib
from typing import Any

from fuzz.harness import CANARY

# Numbers, texts and values that readers get wrong: another script's digits, underscores, half characters, other kinds.
NUMBERS = (
    0,
    1,
    -1,
    2,
    255,
    1 << 15,
    (1 << 31) - 1,
    1 << 31,
    1 << 32,
    (1 << 63) - 1,
    1 << 63,
    1 << 64,
    10**30,
    -(1 << 63),
)
TEXTS = (
    "",
    "0",
    "-1",
    "1_0",
    "\u0663",
    "\u00b2",
    " 1",
    "1 ",
    "+1",
    "01",
    "1.0",
    "1e3",
    "1e999",
    "nan",
    "inf",
    "-0",
    "\0",
    "a\0b",
)
TEXTS += (
    "\n",
    "a\nb",
    "\u2028",
    "\x85",
    "\x1c",
    "\ufeff",
    "\u202e",
    "..",
    "../x",
    "/etc/passwd",
    "C:\\x",
    "a" * 300,
    "None",
)
TEXTS += (
    "true",
    "[]",
    "{}",
    '"',
    "'",
    ",",
    ";",
    "\t",
    "\\",
    "%s",
    "{0}",
    "n01440764",
    "middle",
    "float32",
    "\U0001f600",
)
VALUES: tuple[Any, ...] = (
    *NUMBERS,
    *TEXTS,
    None,
    True,
    False,
    0.5,
    -0.0,
    1e308,
    5e-324,
    [],
    {},
    [[]],
    [None],
    {"": None},
    [1, 2, 3],
)
NAMES = (
    "posix system",
    "os system",
    "builtins eval",
    "builtins getattr",
    "builtins bytearray",
    f"{CANARY} run",
    "torch load",
)
NAMES += (
    "torch._utils _rebuild_tensor_v2",
    "collections OrderedDict",
    "torch FloatStorage",
    "torch Size",
    "argparse Namespace",
)
NAMES += (
    "numpy dtype",
    "numpy._core.multiarray scalar",
    "_codecs encode",
    "pathlib PosixPath",
    "collections deque",
    "a.b c",
)
NAMES += (
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_sparse_tensor",
    "torch.nn.parameter Parameter",
    "torch device",
)


def raw(data: bytes, draw: random.Random) -> bytes:
    """Change, remove, repeat or insert a few bytes."""
    made = bytearray(data or b"\0")
    for _ in range(draw.choice((1, 1, 1, 2, 4, 8))):
        at, size = draw.randrange(len(made) + 1), draw.choice((1, 1, 2, 4, 8, 32))
        match draw.randrange(5):
            case 0 if at < len(made):
                made[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
            case 1:
                del made[at : at + size]
            case 2:
                made[at:at] = made[at : at + size]
            case 3:
                made[at : at + size] = draw.randbytes(size)
            case _:
                number = draw.choice(NUMBERS) & ((1 << 64) - 1)
                packed = number.to_bytes(8, draw.choice(("little", "big")))
                made[at : at + size] = packed[: size if size <= 8 else 8]
        made = made or bytearray(b"\0")
    return bytes(made)


def document(value: Any, draw: random.Random) -> Any:
    """Return a changed document of JSON: one of its values replaced, removed, repeated, moved or wrapped."""
    places: list[tuple[Any, Any]] = []

    def walk(each: Any) -> None:
        for key in each if isinstance(each, dict) else range(len(each)) if isinstance(each, list) else ():
            places.append((each, key))
            walk(each[key])

    value = json.loads(json.dumps(value))
    walk(value)
    if not places:
        return draw.choice(VALUES)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        holder, key = draw.choice(places)
        if key not in holder if isinstance(holder, dict) else key >= len(holder):
            continue  # removed by the change before
        match draw.randrange(8):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[draw.choice(TEXTS) or "x"] = holder[key]
            case 1:
                holder.insert(key, holder[key])
            case 2:
                other, at = draw.choice(places)
                holder[key] = json.loads(json.dumps(other[at])) if at in other or isinstance(other, list) else None
            case 3:
                holder[key] = draw.choice(([holder[key]], {"x": holder[key]}, [holder[key]] * 3, str(holder[key])))
            case 4 if isinstance(holder[key], int | float):
                holder[key] += draw.choice((1, -1, 0.5))
            case _:
                holder[key] = draw.choice(VALUES)
    return value


def json_bytes(data: bytes, draw: random.Random) -> bytes:
    """Change a file of JSON; sometimes in a way that only its text can have (a key twice, NaN, half a character)."""
    text = json.dumps(document(json.loads(data), draw), ensure_ascii=draw.random() < 0.5)
    match draw.randrange(12):
        case 0:
            text = re.sub(
                r"\d+", lambda m: draw.choice(("NaN", "1e999", "-Infinity", "1" * 400, m[0] + "0")), text, count=1
            )
        case 1:
            text = text.replace('"', '"\\ud800', draw.randrange(1, 4))
        case 2:
            text = text.replace("{", '{"a": 1, "a": 2, ', 1)
        case 3:
            depth = draw.choice((50, 1000, 20_000))
            text = text.replace("null", "[" * depth + "]" * depth, 1)
    return text.encode("utf-8", "surrogatepass")


def lines_of_json(data: bytes, draw: random.Random) -> bytes:
    """Change one line of a file that has a document on each."""
    lines = data.split(b"\n")
    at = draw.choice([i for i, line in enumerate(lines) if line])
    match draw.randrange(6):
        case 0:
            lines.insert(at, lines[at])
        case 1:
            del lines[at]
        case _:
            lines[at] = json_bytes(lines[at], draw)
    return b"\n".join(lines)


def safetensors(data: bytes, draw: random.Random) -> bytes:
    """Change the header of a file of safetensors, and keep its length right, or change its tensors."""
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    match draw.randrange(8):
        case 0:
            return data[: 8 + length] + raw(rest, draw)
        case 1:
            return draw.choice(NUMBERS).to_bytes(16, "little", signed=True)[:8] + data[8:]
        case 2:
            name = draw.choice([key for key in header if key != "__metadata__"])
            header[name]["dtype"] = draw.choice(
                ("F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "U64", "C64")
            )
        case 3:
            header[draw.choice(list(header))] = header[draw.choice(list(header))]
        case 4:
            return struct.pack("<Q", length) + data[8 : 8 + length] + rest[: draw.randrange(len(rest) + 1)]
        case _:
            header = document(header, draw)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def pickle(data: bytes, draw: random.Random) -> bytes:
    """Change opcodes of a pickle: their arguments, their order, their number; names become others."""
    ends = [position for _, _, position in pickletools.genops(data) if position is not None]
    ops = [data[start:end] for start, end in zip(ends, [*ends[1:], ends[-1] + 1], strict=True)]
    tail = data[ends[-1] + 1 :]
    for _ in range(draw.choice((1, 1, 2, 3))):
        at = draw.randrange(len(ops))
        code = ops[at][:1]
        match draw.randrange(7):
            case 0:
                ops[at] = _global(draw)
            case 1:
                del ops[at]
                ops = ops or [b"."]
            case 2:
                ops.insert(at, draw.choice(ops))
            case 3:
                ops.insert(
                    at,
                    draw.choice(
                        (b"0", b"1", b"2", b"(", b"t", b"R", b"}", b"]", b")", b"\x85", b"N", b"b", b"u", b"s", b"Q")
                    ),
                )
            case 4 if code in b"KMJ\x8a":
                ops[at] = _integer(draw)
            case 5 if code in b"XU\x8c":
                text = draw.choice(TEXTS).encode("utf-8", "surrogatepass")
                ops[at] = b"X" + struct.pack("<I", len(text)) + text
            case 6 if b"c" in [op[:1] for op in ops]:
                ops[draw.choice([i for i, op in enumerate(ops) if op[:1] == b"c"])] = _global(draw)
            case _:
                ops[at] = _integer(draw)
    return b"".join(ops) + tail


def _global(draw: random.Random) -> bytes:
    return b"c" + draw.choice(NAMES).replace(" ", "\n").encode() + b"\n"


def _integer(draw: random.Random) -> bytes:
    number = draw.choice(NUMBERS)
    packed = number.to_bytes((number.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(packed)]) + packed


def zipped(data: bytes, draw: random.Random) -> bytes:
    """Change an entry of a zip file, most often its pickle, or the names, the order and the compression of entries."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    at = draw.randrange(len(entries))
    match draw.randrange(8):
        case 0:
            entries[at] = entries[at][0], raw(entries[at][1], draw)
        case 1:
            del entries[at]
        case 2:
            entries[at] = f"{entries[at][0].partition('/')[0]}/{draw.choice(TEXTS)}", entries[at][1]
        case 3:
            entries.append(draw.choice(entries))
        case _:
            at = next(i for i, (name, _) in enumerate(entries) if name.endswith("data.pkl"))
            entries[at] = entries[at][0], pickle(entries[at][1], draw)
    made = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if draw.random() < 0.15 else zipfile.ZIP_STORED
    with zipfile.ZipFile(made, "w", kind) as archive:
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content, kind)
    return raw(made.getvalue(), draw) if draw.random() < 0.1 else made.getvalue()


def table(data: bytes, draw: random.Random, separator: str = ",") -> bytes:
    """Change cells, rows and columns of a table of values, its separator, or its quotes."""
    rows = list(csv.reader(io.StringIO(data.decode(), newline=""), delimiter=separator))
    for _ in range(draw.choice((1, 1, 2, 3))):
        at = draw.randrange(len(rows))
        row = rows[at]
        match draw.randrange(8):
            case 0:
                rows.insert(at, [*draw.choice(rows)])
            case 1 if len(rows) > 1:
                del rows[at]
            case 2:
                row.insert(draw.randrange(len(row) + 1), draw.choice(TEXTS))
            case 3 if row:
                del row[draw.randrange(len(row))]
            case 4 if row:
                cell = draw.randrange(len(row))
                row[cell] = re.sub(
                    r"\d", lambda m: chr(ord(m[0]) + draw.choice((0, 0x660 - 0x30, 0xFF10 - 0x30))), row[cell]
                )
            case _ if row:
                row[draw.randrange(len(row))] = draw.choice((*TEXTS, *map(str, NUMBERS), *draw.choice(rows)))
    made = io.StringIO(newline="")
    ending = draw.choice(("\n", "\n", "\n", "\r\n", "\r"))
    csv.writer(
        made, delimiter=draw.choice((separator, separator, separator, ";", "\t")), lineterminator=ending
    ).writerows(rows)
    text = made.getvalue()
    return (draw.choice(("", "", "", "\ufeff")) + text).encode("utf-8", "surrogatepass")


def text_lines(data: bytes, draw: random.Random) -> bytes:
    """Change words of lines, and lines."""
    lines = [line.split(" ") for line in data.decode().split("\n")]
    at = draw.randrange(len(lines))
    match draw.randrange(5):
        case 0:
            lines.insert(at, draw.choice(lines))
        case 1:
            del lines[at]
        case 2:
            lines[at].insert(0, draw.choice(TEXTS))
        case _:
            lines[at][draw.randrange(len(lines[at]))] = draw.choice((*TEXTS, *map(str, NUMBERS)))
    return "\n".join(map(" ".join, lines)).encode("utf-8", "surrogatepass")


_FIELDS = (
    (0, 100),
    (100, 8),
    (108, 8),
    (116, 8),
    (124, 12),
    (136, 12),
    (156, 1),
    (157, 100),
    (257, 8),
    (345, 155),
)  # of a header


def tarred(data: bytes, draw: random.Random) -> bytes:
    """Change fields of headers in a tar file, with the right sums, or its content."""
    blocks = [data[at : at + 512] for at in range(0, len(data), 512)]
    headers = [i for i, block in enumerate(blocks) if block[257:262] == b"ustar"]
    if draw.random() < 0.2:
        return raw(data, draw)
    at = draw.choice(headers)
    if draw.random() < 0.15:
        blocks.insert(draw.choice(headers), blocks[at])
    header = bytearray(blocks[at])
    start, size = draw.choice(_FIELDS)
    match draw.randrange(4):
        case 0 if size == 1:
            header[start] = draw.choice(b"01234567gxLKSDMNV\0")
        case 1 if size in (8, 12):
            header[start : start + size] = (b"%0*o\0" % (size - 1, draw.choice(NUMBERS) & ((1 << 3 * (size - 1)) - 1)))[
                :size
            ]
        case 2:
            header[start : start + size] = draw.choice((b"\x80", b"\xff")) + draw.randbytes(size - 1)
        case _:
            name = draw.choice((*TEXTS, "x/a.png", "a.cls", "a.json", "b.jpg", f"{CANARY}.py")).encode(
                "utf-8", "surrogatepass"
            )[:size]
            header[start : start + size] = name.ljust(size, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    blocks[at] = bytes(header)
    return b"".join(blocks)


def png(data: bytes, draw: random.Random) -> bytes:
    """Change chunks of a PNG, with the right sums."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    at = draw.randrange(len(chunks))
    match draw.randrange(5):
        case 0:
            chunks.insert(at, draw.choice(chunks))
        case 1:
            del chunks[at]
        case 2:
            chunks[at] = (
                draw.choice((b"tEXt", b"zTXt", b"iCCP", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"eXIf", b"gAMA")),
                chunks[at][1],
            )
        case _:
            chunks[at] = chunks[at][0], raw(chunks[at][1], draw)
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return data[:8] + b"".join(parts)


def npy(data: bytes, draw: random.Random) -> bytes:
    """Change the header of an array of numpy, with the right length, or its values."""
    length = int.from_bytes(data[8:10], "little")
    text, rest = data[10 : 10 + length].decode("latin1"), data[10 + length :]
    match draw.randrange(4):
        case 0:
            rest = raw(rest, draw)
        case 1:
            kind = draw.choice(
                ("|u1", "<u2", ">u2", "<f4", "<f8", "|O", "|b1", "<i8", "|S3", "<U2", "|V4", "<c8", "<M8[s]", "<f2")
            )
            text = re.sub(r"'descr': '[^']*'", f"'descr': '{kind}'", text)
        case 2:
            text = re.sub(r"\d+", lambda m: str(draw.choice(NUMBERS)) if draw.random() < 0.4 else m[0], text)
        case _:
            text = raw(text.encode("latin1"), draw).decode("latin1")
    return data[:8] + struct.pack("<H", len(text) & 0xFFFF) + text.encode("latin1") + rest


def gzipped(data: bytes, draw: random.Random) -> bytes:
    """Change a tar file inside gzip, or the compressed bytes."""
    return raw(data, draw) if draw.random() < 0.1 else gzip.compress(tarred(gzip.decompress(data), draw), mtime=0)
