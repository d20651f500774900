"""Parse the text of an option into its value, or refuse it in one sentence that names the text."""

import math
import re
from collections.abc import Callable
from typing import Any, cast

import typer

from stm.config import Size, as_size

# Python's own `int` and `float` also take 1_0 for 10 and the digits of other scripts.
_WHOLE = re.compile(r"[+-]?[0-9]+")
_REAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(inf|infinity|nan)", re.IGNORECASE)


def _int(text: str) -> int:
    if not _WHOLE.fullmatch(text.strip()):
        raise ValueError
    return int(text)


def _number(text: str) -> float:
    try:
        if not _REAL.fullmatch(text.strip()):
            raise ValueError
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number") from None


def _points(text: str) -> float:
    """Return the fraction that the library takes, from percentage points as typed."""
    points = _number(text)
    # Python's `float` takes "nan" and "inf", and every comparison with NaN is false: a gate of NaN would never close.
    if not (math.isfinite(points) and 0 <= points <= 100):
        raise typer.BadParameter(f"{text!r} is not a number of percentage points, 0 to 100")
    return points / 100


def _whole(at_least: int) -> Callable[[Any], int]:
    """Return a parser of whole numbers of at least `at_least`."""

    def parse(value: str | int) -> int:  # a number already if it is the default, which typer passes through too
        try:
            number = _int(value) if isinstance(value, str) else value
        except ValueError:
            number = at_least - 1  # too small, so that one sentence serves both faults
        if number < at_least:
            raise typer.BadParameter(f"{str(value)!r} is not a whole number of at least {at_least}")
        return number

    return parse


def _image_size(value: Any) -> Size | None:
    if not isinstance(value, str):  # typer passes the default through the parser too
        return cast("Size | None", value)
    try:
        numbers = [_int(part) for part in value.lower().split("x")]
    except ValueError:
        numbers = [0]
    if len(numbers) > 2 or min(numbers) < 1:
        raise typer.BadParameter(f"{value!r} is not a size in pixels such as 224, or 224x448 (height x width)")
    return as_size(numbers[0], numbers[-1])


def _sizes(value: Any) -> tuple[int, ...]:
    if isinstance(value, tuple):  # typer passes the default through the parser too
        return value
    try:
        sizes = tuple(_int(part) for part in value.split(","))
    except ValueError:
        sizes = (0,)
    if min(sizes) < 1:
        raise typer.BadParameter(f"{value!r} is not a list of batch sizes such as 1,8")
    return sizes


def _blocks(text: str) -> tuple[int, ...]:
    try:
        return tuple(_int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of block numbers such as 10,16") from None


def _list(one: Callable[[Any], Any]) -> Callable[[str], tuple[Any, ...]]:
    return lambda text: tuple(one(part) for part in text.split(","))


def _words(text: str) -> tuple[str, ...]:
    # The library checks whether the names exist: it knows the methods, and its message lists them.
    words = tuple(word.strip() for word in text.split(","))
    if not all(words):
        raise typer.BadParameter(f"{text!r} is not a list of names such as stm,rmeeto")
    return words


def _some_of(*allowed: str) -> Callable[[str], tuple[str, ...]]:
    return _list(_one_of(*allowed))


def _one_of(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(allowed)}")
        return text

    return parse
