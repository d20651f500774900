"""Mutators of files that hold other things: safetensors, pickles in zip files, tar, PNG, arrays of numpy.

Lengths and sums are kept right; see fuzz/mutate.py for what a mutator is.
"""

import gzip
import io
import json
import pickletools
import random
import re
import struct
import zipfile
import zlib

from fuzz.harness import CANARY
from fuzz.mutate import NUMBERS, TEXTS, document, raw, shuffled

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
            case 1 | 2:
                shuffled(ops, at, draw)
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
        case 1 | 3:
            shuffled(entries, at, draw)
        case 2:
            entries[at] = f"{entries[at][0].partition('/')[0]}/{draw.choice(TEXTS)}", entries[at][1]
        case _:
            at = next(i for i, (name, _) in enumerate(entries) if name.endswith("data.pkl"))
            entries[at] = entries[at][0], pickle(entries[at][1], draw)
    made = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if draw.random() < 0.15 else zipfile.ZIP_STORED
    with zipfile.ZipFile(made, "w", kind) as archive:
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content, kind)
    return raw(made.getvalue(), draw) if draw.random() < 0.1 else made.getvalue()


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
        case 0 | 1:
            shuffled(chunks, at, draw)
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
