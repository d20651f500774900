"""Bidirectional Nearest Neighbour Merging: the fixed schedule.

On each side of the class token, tokens are absorbed by their nearest remaining neighbour toward the class token, which
is itself never touched. Order is kept, so the whole schedule is a constant of the model: plain index lists, no torch.
The distance fading rule of the paper (Sequential Token Merging, arXiv 2509.22691) leaves open which neighbours go
first: that is what an order says.

The gradual orders (`border`, `sweep`, `even`, `outward`) merge r tokens a side after each of the first blocks.
`staged`, ours, merges every pair of a side at once, before few blocks. How many and where, for a rate or a saving, is
stm/merging/budget.py's.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from stm.config import ORDERS, SIDES, ModelConfig
from stm.errors import UsageError, check_choice
from stm.merging.budget import (
    Capacity,
    checked_stages,
    layers_to_save,
    nearest_stages,
    paper_saving,
    steps_for_rate,
    steps_for_saving,
)
from stm.merging.schedule import Schedule, Step

DEFAULT_RATE = 0.4


def _bit_reversed(n: int) -> list[int]:
    """0 .. n-1 by their reversed bits: 0, 4, 2, 6, 1, 5, 3, 7 of 8."""
    bits = (n - 1).bit_length()
    return sorted(range(n), key=lambda i: int(f"{i:0{bits}b}"[::-1], 2))


# A pass pairs what is left of a side, (0, 1), (2, 3), ... from the border; an odd one next to the class token stays.
# An order is which of the n pairs a pass merges, one after the other, before the next pass pairs anew.
_PASS: dict[str, Callable[[int], Iterable[int]]] = {
    "border": lambda n: [0],
    "sweep": lambda n: range(n),
    "even": _bit_reversed,
    "outward": lambda n: reversed(range(n)),
    "staged": lambda n: range(n),
}


def gradual(tokens: int, cls: int, order: str, tokens_per_side: int, merge_steps: int, sides: str = "both") -> Schedule:
    """The schedule that merges `tokens_per_side` tokens a side after each of the first `merge_steps` blocks.

    Args:
        tokens: L, class token included.
        cls: the position of the class token.
        order: border, sweep, even or outward.
        tokens_per_side: r.
        merge_steps: K.
        sides: both, left or right of the class token. A side without tokens takes no part.

    Raises:
        ValueError: a step that finds fewer than r tokens to merge on a side.
    """
    return uneven(tokens, cls, order, [tokens_per_side] * merge_steps, sides)


def uneven(tokens: int, cls: int, order: str, counts: Sequence[int], sides: str = "both") -> Schedule:
    """As `gradual`, with a number of tokens a side for each step."""
    return _schedule(tokens, cls, sides, order, range(len(counts)), lambda number, left: counts[number])


def staged(tokens: int, cls: int, stages: Sequence[int], sides: str = "both") -> Schedule:
    """The schedule that merges every pair of a side before each block of `stages`; arguments as in `gradual`.

    Raises:
        ValueError: a stage that finds no pair.
    """
    return _schedule(tokens, cls, sides, "staged", [block - 1 for block in stages], lambda number, left: left // 2)


def _schedule(
    tokens: int, cls: int, sides: str, order: str, afters: Iterable[int], quota: Callable[[int, int], int]
) -> Schedule:
    """One step after each block of `afters`, in which a side of n tokens loses `quota(number of the step, n)`."""
    sequence = list(range(tokens))  # a token is named by the position that its last destination had before block 0
    parts = [list(part) for part in _parts(tokens, cls, sides)]
    running = [_merges(part, order) for part in parts]
    steps = []
    for number, after in enumerate(afters):
        into: dict[int, int] = {}
        for part, merges in zip(parts, running, strict=True):
            wanted = quota(number, len(part))
            found = dict(islice(merges, wanted))
            if len(found) < wanted:
                raise ValueError(
                    f"the step after block {after} finds {len(found)} tokens to merge on a side, expected {wanted}"
                )
            into |= found
        steps.append(Step(after, _absorb(sequence, into)))
        sequence = [token for token in sequence if token not in into]
    return Schedule(tokens, cls, tuple(steps))


def _parts(tokens: int, cls: int, sides: str) -> list[range]:
    """The positions of each side that takes part, from the border to the class token."""
    left, right = range(cls), range(tokens - 1, cls, -1)
    return [part for part in {"both": (left, right), "left": (left,), "right": (right,)}[sides] if part]


def _merges(side: list[int], order: str) -> Iterator[tuple[int, int]]:
    """The merges (source, destination) of one side, one after the other, until one token is left.

    Args:
        side: its tokens from the border to the class token; each source leaves the list as it is merged.
    """
    while len(side) > 1:
        pairs = list(zip(side[::2], side[1::2], strict=False))
        for number in _PASS[order](len(pairs)):
            side.remove(pairs[number][0])
            yield pairs[number]


def _absorb(sequence: list[int], into: dict[int, int]) -> tuple[tuple[int, int], ...]:
    """One step as positions in `sequence`. A destination that is absorbed in the same step passes its sources on."""
    position = {token: place for place, token in enumerate(sequence)}
    pairs = []
    for source, destination in into.items():
        while destination in into:
            destination = into[destination]
        pairs.append((position[source], position[destination]))
    return tuple(sorted(pairs))


@dataclass(frozen=True)
class PlannedSchedule:
    """A schedule and what was chosen for it.

    Args:
        schedule: the merges.
        rate: the rate asked for, `DEFAULT_RATE` where no budget was given; None for a saving or stages.
        saving: the saving asked for, which for staged a rate stands for; None for stages and for the rate of a gradual
            order.
        tokens_per_side: r of a gradual order; None for staged.
        stages: the blocks before which the stages of staged act; None for a gradual order.
    """

    schedule: Schedule
    rate: float | None = None
    saving: float | None = None
    tokens_per_side: int | None = None
    stages: tuple[int, ...] | None = None


def plan_schedule(
    model: ModelConfig,
    *,
    order: str,
    rate: float | None = None,
    saving: float | None = None,
    stages: Sequence[int] | None = None,
    sides: str = "both",
    tokens_per_side: int | None = None,
) -> PlannedSchedule:
    """The schedule of a model for a budget: a rate, a saving or stages; none means the rate 0.4.

    Args:
        model: gives the tokens, the place of the class token and the depth.
        order: staged, border, sweep, even or outward.
        rate: a fraction. For a gradual order the share of the patch tokens that is gone after the last step; for staged
            the budget that the paper's two-sided schedule saves at that rate. 0 is dense.
        saving: the share of the token-layers to save, a fraction. 0 is dense.
        stages: the blocks before which the stages of `staged` act.
        sides: both, left or right of the class token; at the head both means right, as the left has no tokens.
        tokens_per_side: r of a gradual order; by default what the budget asks for.

    Raises:
        UsageError: options that exclude each other, or a budget that cannot be had; the message says what can.
    """
    _check_options(order, rate, saving, stages, sides, tokens_per_side)
    tokens, cls = model.tokens, model.cls
    capacity = Capacity(tokens, model.depth, tuple(map(len, _parts(tokens, cls, sides))))
    if not capacity.sides:
        raise UsageError(
            f"sides is {sides!r}, but there is no token on that side of the class token at {cls} of {tokens}"
        )
    if stages is not None:
        blocks = checked_stages(capacity, stages)
        return PlannedSchedule(staged(tokens, cls, blocks, sides), stages=blocks)
    by_rate = saving is None
    asked = next(value for value in (rate, saving, DEFAULT_RATE) if value is not None)
    chosen = PlannedSchedule(Schedule(tokens, cls), asked if by_rate else None, saving, tokens_per_side)
    if asked == 0:
        return chosen
    if order == "staged":
        layers = paper_saving(capacity, asked) if by_rate else layers_to_save(capacity, asked)
        blocks = nearest_stages(capacity, layers)
        stands_for = layers / capacity.token_layers if by_rate else asked
        return replace(chosen, schedule=staged(tokens, cls, blocks, sides), saving=stands_for, stages=blocks)
    r, steps = (steps_for_rate if by_rate else steps_for_saving)(capacity, asked, tokens_per_side)
    return replace(chosen, schedule=gradual(tokens, cls, order, r, steps, sides), tokens_per_side=r)


def _check_options(
    order: str,
    rate: float | None,
    saving: float | None,
    stages: Sequence[int] | None,
    sides: str,
    tokens_per_side: int | None,
) -> None:
    check_choice("schedule", order, ORDERS)
    check_choice("sides", sides, SIDES)
    given = [name for name, value in (("rate", rate), ("saving", saving), ("stages", stages)) if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} were given, expected only one of rate, saving and stages")
    if stages is not None and order != "staged":
        raise UsageError(
            f"stages need the schedule staged, not {order}", "add --schedule staged, or give a rate or a saving instead"
        )
    if tokens_per_side is not None and order == "staged":
        raise UsageError(
            "tokens per side were given with the schedule staged, which merges every pair of a side",
            "choose another schedule (border, sweep, even, outward), or leave them out",
        )
    if tokens_per_side is not None and tokens_per_side < 1:
        raise UsageError(f"tokens per side is {tokens_per_side}, expected at least 1")
