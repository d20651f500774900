"""Budgets: the merge steps or stages that meet a rate or a saving, by counting tokens. No torch.

A rate is the paper's: the share of the patch tokens that is gone after the last merge. It says nothing about when they
go, so two schedules of one rate may differ in cost. A saving counts token-layers (a token that enters a block is one),
and so compares any two schedules. An impossible budget is refused, and the message names the nearest possible ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from stm.errors import InfeasibleBudget, UsageError

NEAR = 0.005  # half a point of saving: tokens are whole, so a method seldom saves exactly what another does


@dataclass(frozen=True)
class Capacity:
    """The numbers of a model that bound how much it can merge.

    Args:
        tokens: L, class token included.
        depth: the number of blocks.
        sides: the number of tokens on each side of a class token that takes part, all above 0; two numbers at most for
            each class token.
        class_tokens: their number among the tokens.
    """

    tokens: int
    depth: int
    sides: tuple[int, ...]
    class_tokens: int = 1

    @property
    def patches(self) -> int:
        """The number of patch tokens."""
        return self.tokens - self.class_tokens

    @property
    def token_layers(self) -> int:
        """The token-layers of the dense model."""
        return self.tokens * self.depth

    def most_steps(self, r: int) -> int:
        """Return how many steps of r tokens per side are possible if none takes more than half of a side's tokens.

        Before the last of k steps a side of n tokens holds n - (k - 1) r, at least 2 r: so k is at most n // r - 1.
        No block follows the last one, so it has no step.
        """
        return max(0, min(self.depth - 1, min(self.sides) // r - 1))

    def holds(self, r: int, steps: int) -> bool:
        """Return whether so many steps of r tokens per side are possible, and at least one."""
        return 1 <= steps <= self.most_steps(r)

    def most_stages(self) -> int:
        """Return how many stages find a pair. Each leaves half of a side's tokens, rounded up: ceil(log2 n) of them."""
        return (max(self.sides) - 1).bit_length()

    def gradual_saving(self, r: int, steps: int) -> int:
        """Return the token-layers saved by `steps` steps of r tokens per side, one after each of the first blocks."""
        # min(block, steps) steps have acted before a block.
        return len(self.sides) * r * sum(min(block, steps) for block in range(self.depth))

    def staged_saving(self, stages: Sequence[int]) -> int:
        """Return the token-layers saved by stages before these blocks."""
        sizes, saved = self.sides, 0  # tokens of each side
        for block in stages:
            saved += sum(n // 2 for n in sizes) * (self.depth - block)
            sizes = tuple(n - n // 2 for n in sizes)
        return saved

    def __str__(self) -> str:
        return (
            f"{self.tokens} tokens and {self.depth} blocks, {' and '.join(map(str, self.sides))} tokens on the sides to"
            " merge"
        )


def steps_for_rate(capacity: Capacity, rate: float, tokens_per_side: int | None = None) -> tuple[int, int]:
    """Return (r, K) of a gradual order that removes this share of the patch tokens: r per side in each of K steps.

    If only one side merges, the steps stop when its blocks or tokens run out, and the share reached may be smaller.

    Args:
        tokens_per_side: r; by default the paper's rule, or more if the blocks would not suffice.

    Raises:
        UsageError: not a rate, less than one step, or (on both sides) a step that takes more than half of a side's
            tokens.
    """
    share = _share(rate)
    if share is None:
        problem = _not_a_share("rate", rate)
    else:
        r, steps = _paper_steps(capacity, share, tokens_per_side)
        if capacity.holds(r, steps):
            return r, steps
        too_few = steps < 1 and 2 * r <= min(capacity.sides)
        problem = (
            f"rate {rate} takes"
            f" {'less than one merge step' if too_few else 'more than half of the tokens of a side in one step'}"
        )
    # A hundred tries are cheap, and a person types a rate in whole percents.
    possible = [
        n / 100 for n in range(1, 100) if capacity.holds(*_paper_steps(capacity, Fraction(n, 100), tokens_per_side))
    ]
    hint = None
    if possible:
        problem += f"; the smallest possible rate is {possible[0]:.2f}, the largest {possible[-1]:.2f}"
    else:
        problem += f"; no rate is possible with {capacity}"
        hint = "choose fewer tokens per side" if tokens_per_side else None
    if share is None:
        raise UsageError(problem, hint)
    best = min(possible, key=lambda near: abs(near - rate), default=None)
    raise InfeasibleBudget(problem, hint, asked="rate", value=rate, best=best)


def steps_for_saving(capacity: Capacity, saving: float, tokens_per_side: int | None = None) -> tuple[int, int]:
    """Return (r, K) of a gradual order: the smallest r that can reach the saving, and the K that comes nearest to it.

    Of two equally near K the smaller one is taken.

    Raises:
        UsageError: not a saving, or more than any r can reach (or the given one).
    """
    choices = list(range(1, min(capacity.sides) // 2 + 1)) if tokens_per_side is None else [tokens_per_side]
    reach = {r: capacity.gradual_saving(r, capacity.most_steps(r)) for r in choices}
    layers = layers_within(capacity, saving, max(reach.values(), default=0))
    r = next(r for r in choices if reach[r] >= layers)
    return r, min(
        range(1, capacity.most_steps(r) + 1), key=lambda steps: abs(capacity.gradual_saving(r, steps) - layers)
    )


def paper_saving(capacity: Capacity, rate: float) -> int:
    """Return the token-layers that the paper's schedule saves at this rate: both sides, class token in the middle.

    Raises:
        UsageError: a rate that this schedule cannot reach.
    """
    patches = capacity.patches
    paper = Capacity(capacity.tokens, capacity.depth, tuple(n for n in (patches // 2, patches - patches // 2) if n))
    return paper.gradual_saving(*steps_for_rate(paper, rate))


def layers_to_save(capacity: Capacity, saving: float) -> int:
    """Return a saving in whole token-layers, for `nearest_stages`.

    Raises:
        UsageError: not a saving, or more than stages can save.
    """
    choices = _stage_choices(capacity)
    return layers_within(capacity, saving, capacity.staged_saving(choices[-1][0]) if choices else 0)


def nearest_stages(capacity: Capacity, layers: int) -> tuple[int, ...]:
    """Return the stages whose saving is nearest to so many token-layers.

    Each count of stages, 1 to 4, has one nearest placement, the later one on a tie. The fewest stages that begin at 0.4
    of the depth or later are taken; if none begin as late, the most stages. If no stages save as much (one side alone
    may not), the nearest are those that save the most.
    """
    choices = [
        min(reversed(placed), key=lambda stages: abs(capacity.staged_saving(stages) - layers))
        for placed in _stage_choices(capacity)
    ]
    return next((stages for stages in choices if 5 * stages[0] >= 2 * capacity.depth), choices[-1])


def all_stages(capacity: Capacity) -> list[tuple[int, ...]]:
    """Return every answer of `nearest_stages`, the smallest saving first; none if no side has a pair."""
    placed = {stages for choice in _stage_choices(capacity) for stages in choice}
    answers = {nearest_stages(capacity, capacity.staged_saving(stages)) for stages in placed}
    return sorted(answers, key=capacity.staged_saving)


def checked_stages(capacity: Capacity, stages: Sequence[int]) -> tuple[int, ...]:
    """Return the given stages as a tuple, checked.

    Raises:
        UsageError: not strictly increasing from 1 to depth - 1, or a stage that finds no pair.
    """
    given, last = tuple(stages), capacity.depth - 1
    shown = ",".join(map(str, given))
    whole = all(type(block) is int for block in given)
    if not given or not whole or any(a >= b for a, b in pairwise((0, *given, last + 1))):
        raise UsageError(f"stages are {shown or 'empty'}, expected strictly increasing block numbers from 1 to {last}")
    if len(given) > (most := capacity.most_stages()):
        raise InfeasibleBudget(
            f"stages are {shown}: the one before block {given[most]} finds no pair, {most} leave one token a side",
            asked="stages",
            value=len(given),
            best=most,
        )
    return given


def _share(asked: float) -> Fraction | None:
    """Return a rate or saving as the decimal that was written, or None outside of (0, 1).

    The float 0.07 is a little more than 7/100; as a fraction, no last bit of it rounds a step up.
    """
    is_share = isinstance(asked, int | float) and 0 < asked < 1
    return Fraction(str(float(asked))) if is_share else None


def _not_a_share(name: str, asked: float) -> str:
    """Return the sentence for a rate or saving that is no share."""
    return f"{name} is {asked}, expected a number above 0 and below 1 (0.4 is 40%), or 0 for a dense model"


def _paper_steps(capacity: Capacity, rate: Fraction, tokens_per_side: int | None) -> tuple[int, int]:
    """Return (r, K) by the paper's rule, whether or not both sides have the tokens for it.

    The rule: r = 1 below a rate of 0.175, else 2; more if the blocks would not suffice. If one side merges alone, it
    goes as far as it can. If there are more than two, because of several class tokens, r = 1 is many already.
    """
    gone, most = rate * capacity.patches, capacity.depth - 1
    sides = max(2, len(capacity.sides))
    least = 1 if rate < Fraction("0.175") or sides > 2 else 2
    r = tokens_per_side or max(least, math.ceil(gone / max(1, sides * most)))
    if len(capacity.sides) == 1:
        r = tokens_per_side or max(1, min(r, capacity.sides[0] // 2))
        most = capacity.most_steps(r)
    return r, min(most, round(gone / (len(capacity.sides) * r)))


def layers_within(capacity: Capacity, saving: float, largest: int) -> int:
    """Return a saving in whole token-layers.

    Raises:
        UsageError: not a saving, or more than the `largest` possible number of token-layers.
    """
    share = _share(saving)
    layers = None if share is None else round(share * capacity.token_layers)
    if layers is not None and layers <= largest and largest:
        return layers
    best = 100 * largest // capacity.token_layers / 100
    possible = f"the largest possible saving is {best:.2f}"
    if layers is None:
        raise UsageError(f"{_not_a_share('saving', saving)}; {possible}")
    raise InfeasibleBudget(
        f"saving {saving} is more than possible; {possible}", asked="saving", value=saving, best=best
    )


def _stage_choices(capacity: Capacity) -> list[list[tuple[int, ...]]]:
    """Return, for each count of stages from 1 to 4 that finds pairs, the possible placements, the earliest first.

    The distance between two stages is a fixed part of the depth, so that one number, the first block, places them all.
    """
    choices = []
    for count, distance in ((1, 1), (2, capacity.depth // 4), (3, capacity.depth // 8), (4, capacity.depth // 8)):
        gap = max(1, distance)
        span = (count - 1) * gap
        placed = [tuple(first + gap * i for i in range(count)) for first in range(1, capacity.depth - span)]
        if placed and count <= capacity.most_stages():
            choices.append(placed)
    return choices
