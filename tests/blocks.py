"""The first blocks of a model: a block is like the others, and most tests need few."""

from collections.abc import Mapping
from typing import Any


def first_blocks(state: Mapping[str, Any], count: int) -> dict[str, Any]:
    """An official state dict, or one of ours, without the blocks from `count` on."""
    parts = {name: name.split(".") for name in state}
    return {name: value for name, value in state.items() if parts[name][0] != "layers" or int(parts[name][1]) < count}
