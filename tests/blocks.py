"""The first blocks of a model: a block is like the others, and most tests need few."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def first_blocks(state: Mapping[str, Any], count: int) -> dict[str, Any]:
    """An official state dict, or one of ours, without the blocks from `count` on."""
    parts = {name: name.split(".") for name in state}
    return {name: value for name, value in state.items() if parts[name][0] != "layers" or int(parts[name][1]) < count}


def cut(checkpoint: Path, count: int, out: Path) -> Path:
    """Write the first blocks of a trainer's checkpoint, with the trainer's settings and nothing else of it."""
    whole = torch.load(checkpoint, weights_only=False)
    torch.save({"model": first_blocks(whole["model"], count), "args": whole["args"]}, out)
    return out
