"""Show a report in a notebook: one form for all of them, drawn from their fields.

The same fields as `--json` prints. A figure stands with its interval, a list of rows is a table of its own, and what is
null is left out.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_LEFT_OUT = {"schema_version", "command", "model"}


def as_html(report: Any) -> str:
    """Return a report, a dataclass whose fields are JSON values or dataclasses, as HTML without scripts or styles."""
    facts, tables = [], []
    for name, value in _values(report).items():
        if name in _LEFT_OUT or name.endswith("_ci") or _is_empty(value):
            continue
        if _is_rows(value):
            tables.append(f"<p>{escape(name)}</p>{_table([_flat(row) for row in value])}")
        else:
            facts.append((name, _text(value) + _interval(_values(report).get(f"{name}_ci"))))
    head = f"stm {getattr(report, 'command', type(report).__name__)}: {getattr(report, 'model', '')}".rstrip(": ")
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in facts)
    return f"<table><caption>{escape(head)}</caption>{rows}</table>{''.join(tables)}"


def _values(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _is_rows(value: Any) -> bool:
    return isinstance(value, tuple | list) and bool(value) and dataclasses.is_dataclass(value[0])


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, Sequence | Mapping) and not value)


def _flat(row: Any) -> dict[str, str]:
    """Return the cells of a row: lists and rows within it are left to `--json`."""
    values = _values(row)
    return {
        name: _text(value) + _interval(values.get(f"{name}_ci"))
        for name, value in values.items()
        if not (name.endswith("_ci") or _is_empty(value) or isinstance(value, tuple | list | dict))
    }


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    cells = ([escape(row.get(name, "")) for name in names] for row in rows)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in cells)
    return f"<table><tr>{head}</tr>{body}</table>"


def _interval(ends: Any) -> str:
    return "" if ends is None else f" ({_text(ends[0])} to {_text(ends[1])})"


def _text(value: Any) -> str:
    match value:
        case bool() | str():
            return str(value)
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.4g}"
        case tuple() | list():
            return ", ".join(map(_text, value))
        case dict():
            return "; ".join(f"{name}: {_text(part)}" for name, part in value.items() if part is not None)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        words = getattr(value, "in_words", None)
        return words if isinstance(words, str) else _text(_values(value))
    return str(value)
