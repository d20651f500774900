"""The seam between model and method: the state that flows between blocks, and the plans that change it.

After each block but the last a `Plan` maps one `State` to the next. Sequential Token Merging is a `StaticPlan`, made of
constants. A method that looks at data (stm/peers) is another Plan; a dense model has none. So the model's forward has
no branch for any method.

A plan acts on the stream x + h. Equal weights on the residual and the mixer's output are one map on their sum, so there
is one tensor to merge.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from stm.config import ModelConfig, Protection
from stm.merging import hsp
from stm.merging.merge import Merge, merge
from stm.merging.outline import Cost, Dense, Entry, Scheduled
from stm.merging.schedule import Fixed, Schedule, left_over


class State(NamedTuple):
    """A sequence between two blocks.

    Args:
        x: (B, L, D), the residual stream, float32.
        h: (B, L, D), the mixer's output, still to be added to x; None if there is nothing to add.
        cls: the position of the class token, or the positions of several; (B,) if a plan moves it per image.
        size: (L,) or (B, L): original tokens merged into each token; set only by data-dependent plans.
        scale: (L,) or (B, L): factors by which the blocks multiply Delta.
        token_sizes: original tokens merged into each token, as constants for the span convolution.
        gap: (K, B, L, E): elapsed Delta of removed tokens; decays the state before a token and injects nothing.
        last_merge: how the last merge made this sequence from the previous one; None before the first merge.
    """

    x: Tensor
    h: Tensor | None = None
    cls: Fixed | Tensor = 0
    size: Tensor | None = None
    scale: Tensor | None = None
    token_sizes: tuple[int, ...] | None = None
    gap: Tensor | None = None
    last_merge: Merge | None = None

    @property
    def stream(self) -> Tensor:
        """(B, L, D): the sum that the next block normalises, and that plans act on."""
        return self.x if self.h is None else self.x + self.h


class Taps(NamedTuple):
    """Intermediate tensors of a block, in token order, direction axis first.

    A tap is None unless the plan wants it: some cost memory traffic that an untapped block avoids.

    Args:
        delta: (K, B, L, E), step scale included.
        B, C: (K, B, L, N).
        A: (K, E, N).
        y: (K, B, L, E): the scan's output before the gate.
        z: (B, L, E): the gate, before its SiLU.
        u: (K, B, L, E): the scan's input, after the convolution.
    """

    delta: Tensor | None = None
    B: Tensor | None = None
    C: Tensor | None = None
    A: Tensor | None = None
    y: Tensor | None = None
    z: Tensor | None = None
    u: Tensor | None = None


class Plan(nn.Module):
    """A method that changes the sequence between blocks. This base class changes nothing."""

    def wants(self, block: int) -> tuple[str, ...]:
        """Return the names of the taps that the plan needs of this block."""
        return ()

    def forward(self, block: int, state: State, taps: Taps) -> State:
        """Return the state that enters block + 1, from the state that leaves `block`. Not called after the last."""
        return state

    def entering(self, model: ModelConfig) -> tuple[Entry, ...]:
        """Return the sequence that enters each block; operation counts need no run."""
        return Dense().entering(model)

    def lengths(self, model: ModelConfig) -> tuple[int, ...]:
        """Return the number of tokens that enters each block."""
        return tuple(entry.tokens for entry in self.entering(model))

    def flops(self, block: int, model: ModelConfig) -> Cost:
        """Return the cost of the plan's own work after a block: the merge, and the computation that decides it."""
        return Cost()


class StaticPlan(Plan):
    """A schedule and its protection, as constants.

    A step is a child named by the block that it acts after, so its tensors in a file are `plan.{after}.weight`
    and `.scale`.
    """

    def __init__(self, schedule: Schedule, protection: Protection, model: ModelConfig) -> None:
        super().__init__()
        self.dynamic = protection.mode == "dynamic"
        self.outline = Scheduled(schedule, protection)
        for number in range(len(schedule.steps)):
            self.add_module(str(schedule.steps[number].after), MergeStep(schedule, number, protection, model))

    def step(self, block: int) -> "MergeStep | None":
        """Return the step that acts after this block, if any."""
        return cast("MergeStep | None", self._modules.get(str(block)))

    def wants(self, block: int) -> tuple[str, ...]:
        # Static weights are baked: only dynamic ones look at the running input.
        return ("delta", "B", "A") if self.dynamic and self.step(block) is not None else ()

    def forward(self, block: int, state: State, taps: Taps) -> State:
        step = self.step(block)
        return state if step is None else step(state, taps)

    def entering(self, model: ModelConfig) -> tuple[Entry, ...]:
        return self.outline.entering(model)

    def flops(self, block: int, model: ModelConfig) -> Cost:
        return self.outline.flops(block, model)


class MergeStep(nn.Module):
    """One step of a schedule, from L tokens to L'.

    The constructor only declares buffers. `stm.bake` or a file fills those that hold floats; until then they change
    nothing (weights and scales of 1).

    Buffers:
        weight: (L,), the factor of each token before the merge; None if it is computed from the running input.
        scale: (L',), size^p of each token after the step; None at p = 0.
        keep, src, dst: the indices of the `Merge`.
        into, direction, between: those of `hsp.Absorbed`; only for dynamic weights.
    """

    keep: Tensor
    src: Tensor
    dst: Tensor
    into: Tensor
    direction: Tensor
    between: Tensor
    weight: Tensor | None
    scale: Tensor | None

    def __init__(self, schedule: Schedule, number: int, protection: Protection, model: ModelConfig) -> None:
        super().__init__()
        step = schedule.steps[number]
        tokens = schedule.tokens_per_block(model.depth)[step.after]  # L
        cls = schedule.cls_per_block(model.depth)[step.after]
        keep = sorted(set(range(tokens)) - set(step.sources))
        new_position = {old: new for new, old in enumerate(keep)}
        self.cls = left_over(cls, step.sources)
        self.token_sizes = schedule.sizes[number + 1] if protection.span_conv else None
        self.normalized = protection.normalized
        self._constant("keep", torch.tensor(keep))
        self._constant("src", torch.tensor(step.sources))
        self._constant("dst", torch.tensor([new_position[destination] for destination in step.destinations]))
        if protection.mode == "dynamic":
            self.weight = None
            for name, value in hsp.absorbed(step, tokens)._asdict().items():
                self._constant(name, value)
        else:
            self.register_buffer("weight", torch.ones(tokens))
        self.register_buffer("scale", torch.ones(len(keep)) if protection.step_scale > 0 else None)

    def forward(self, state: State, taps: Taps) -> State:
        weight = self._running_weights(taps) if self.weight is None else self.weight  # (L,) or (B, L)
        indices = Merge(self.keep, self.src, self.dst)
        x = merge(state.stream, indices, weight)  # (B, L', D)
        # A new State, not a changed one: the scale and sizes of an earlier step do not fit these tokens.
        return State(x, cls=self.cls, scale=self.scale, token_sizes=self.token_sizes, last_merge=indices)

    def _running_weights(self, taps: Taps) -> Tensor:
        """Return the weights (B, L) that follow from the taps of the block that has just run."""
        delta, B, A = taps.delta, taps.B, taps.A
        assert delta is not None and B is not None and A is not None  # `StaticPlan.wants` names them
        absorbed = hsp.Absorbed(self.src, self.into, self.direction, self.between)
        weights = hsp.token_weights(hsp.least_squares(delta, B, A, absorbed), absorbed)
        return hsp.normalize(weights, absorbed) if self.normalized else weights

    def _constant(self, name: str, value: Tensor) -> None:
        """Register a buffer that moves with the module and is not saved, because it follows from the schedule."""
        self.register_buffer(name, value, persistent=False)
