"""Bidirectional Nearest Neighbour Merging: which tokens merge, as a fixed schedule.

On each side of the class token, a token is absorbed by its nearest remaining neighbour toward the class token, which
itself is never touched. If a model has several class tokens, each has its two sides. Merges never look at data and keep
the order of the tokens, so the whole schedule is a constant of the model: plain lists of positions, no torch.

The distance fading rule of the paper (Sequential Token Merging, arXiv 2509.22691) leaves open which neighbours merge
first. An order decides that:

    border, sweep, even, outward    gradual: r tokens per side after each of the first K blocks, as in the paper
    staged                          ours: every pair of a side at once, before a few blocks

stm/merging/budget.py finds r and K, or the stages, for a rate or a saving. The order `fitted` looks at the model's
gradients instead: stm/merging/fit.py.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise

from stm.config import ModelConfig
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
from stm.merging.schedule import Fixed, Schedule, Step, fixed
from stm.recipe import ORDERS, SIDES

DEFAULT_RATE = 0.4


def _bit_reversed(n: int) -> list[int]:
    """Return 0 .. n-1 ordered by their reversed bits: 0, 4, 2, 6, 1, 5, 3, 7 for n = 8.

    Any first few of these numbers lie evenly spread.
    """
    bits = (n - 1).bit_length()
    return sorted(range(n), key=lambda i: int(f"{i:0{bits}b}"[::-1], 2))


# A pass pairs the remaining tokens of a side, (0, 1), (2, 3), ... from the border. An odd token next to the class token
# stays. An order lists which of the n pairs a pass merges, and in which sequence, before the next pass pairs anew.
# `border` merges the outermost pair only, so that one token at the border grows; the others merge every pair once.
_PASS: dict[str, Callable[[int], Iterable[int]]] = {
    "border": lambda n: [0],
    "sweep": lambda n: range(n),
    "even": _bit_reversed,
    "outward": lambda n: reversed(range(n)),
    "staged": lambda n: range(n),
}


def gradual(
    tokens: int, cls: Fixed, order: str, tokens_per_side: int, merge_steps: int, sides: str = "both"
) -> Schedule:
    """Return the schedule that merges `tokens_per_side` tokens per side after each of the first `merge_steps` blocks.

    Args:
        tokens: L, class token included.
        cls: the position of the class token, or the positions of several.
        order: border, sweep, even or outward.
        tokens_per_side: r.
        merge_steps: K.
        sides: both, left or right of the class token. A side without tokens takes no part.

    Raises:
        ValueError: a step that finds fewer than r tokens to merge on a side.
    """
    # The steps act after the blocks 0 to K - 1.
    return uneven(tokens, cls, order, [tokens_per_side] * merge_steps, sides)


def uneven(tokens: int, cls: Fixed, order: str, counts: Sequence[int], sides: str = "both") -> Schedule:
    """Return the schedule of `gradual`, with its own number of tokens per side for each step."""
    return _schedule(tokens, cls, sides, order, range(len(counts)), lambda number, left: counts[number])


def staged(tokens: int, cls: Fixed, stages: Sequence[int], sides: str = "both") -> Schedule:
    """Return the schedule that merges every pair of a side before each block of `stages`; see `gradual`.

    Raises:
        ValueError: a stage that finds no pair.
    """
    return _schedule(tokens, cls, sides, "staged", [block - 1 for block in stages], lambda number, left: left // 2)


def _schedule(
    tokens: int, cls: Fixed, sides: str, order: str, afters: Iterable[int], quota: Callable[[int, int], int]
) -> Schedule:
    """Return a schedule with one step after each block of `afters`.

    Args:
        quota: from the number of a step and the n tokens of a side before it to the tokens that the side loses.
    """
    # A token is named by the position before block 0 of its last destination, and so keeps its name when tokens
    # before it leave.
    sequence = list(range(tokens))
    parts = [list(part) for part in parts_of(tokens, cls, sides)]
    # One iterator per side for the whole schedule: a pass that one step leaves unfinished goes on in the next.
    running = [_merges(part, order) for part in parts]
    steps = []
    for number, after in enumerate(afters):
        into: dict[int, int] = {}  # from each source to its destination
        for part, merges in zip(parts, running, strict=True):
            wanted = quota(number, len(part))
            merged = dict(islice(merges, wanted))
            if len(merged) < wanted:
                raise ValueError(
                    f"the step after block {after} finds {len(merged)} tokens to merge on a side, expected {wanted}"
                )
            into |= merged
        steps.append(Step(after, _absorb(sequence, into)))
        sequence = [token for token in sequence if token not in into]
    return Schedule(tokens, cls, tuple(steps))


def capacity_of(model: ModelConfig, sides: str) -> Capacity:
    """Return what bounds the merges on some sides of a model's class token.

    Raises:
        UsageError: there is no token on them.
    """
    parts = tuple(map(len, parts_of(model.tokens, model.cls, sides)))
    capacity = Capacity(model.tokens, model.depth, parts, model.class_tokens)
    if not capacity.sides and not model.class_tokens:
        raise UsageError(f"sides is {sides!r}, but the model has no class token", "leave it out")
    if not capacity.sides:
        raise UsageError(
            f"sides is {sides!r}, but there is no token on that side of the class token at {model.cls} of"
            f" {model.tokens}"
        )
    return capacity


def parts_of(tokens: int, cls: Fixed, sides: str) -> list[range]:
    """Return the positions of each side that takes part and has any, from the border to the class token.

    Of several class tokens each has its sides. The border between two of them is in the middle: a token merges toward
    the nearer one. Without a class token all tokens are one side.

    Args:
        sides: both, left or right of the class tokens at `cls`.
    """
    places = fixed(cls)
    if not places:
        return [range(tokens)] if sides == "both" else []
    borders = [0, *((a + b) // 2 + 1 for a, b in pairwise(places)), tokens]  # the first position after each
    parts = list[range]()
    for c, first, end in zip(places, borders, borders[1:], strict=False):
        left, right = range(first, c), range(end - 1, c, -1)
        parts += {"both": (left, right), "left": (left,), "right": (right,)}[sides]
    return [part for part in parts if part]


def _merges(side: list[int], order: str) -> Iterator[tuple[int, int]]:
    """Yield the merges (source, destination) of one side, one after the other, until one token is left.

    Args:
        side: the side's tokens from the border to the class token. Each source leaves this list when it is merged, so
            the caller sees the side shrink.
    """
    while len(side) > 1:
        pairs = list(zip(side[::2], side[1::2], strict=False))
        for number in _PASS[order](len(pairs)):
            side.remove(pairs[number][0])
            yield pairs[number]


def _absorb(sequence: list[int], into: dict[int, int]) -> tuple[tuple[int, int], ...]:
    """Return one step as positions in `sequence`.

    A step of several passes chains merges: a into b, then b into c. All merges of a step are one sum, so the chain
    becomes a into c, b into c.
    """
    position = {token: index for index, token in enumerate(sequence)}
    pairs = []
    for source, destination in into.items():
        while destination in into:
            destination = into[destination]
        pairs.append((position[source], position[destination]))
    return tuple(sorted(pairs))


@dataclass(frozen=True)
class PlannedSchedule:
    """A schedule, the budget that it answers, and the choices made for it.

    Args:
        schedule: the merges.
        rate: the rate asked for, `DEFAULT_RATE` if no budget was given; None for a saving or stages.
        saving: the saving asked for; for a rate of `fitted` and `staged`, the saving that stands for the rate; None for
            stages and for a rate of a gradual order.
        tokens_per_side: r of a gradual order; None for the others.
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
    """Return the schedule of a model for a budget: a rate, a saving or stages; without one, for the rate 0.4.

    Args:
        model: gives the tokens, the position of the class token and the depth.
        order: staged, border, sweep, even or outward.
        rate: a fraction. For a gradual order, the share of the patch tokens that is gone after the last step. For
            staged, the saving that the paper's two-sided schedule reaches at this rate, so that one number compares
            both. 0 is dense.
        saving: the share of the token-layers to save, a fraction. A token that enters a block is one token-layer. 0 is
            dense.
        stages: the blocks before which the stages of `staged` act.
        sides: both, left or right of the class token; at the head both means right, as the left has no tokens.
        tokens_per_side: r of a gradual order; by default what the budget asks for.

    Raises:
        UsageError: options that exclude each other, or an impossible budget; the message names the possible ones.
    """
    check_options(order, rate, saving, stages, sides, tokens_per_side)
    tokens, cls = model.tokens, model.cls
    if order not in ("fitted", "staged") and not model.class_tokens:
        raise UsageError(
            f"the schedule {order} merges toward a class token, and the model has none",
            "choose the schedule fitted or staged: --method stm, --method staged",
        )
    capacity = capacity_of(model, sides)
    if stages is not None:
        blocks = checked_stages(capacity, stages)
        return PlannedSchedule(staged(tokens, cls, blocks, sides), stages=blocks)
    by_rate = saving is None  # the default budget is a rate too
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


def check_options(
    order: str,
    rate: float | None,
    saving: float | None,
    stages: Sequence[int] | None,
    sides: str,
    tokens_per_side: int | None,
) -> None:
    """Raise UsageError if a value is unknown or two options exclude each other."""
    check_choice("schedule", order, ORDERS)
    check_choice("sides", sides, SIDES)
    given = [name for name, value in (("rate", rate), ("saving", saving), ("stages", stages)) if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} were given, expected only one of rate, saving and stages")
    if stages is not None and order != "staged":
        raise UsageError(
            f"stages need the schedule staged, not {order}", "add --schedule staged, or give a rate or a saving instead"
        )
    if tokens_per_side is not None and order in ("fitted", "staged"):
        what = "merges every pair of a side" if order == "staged" else "finds the tokens of each step"
        raise UsageError(
            f"tokens per side were given with the schedule {order}, which {what}",
            "choose another schedule (border, sweep, even, outward), or leave them out",
        )
    if tokens_per_side is not None and tokens_per_side < 1:
        raise UsageError(f"tokens per side is {tokens_per_side}, expected at least 1")
