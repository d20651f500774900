"""YAML, read strictly: words mean what the core schema of YAML 1.2 says, and nothing in a file acts.

PyYAML splits the text into events. What it would make of them is not used: under YAML 1.1 `no` is false, `1e-3` is text
and `010` is 8, and an alias that names an alias makes a small file large. The words are data: no tag, no alias, one
document, no key twice.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from stm.errors import brief, escaped, said

DEEPEST = 8  # levels of lists and keys within each other
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same events; libyaml's are ten times as fast
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}
_LONGEST = 40  # characters of a number
Lines = dict[str, int]


def parse(text: str) -> tuple[Any, Lines]:
    """Return what a text holds, and the line of each value by its path, such as `merges.steps[0].after`; from 1.

    Raises:
        ValueError: it is no YAML, or YAML that we do not take; the message begins with the line.
    """
    lines: Lines = {}
    value, documents = None, 0
    # Event by event, so that a text that lies too deep is left before the parser, whose time grows with the square of
    # the depth, has seen all of it.
    events = yaml.parse(text, Loader=_LOADER)
    try:
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise _refused(event, "a second document begins, expected one")
            elif not isinstance(event, yaml.StreamStartEvent | yaml.StreamEndEvent | yaml.DocumentEndEvent):
                value = _value(event, events, "", lines, 0)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = said(ValueError(error.problem or error.context or "its form is none"))
        raise ValueError(f"line {mark.line + 1 if mark else 1}: it is not YAML: {what}") from error
    except (yaml.YAMLError, UnicodeEncodeError) as error:  # a character that no YAML has
        raise ValueError(f"line 1: it is not YAML: {said(error)}") from error
    return value, lines


def _value(event: yaml.Event, events: Iterator[yaml.Event], path: str, lines: Lines, depth: int) -> Any:
    _check(event, path, depth)
    lines[path] = event.start_mark.line + 1
    if isinstance(event, yaml.ScalarEvent):
        return event.value if event.style else _plain(event, path)
    if isinstance(event, yaml.SequenceStartEvent):
        out: list[Any] = []
        for item in events:
            if isinstance(item, yaml.SequenceEndEvent):
                break
            out.append(_value(item, events, f"{path}[{len(out)}]", lines, depth + 1))
        return out
    held: dict[str, Any] = {}
    for key in events:
        if isinstance(key, yaml.MappingEndEvent):
            break
        if not isinstance(key, yaml.ScalarEvent):
            raise _refused(key, f"{path or 'the file'} has a key that is no word")
        _check(key, path, depth)
        name = f"{path}.{key.value}" if path else key.value
        if key.value in held:
            raise _refused(key, f"{name} is written twice, first in line {lines[name]}")
        held[key.value] = _value(next(events), events, name, lines, depth + 1)
        lines[name] = key.start_mark.line + 1  # of the key: what it holds may begin below
    return held


def _check(event: yaml.Event, path: str, depth: int) -> None:
    where = escaped(brief(path)) or "the file"
    if isinstance(event, yaml.AliasEvent):
        raise _refused(event, f"{where} is the alias *{brief(event.anchor)}, expected the value itself")
    if event.anchor is not None:
        raise _refused(event, f"{where} has the anchor &{brief(event.anchor)}, expected the value alone")
    if event.tag is not None:
        raise _refused(event, f"{where} has the tag {brief(event.tag)}, expected the value alone")
    if depth > DEEPEST:
        raise _refused(event, f"{where} lies more than {DEEPEST} levels deep")


def _plain(event: yaml.ScalarEvent, path: str) -> Any:
    """Return what a word without quotes stands for."""
    word = event.value
    if word in _WORDS:
        return _WORDS[word]
    if not _NUMBER.fullmatch(word):
        return word
    if len(word) > _LONGEST:
        raise _refused(event, f"{path} is {brief(word, 20)}, expected a number of at most {_LONGEST} characters")
    if _WHOLE.fullmatch(word):
        return int(word)
    if word.lstrip("+-").isdigit():
        raise _refused(event, f"{path} is {word}, which some readers take for octal: leave the leading zeros out")
    return float(word)


def _refused(event: yaml.Event, what: str) -> ValueError:
    return ValueError(f"line {event.start_mark.line + 1}: {what}")


def written(value: Any) -> str:
    """Return a value as YAML in one line, which YAML 1.1 and 1.2 read alike: words that might be more get quotes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(written, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        text = repr(value)
        return text if "." in text else text.replace("e", ".0e")  # 1e-05 is text under YAML 1.1
    if isinstance(value, int):
        return str(value)
    return _quoted(str(value))


def _quoted(text: str) -> str:
    # A word of letters that begins none of YAML's own: yes, no, on, off, true, null and the like get quotes.
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_./-]*( [A-Za-z0-9_./-]+)*", text)
    reserved = text.lower() in ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
    if plain and not reserved:
        return text
    if text.isprintable():
        return "'" + text.replace("'", "''") + "'"
    escapes = {'"': '\\"', "\\": "\\\\"}
    return (
        '"' + "".join(escapes.get(each) or (each if each.isprintable() else _escape(ord(each))) for each in text) + '"'
    )


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
