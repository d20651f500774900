"""What is known of a plan before any run: the sequence that enters each block, and the plan's own operations.

Operation counts need no more than this. It is apart from the plans, because a plan is a torch module, and `stm info`
does not wait for torch.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from stm.config import ModelConfig, Protection
from stm.merging.schedule import Fixed, Schedule


class Entry(NamedTuple):
    """The sequence that enters a block, as far as it is known before any run.

    Args:
        tokens: L, class token included; the same for every image, whatever the plan.
        cls: the class token's position, or the positions of several; None if they differ per image.
        token_sizes: original tokens merged into each token; None if the convolution does not see them.
    """

    tokens: int
    cls: Fixed | None
    token_sizes: tuple[int, ...] | None = None


class Cost(NamedTuple):
    """Multiply-accumulates of a plan's own work for one image.

    Args:
        paper: as the paper's convention counts them, to compare with its tables.
        honest: all that run.
    """

    paper: int = 0
    honest: int = 0


class Outline(Protocol):
    """What states its sequences and its own work before any run: every plan, and those below."""

    def entering(self, model: ModelConfig) -> tuple[Entry, ...]: ...
    def flops(self, block: int, model: ModelConfig) -> Cost: ...


class Dense:
    """The outline of a model without a plan."""

    def entering(self, model: ModelConfig) -> tuple[Entry, ...]:
        """Return the sequence that enters each block: always all tokens."""
        return (Entry(model.tokens, model.cls),) * model.depth

    def flops(self, block: int, model: ModelConfig) -> Cost:
        """Return the cost of nothing."""
        return Cost()


@dataclass(frozen=True)
class Scheduled:
    """The outline of a schedule and its protection."""

    schedule: Schedule
    protection: Protection

    def entering(self, model: ModelConfig) -> tuple[Entry, ...]:
        """Return the sequence that enters each block."""
        tokens, cls = self.schedule.tokens_per_block(model.depth), self.schedule.cls_per_block(model.depth)
        sizes: tuple[int, ...] | None = None
        entries, at = [], {step.after: number for number, step in enumerate(self.schedule.steps)}
        for block in range(model.depth):
            if block - 1 in at and self.protection.span_conv:
                sizes = self.schedule.sizes[at[block - 1] + 1]
            entries.append(Entry(tokens[block], cls[block], sizes))
        return tuple(entries)

    def flops(self, block: int, model: ModelConfig) -> Cost:
        """Return the cost of the merge after a block, and of its weights if they follow from the running input.

        The weighting is D per token; the additions are not multiplied. Dynamic weights (`hsp.least_squares`) cost, per
        absorbed token: E per token passed on the way to its destination, for the elapsed Delta; EN for the decay and
        EN for the overlap; 3 E and 2 N for the products of the inputs and their squares.
        """
        step = next((step for step in self.schedule.steps if step.after == block), None)
        if step is None:
            return Cost()
        operations = model.d_model * self.schedule.tokens_per_block(model.depth)[block]
        if self.protection.mode == "dynamic":
            E, N = model.d_inner, model.d_state
            operations += sum(E * abs(source - to) + 2 * E * N + 3 * E + 2 * N for source, to in step.absorb)
        return Cost(honest=operations)
