"""Where a model runs: `auto` and the names that torch knows."""

import torch

from stm.errors import UsageError


def pick(name: str = "auto") -> torch.device:
    """The device of that name; `auto` takes a GPU where torch sees one, else the CPU.

    Raises:
        UsageError: torch knows no such device, or cannot use it here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch raises either for what was not built in
        raise UsageError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}", "see: stm env") from error
