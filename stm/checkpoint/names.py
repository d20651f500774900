"""Which files of a folder or repository are weights, by their names, as trainers leave them."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from stm.hub.aliases import ENDINGS

INDEX = ".safetensors.index.json"
# What trainers write beside the weights and that holds none.
_BESIDE = re.compile(
    r"(optimizer|optim|scheduler|lr_scheduler|scaler|training_args|rng_state|random_states)([_.-]\w+)*\..*"
)
_SHARD = re.compile(r".*-\d{5}-of-\d{5}\.(safetensors|bin)")


def weights_among(names: Sequence[str]) -> list[str]:
    """Return the files that may be a model's weights, in order. Shards count as their index.

    Of the same weights as safetensors and as a pickle (`model.safetensors`, `pytorch_model.bin`), safetensors win.
    """
    files = []
    for name in names:
        base = PurePosixPath(name).name.lower()
        weights = base.endswith(ENDINGS) and _SHARD.fullmatch(base) is None
        if (weights or base.endswith(INDEX)) and _BESIDE.fullmatch(base) is None:
            files.append(name)
    safe = {PurePosixPath(name).parent for name in files if _stem(name) == "model"}
    return [name for name in files if not (_stem(name) == "pytorch_model" and PurePosixPath(name).parent in safe)]


def _stem(name: str) -> str | None:
    """Return how the Hub's libraries call a model's file, without its ending; None for other files."""
    base = PurePosixPath(name).name.lower()
    if base in ("model.safetensors", f"model{INDEX}"):
        return "model"
    return "pytorch_model" if base == "pytorch_model.bin" else None
