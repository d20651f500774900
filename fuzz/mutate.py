"""Mutators that know a format: what they make gets past the format's own parser, to the code that reads its content.

Each takes the bytes of a file and a generator, and raises any exception if the bytes are no such file.
"""

import copy
import csv
import io
import json
import random
import re
from typing import Any

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


def shuffled(parts: list[Any], at: int, draw: random.Random) -> None:
    """Remove the part at a position, or repeat another or the same one there. One part stays at least."""
    if len(parts) > 1 and draw.random() < 0.5:
        del parts[at]
    else:
        parts.insert(at, copy.copy(parts[draw.choice((at, draw.randrange(len(parts))))]))


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
        case 0 | 1:
            shuffled(lines, at, draw)
        case _:
            lines[at] = json_bytes(lines[at], draw)
    return b"\n".join(lines)


def table(data: bytes, draw: random.Random, separator: str = ",") -> bytes:
    """Change cells, rows and columns of a table of values, its separator, or its quotes."""
    rows = list(csv.reader(io.StringIO(data.decode(), newline=""), delimiter=separator))
    for _ in range(draw.choice((1, 1, 2, 3))):
        at = draw.randrange(len(rows))
        row = rows[at]
        match draw.randrange(8):
            case 0 | 1:
                shuffled(rows, at, draw)
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
        case 0 | 1:
            shuffled(lines, at, draw)
        case 2:
            lines[at].insert(0, draw.choice(TEXTS))
        case _:
            lines[at][draw.randrange(len(lines[at]))] = draw.choice((*TEXTS, *map(str, NUMBERS)))
    return "\n".join(map(" ".join, lines)).encode("utf-8", "surrogatepass")
