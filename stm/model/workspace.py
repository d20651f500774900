"""What the calls of a served model keep for a thread: buffers, and calls that are laid out."""

import math
import threading
from typing import Any

import torch
from torch import Tensor


class OfThread(threading.local):
    """Values by key, separate for each thread, since several threads may share a module but not its buffers."""

    def __init__(self) -> None:
        self.kept: dict[Any, Any] = {}


class Workspace:
    """The buffers that the blocks of a model share."""

    def __init__(self) -> None:
        self._thread = OfThread()

    def take(self, name: str, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return a view of this thread's buffer `name`, growing it if needed.

        Views of one name overlap, whatever their size. A view outlives a growth: it keeps the old memory.
        """
        kept, count = self._thread.kept, math.prod(size)
        if (name, dtype) not in kept or kept[name, dtype].numel() < count:
            kept[name, dtype] = torch.empty(count, dtype=dtype)
        memory: Tensor = kept[name, dtype]
        return memory[:count].view(size)
