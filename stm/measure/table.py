"""Write rows of results as CSV."""

import csv
import io
from collections.abc import Iterable
from typing import Any

from stm.codec import encode
from stm.evaluations import Evaluation
from stm.findings import PlanRow


def as_csv(table: Iterable[Evaluation | PlanRow]) -> str:
    """Return rows as CSV: nested values in columns of their own, lists as words."""
    # Rows of different kinds have different keys. The header has each key once, in the order of first appearance.
    flat = [_flat(encode(row)) for row in table]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in flat for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in row.items():
        if key in ("reasons", "notes"):
            out[key] = "; ".join(dict.fromkeys(value.values() if isinstance(value, dict) else value))
        elif isinstance(value, dict):
            out |= {f"{key}_{name}": part for name, part in value.items()}
        elif key.endswith("_ci"):  # also if it is None, so that all rows have the two columns
            low, high = value or (None, None)
            out |= {f"{key[:-3]}_low": low, f"{key[:-3]}_high": high}
        else:
            out[key] = " ".join(map(str, value)) if isinstance(value, list) else value
    return out
