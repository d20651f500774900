"""Where a model runs: `auto` and the names of what there is."""

import torch

from stm.errors import UsageError


def available() -> tuple[str, ...]:
    """What a model can run on here: the processor, and the cards of the kind that torch sees, also by their numbers."""
    card = torch.accelerator.current_accelerator(check_available=True)
    cards = (
        ()
        if card is None
        else (card.type, *(f"{card.type}:{number}" for number in range(torch.accelerator.device_count())))
    )
    return "cpu", *cards


def pick(name: str = "auto") -> torch.device:
    """The device of that name; `auto` takes a GPU where torch sees one, else the CPU.

    Raises:
        UsageError: there is no such device here, or torch cannot use it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in (there := available()):
        raise UsageError(f"there is no device {name!r} here, expected {' or '.join(('auto', *there))}", "see: stm env")
    try:
        return torch.empty(0, device=name).device
    except RuntimeError as error:  # a card that others hold, or that this build of torch is too new or too old for
        raise UsageError(
            f"device {name!r} cannot be used here: {str(error).splitlines()[0]}", "see: stm env"
        ) from error
