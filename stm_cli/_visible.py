"""Text of files and of the Hub as a terminal may show it: whatever is no character to be read becomes an escape, such
as `\\x1b`.

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

T = TypeVar("T")

# C0 with line breaks and tabs, DEL and C1; marks, embeddings, overrides and isolates of direction; separators of lines
# and paragraphs; halves of characters, as which Python holds the bytes of a file name that is not UTF-8.
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_NOT_IN_JSON = re.compile(
    "[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)  # the rest is JSON's own to escape


def visible(text: str) -> str:
    """The text with an escape for each character that would act on a terminal instead of being read."""
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def visible_json(document: str) -> str:
    """JSON as ASCII would have it where a terminal would act, and as it is elsewhere: every reader gets the same
    values."""
    return _NOT_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", document)


def visible_report(value: T) -> T:
    """A report, or any value in one, with every text in it visible."""
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
    """The traceback, indented: no line of a message in it passes for one of ours."""
    lines = "".join(traceback.format_exception(caught)).split("\n")
    return textwrap.indent("\n".join(map(visible, lines)), "  ")


def tame_libraries() -> None:
    """Have what libraries warn of and log pass `visible` too: both may repeat a file's or a server's words on
    stderr."""
    logging.setLogRecordFactory(_Record)
    warnings.formatwarning = _warning


class _Record(logging.LogRecord):
    def getMessage(self) -> str:
        return visible(super().getMessage())


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"{visible(filename)}:{lineno}: {category.__name__}: {visible(str(message))}\n"
