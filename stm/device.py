"""The device that a model runs on: `auto`, and the names of the devices of this machine."""

import torch

from stm.errors import UsageError, said


def available() -> tuple[str, ...]:
    """Return the names of this machine's devices: "cpu", and if there are cards, their type alone and numbered."""
    card = torch.accelerator.current_accelerator(check_available=True)
    cards = (
        ()
        if card is None
        else (card.type, *(f"{card.type}:{number}" for number in range(torch.accelerator.device_count())))
    )
    return "cpu", *cards


def pick(name: str = "auto") -> torch.device:
    """Return the device of that name. `auto` takes a CUDA device if torch sees one, else the processor.

    Raises:
        UsageError: this machine has no such device, or torch cannot use it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in (names := available()):
        raise UsageError(f"there is no device {name!r} here, expected {' or '.join(('auto', *names))}", "see: stm env")
    try:
        # An allocation is the proof: torch.device("cuda:0") succeeds on any machine.
        return torch.empty(0, device=name).device
    except RuntimeError as error:  # a card that others hold, or that this build of torch is too new or too old for
        raise UsageError(f"device {name!r} cannot be used here: {said(error)}", "see: stm env") from error
