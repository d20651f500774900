"""The head of a ViM: the one linear layer of D inputs that its blocks leave over, whatever it is called."""

from collections.abc import Mapping
from typing import NamedTuple

from stm.checkpoint.leaves import Leaf
from stm.errors import listed

_OFFICIAL = "head"


class Head(NamedTuple):
    """A head, and what there is to say about it.

    Args:
        names: of its tensors, where they were found.
        weight, bias: (classes, D) and (classes,). A layer without a bias gets zeros, which change no number.
    """

    names: tuple[str, ...]
    weight: Leaf
    bias: Leaf
    notes: tuple[str, ...]


def find_head(width: int, *sources: Mapping[str, Leaf]) -> Head | str | None:
    """Return the head among what is left over; the question in words if there are several; None if there is none.

    Args:
        width: the number of its inputs: D, or that of several class tokens together.
        sources: tensors by name, the nearest to the blocks first. The first one that holds such a layer decides.
    """
    for tensors in sources:
        stems = [name.removesuffix("weight").removesuffix(".") for name in tensors if _is_linear(name, tensors, width)]
        if _OFFICIAL in stems:  # beside it, another such layer is one that no ViM has, and is refused by its name
            stems = [_OFFICIAL]
        if len(stems) > 1:
            weights = listed(f"{stem}.weight" if stem else "weight" for stem in stems)
            return f"{len(stems)} linear layers of {width} inputs beside its blocks ({weights}), expected one head"
        if stems:
            return _head(stems[0], tensors, width)
    return None


def _is_linear(name: str, tensors: Mapping[str, Leaf], width: int) -> bool:
    value = tensors[name]
    named = name == "weight" or name.endswith(".weight")
    return named and not value.is_nested and value.ndim == 2 and value.shape[1] == width


def _head(stem: str, tensors: Mapping[str, Leaf], width: int) -> Head:
    own = f"{stem}." if stem else ""
    names = tuple(name for name in (f"{own}weight", f"{own}bias") if name in tensors)
    weight, notes = tensors[names[0]], []
    if stem != _OFFICIAL:
        notes.append(
            f"the head is {listed([stem or 'weight'])}, the only linear layer of {width} inputs beside the blocks"
        )
    if len(names) == 1:
        notes.append("the head has no bias: zeros stand in for it, which change no number")
    bias = tensors[names[1]] if len(names) == 2 else weight.new_zeros(weight.shape[0])
    return Head(names, weight, bias, tuple(notes))
