"""A merge schedule: which token absorbs which, after which block. Data only, no torch.

Positions are those of the sequence that leaves the block, class token included, counted from 0. So each step speaks of
a shorter sequence than the step before it.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

# The position of the class token; of a model with several of them or with none, all their positions, ascending.
Fixed = int | tuple[int, ...]


def fixed(cls: Fixed) -> tuple[int, ...]:
    """Return the positions of the class tokens, which no merge touches, as a tuple."""
    return (cls,) if isinstance(cls, int) else cls


def others(tokens: int, cls: Fixed) -> list[int]:
    """Return the positions of the tokens that are no class tokens, in their order."""
    places = fixed(cls)
    return [position for position in range(tokens) if position not in places]


def left_over(cls: Fixed, gone: Collection[int]) -> Fixed:
    """Return where the class tokens are after the tokens at `gone` have left: those behind a token move forward."""
    moved = tuple(c - sum(position < c for position in gone) for c in fixed(cls))
    return moved[0] if isinstance(cls, int) else moved


@dataclass(frozen=True)
class Step:
    """One merge.

    Args:
        after: the block (0-based) whose output is merged.
        absorb: (source, destination) pairs; each source leaves the sequence and is added to its destination.
    """

    after: int
    absorb: tuple[tuple[int, int], ...]

    @property
    def sources(self) -> tuple[int, ...]:
        """The positions that are absorbed."""
        return tuple(source for source, _ in self.absorb)

    @property
    def destinations(self) -> tuple[int, ...]:
        """The position that absorbs each source."""
        return tuple(destination for _, destination in self.absorb)


@dataclass(frozen=True)
class Schedule:
    """All merges of a model, checked when the schedule is made.

    Args:
        tokens: the number of tokens that enter block 0, class token included.
        cls: the position of the class token among them, or the positions of several; () if there is none.
        steps: the merges, in the order of the blocks.

    Raises:
        ValueError: a step that points outside its sequence, touches the class token, absorbs a token twice or into a
            token that is itself absorbed, or is out of order.
    """

    tokens: int
    cls: Fixed
    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        if any(a >= b for a, b in pairwise((-1, *fixed(self.cls), self.tokens))):
            expected = "a position" if isinstance(self.cls, int) else "ascending positions"
            raise ValueError(f"class token at {self.cls}, expected {expected} below the {self.tokens} tokens")
        tokens, cls, previous = self.tokens, self.cls, -1
        for number, step in enumerate(self.steps):
            where = f"step {number} (after block {step.after})"
            if step.after <= previous:
                raise ValueError(f"{where}: expected a block after {previous}")
            _check_absorb(where, step, tokens, cls)
            cls = left_over(cls, step.sources)
            tokens -= len(step.absorb)
            previous = step.after

    @cached_property
    def groups(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """The original positions merged into each token: before any step, then after each (len(steps) + 1 entries)."""
        now: tuple[tuple[int, ...], ...] = tuple((position,) for position in range(self.tokens))
        out = [now]
        for step in self.steps:
            held = [list(group) for group in now]
            for source, destination in step.absorb:
                held[destination] += now[source]
            gone = set(step.sources)
            now = tuple(tuple(sorted(group)) for position, group in enumerate(held) if position not in gone)
            out.append(now)
        return tuple(out)

    @cached_property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        """Original tokens merged into each token: before any step, then after each (len(steps) + 1 entries)."""
        # Counted instead of taken from `groups`: every load needs sizes, and few callers need the positions.
        now = (1,) * self.tokens
        out = [now]
        for step in self.steps:
            held, gone = list(now), set(step.sources)
            for source, destination in step.absorb:
                held[destination] += now[source]
            now = tuple(size for position, size in enumerate(held) if position not in gone)
            out.append(now)
        return tuple(out)

    def holders(self, block: int) -> tuple[int, ...]:
        """Return, per patch in the order of the grid, the position of the token that holds it as it enters a block."""
        holder = [0] * self.tokens  # per original position
        for token, group in enumerate(self.groups[sum(step.after < block for step in self.steps)]):
            for position in group:
                holder[position] = token
        for c in reversed(fixed(self.cls)):
            del holder[c]  # what is left are the patches, row by row
        return tuple(holder)

    @property
    def removed_share(self) -> float:
        """The share of the patch tokens that is gone after the last step."""
        gone = sum(len(step.absorb) for step in self.steps)
        return gone / max(1, self.tokens - len(fixed(self.cls)))

    def tokens_per_block(self, depth: int) -> tuple[int, ...]:
        """Return the number of tokens that enters each of `depth` blocks."""
        return tuple(tokens for tokens, _ in self._entering(depth))

    def cls_per_block(self, depth: int) -> tuple[Fixed, ...]:
        """Return the class token's position in the sequence that enters each of `depth` blocks."""
        return tuple(cls for _, cls in self._entering(depth))

    def saving(self, depth: int) -> float:
        """Return the share of token-layers saved: 1 - (sum of the tokens that enter each block) / (depth * tokens)."""
        return 1 - sum(self.tokens_per_block(depth)) / (depth * self.tokens)

    def check_depth(self, depth: int) -> None:
        """Raise ValueError if no block follows a step: with `depth` blocks, `after` is at most depth - 2."""
        if self.steps and self.steps[-1].after > depth - 2:
            raise ValueError(
                f"a step after block {self.steps[-1].after}: expected at most {depth - 2} of {depth} blocks"
            )

    def _entering(self, depth: int) -> Iterator[tuple[int, Fixed]]:
        """Yield the number of tokens and the class token's position before each of `depth` blocks."""
        at = {step.after: step for step in self.steps}
        tokens, cls = self.tokens, self.cls
        for block in range(depth):
            yield tokens, cls
            if block in at:
                cls = left_over(cls, at[block].sources)
                tokens -= len(at[block].absorb)


def _check_absorb(where: str, step: Step, tokens: int, cls: Fixed) -> None:
    """Raise ValueError if a step is not possible on `tokens` tokens; `where` names the step in the message."""
    sources = set(step.sources)
    if not step.absorb:
        raise ValueError(f"{where}: absorbs nothing")
    if len(sources) != len(step.absorb):
        raise ValueError(f"{where}: a token is absorbed twice")
    for source, destination in step.absorb:
        pair = f"{where}: {source} into {destination}"
        if not (0 <= source < tokens and 0 <= destination < tokens):
            raise ValueError(f"{pair} points outside the {tokens} tokens")
        if touched := {source, destination}.intersection(fixed(cls)):
            raise ValueError(f"{pair} touches the class token at {min(touched)}")
        if destination in sources:
            raise ValueError(f"{pair}, which is itself absorbed")
