"""From the words of an option to its value: each refuses what it cannot be in one sentence."""

import math
from collections.abc import Callable
from typing import Any

import typer


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number") from None


def _points(text: str) -> float:
    """Percentage points, as typed, to the fraction that the library takes."""
    points = _number(text)
    if not (math.isfinite(points) and 0 <= points <= 100):
        raise typer.BadParameter(f"{text!r} is not a number of percentage points, 0 to 100")
    return points / 100


def _whole(at_least: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        try:
            number = int(value)
        except ValueError:
            number = at_least - 1
        if number < at_least:
            raise typer.BadParameter(f"{str(value)!r} is not a whole number of at least {at_least}")
        return number

    return parse


def _sizes(value: Any) -> tuple[int, ...]:
    if isinstance(value, tuple):  # the default
        return value
    try:
        sizes = tuple(int(part) for part in value.split(","))
    except ValueError:
        sizes = (0,)
    if min(sizes) < 1:
        raise typer.BadParameter(f"{value!r} is not a list of batch sizes such as 1,8")
    return sizes


def _blocks(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of block numbers such as 10,16") from None


def _list(one: Callable[[Any], Any]) -> Callable[[str], tuple[Any, ...]]:
    return lambda text: tuple(one(part) for part in text.split(","))


def _words(text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(","))
    if not all(words):
        raise typer.BadParameter(f"{text!r} is not a list of names such as stm,rmeeto")
    return words


def _one_of(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(allowed)}")
        return text

    return parse
