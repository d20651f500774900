"""Read what a trainer left beside a file of weights."""

import json
from pathlib import Path

_LARGEST = 10_000_000  # bytes of a config.json


def labels_beside(weights: Path, classes: int) -> tuple[str, ...] | None:
    """Return the class names of the `id2label` in the config.json beside the weights, in order.

    None without one, or if it does not name exactly this model's classes: a config may be of another model.
    """
    config = weights.with_name("config.json")
    try:
        if config.stat().st_size > _LARGEST:
            return None
        document = json.loads(config.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    names = document.get("id2label") if isinstance(document, dict) else None
    if not isinstance(names, dict) or set(names) != {str(i) for i in range(classes)}:
        return None
    labels = tuple(names[str(i)] for i in range(classes))
    # transformers writes LABEL_0 and so on where nobody named the classes
    named = all(isinstance(name, str) and name for name in labels) and labels[0] != "LABEL_0"
    return labels if named else None
