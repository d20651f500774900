"""Make the text of files and of the Hub safe for a terminal: replace each character that acts by an escape (`\\x1b`).

A label or a file name may hold what a terminal obeys (set a title, clear the screen, write right to left), and a line
break in it could pass for a line of ours. Letters of every script stay as they are. JSON stays JSON: it has escapes of
its own.
"""

import dataclasses
import logging
import re
import textwrap
import traceback
import warnings
from typing import Any, TypeVar

from stm.errors import escape

T = TypeVar("T")

# The controls: C0 with line breaks and tabs, DEL, C1. Characters that set the direction of writing. Separators of lines
# and paragraphs. Lone surrogates, in which Python keeps the bytes of a file name that is not UTF-8.
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# The same without C0, which JSON itself escapes.
_NOT_IN_JSON = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Return the text with an escape for each character that would act on a terminal instead of being read."""
    return _HIDDEN.sub(escape, text)


def visible_json(document: str) -> str:
    """Return a JSON document with JSON's own escape for each character that would act on a terminal.

    Every reader of the document gets the same values as before.
    """
    return _NOT_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", document)


def visible_report(value: T) -> T:
    """Return a report, or any value in a report, with every text in it visible."""
    # Once for the whole report, so that no screen can forget a field.
    made: Any = value
    if isinstance(value, str):
        made = visible(value)
    elif isinstance(value, dict):
        made = {visible_report(key): visible_report(item) for key, item in value.items()}
    elif isinstance(value, tuple | list):
        made = type(value)(map(visible_report, value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        texts = {field.name: visible_report(getattr(value, field.name)) for field in dataclasses.fields(value)}
        made = dataclasses.replace(value, **texts)
    return made


def visible_traceback(caught: BaseException) -> str:
    """Return the traceback, indented, so that no line of a message in it looks like a line of ours."""
    lines = "".join(traceback.format_exception(caught)).split("\n")
    return textwrap.indent("\n".join(map(visible, lines)), "  ")


def tame_libraries() -> None:
    """Make the warnings and log records of libraries pass through `visible` too.

    Both may repeat the words of a file or a server on stderr.
    """
    # A handler would not do: a library may add handlers of its own. Every record comes from the factory.
    logging.setLogRecordFactory(_Record)
    warnings.formatwarning = _warning
    logging.getLogger("huggingface_hub.utils._http").addFilter(_retries)


class _Record(logging.LogRecord):
    def getMessage(self) -> str:
        return visible(super().getMessage())


def _retries(record: logging.LogRecord) -> bool:
    """Make one sentence of the lines in which huggingface_hub tells of each attempt. A limit of the Hub stays."""
    if record.levelno != logging.WARNING or str(record.msg).startswith("Rate limited"):
        return True
    if not str(record.msg).startswith("Retrying in"):
        return False
    first = "[Retry 1/" in str(record.msg)
    record.msg, record.args = "Note: the Hub failed, and is asked again for up to half a minute", ()
    return first


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"{visible(filename)}:{lineno}: {category.__name__}: {visible(str(message))}\n"
