"""Dataclasses to JSON and back, strictly: every key known, every key there, every value of its kind.

One codec serves `config.json` and the reports that commands print. It raises plain ValueErrors that name the path of a
value; the callers know the file, and turn them into errors for people.
"""

import dataclasses
import json
import math
import sys
import types
import typing
from collections import Counter
from typing import Any

from stm.errors import brief, escaped, listed

# The metadata of a field that came after folders had been written: JSON has it only if it is not the default, so that
# the bytes of older folders stay, and a file without it has the default.
LATER = {"later": True}


def parse(text: str) -> Any:
    """Parse JSON as its standard has it. Python's own parser accepts more.

    Raises:
        ValueError: NaN or infinity, a number out of range, a key twice, or text that could not be written again.
    """
    document = json.loads(text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_no_duplicates)
    json.dumps(document, ensure_ascii=False).encode()  # raises for half a character, which an escape can spell
    return document


def encode(value: Any) -> Any:
    """Return a value as JSON types: dataclasses and dicts as objects, tuples and lists as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: encode(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if not (f.metadata == LATER and getattr(value, f.name) == f.default)
        }
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    return value


def decode(kind: Any, value: Any, path: str) -> Any:
    """Return a JSON value as `kind`, which is a dataclass or the type of one of its fields.

    Args:
        path: the place of the value in the document, such as "schedule.steps[0]"; "" for the document itself.

    Raises:
        ValueError: a value of another kind, an unknown or a missing key; the message has path, value and expected kind.
    """
    # int and float are left to the end: a bool is an int to Python, and an int is a float to JSON.
    if kind is Any or (isinstance(kind, type) and isinstance(value, kind) and kind is not int and kind is not float):
        return value
    if dataclasses.is_dataclass(kind):
        return _decode_object(kind, value, path)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        if value is None and type(None) in args:
            return None
        kinds = [a for a in args if a is not type(None)]  # one, or a number and a tuple, which JSON tells apart
        as_tuple = isinstance(value, list)
        return decode(next((a for a in kinds if (typing.get_origin(a) is tuple) == as_tuple), kinds[0]), value, path)
    if origin is tuple and isinstance(value, list):
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(inner) == len(value):
            return tuple(decode(k, item, f"{path}[{i}]") for i, (k, item) in enumerate(zip(inner, value, strict=True)))
    if origin is dict and isinstance(value, dict):
        return {key: decode(args[1], item, f"{path}.{brief(escaped(key))}") for key, item in value.items()}
    if kind is int and type(value) is int:
        return value
    # An int may be larger than any float, which float() would refuse with an error of another kind.
    if kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    raise ValueError(f"{path} is {brief_json(value)}, expected {_kind_name(kind)}")


def _decode_object(kind: Any, value: Any, path: str) -> Any:
    """Return a JSON object as the dataclass `kind`. A file that lacks a key is refused, apart from those of `LATER`."""
    if not isinstance(value, dict):
        raise ValueError(f"{path or 'the file'} is {brief_json(value)}, expected an object")
    hints = typing.get_type_hints(kind)
    prefix = f"{path}." if path else ""
    if unknown := sorted(value.keys() - hints.keys()):
        raise ValueError(f"unknown key {listed(prefix + key for key in unknown)}")
    later = {f.name for f in dataclasses.fields(kind) if f.metadata == LATER}
    if missing := sorted(hints.keys() - value.keys() - later):
        raise ValueError(f"missing key {', '.join(prefix + key for key in missing)}")
    fields = {key: decode(hint, value[key], prefix + key) for key, hint in hints.items() if key in value}
    try:
        return kind(**fields)
    except ValueError as error:  # of the dataclass's own checks, which do not know where the value stands
        raise ValueError(f"{path}: {error}" if path else str(error)) from error


def _kind_name(kind: Any) -> str:
    """Return a kind in words, for a sentence."""
    names = {int: "an integer", float: "a finite number", str: "a string", bool: "true or false"}
    origin = typing.get_origin(kind)
    return names.get(kind) or {tuple: f"a list ({kind})", dict: "an object"}.get(origin or kind, str(kind))


def brief_json(value: Any) -> str:
    """Return a value as JSON for a sentence, at most 80 characters of it."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return escaped(text if len(text) <= 80 else text[:77] + "...")


# Hooks of json.loads, for the rules that the parser does not enforce.


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"{text} is too large a number")
    return float(text)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if twice := [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]:
        raise ValueError(f"a key is written twice: {brief_json(twice)}")
    return dict(pairs)
