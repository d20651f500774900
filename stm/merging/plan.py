"""The seam: what flows between blocks, and what a method may do to it.

Between blocks flows a `State`; a `Plan` maps State to State after a block. Sequential Token Merging is a `StaticPlan`,
made of constants; a method that looks at data is another Plan; a dense model has none.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from stm.config import ModelConfig, Protection
from stm.merging import hsp
from stm.merging.merge import Merge, merge
from stm.merging.schedule import Schedule


class State(NamedTuple):
    """A sequence between two blocks.

    Args:
        x: (B, L, D), the residual stream, float32.
        h: (B, L, D), the mixer's output that is not yet added to it, or None.
        cls: the position of the class token; (B,) where a plan moves it per image.
        size: (L,) or (B, L): how many of the first tokens each one holds, where a plan that looks at data counts them.
        scale: (L,) or (B, L): the blocks multiply Delta by it.
        token_sizes: of the tokens as constants, for the span convolution.
        gap: (K, B, L, E): elapsed Delta of removed tokens, which decays the state before a token and injects nothing.
        h0: (K, E, N): the state before the first token of each direction.
        map: how the last merge made this sequence from the one before it; None before the first.
    """

    x: Tensor
    h: Tensor | None = None
    cls: int | Tensor = 0
    size: Tensor | None = None
    scale: Tensor | None = None
    token_sizes: tuple[int, ...] | None = None
    gap: Tensor | None = None
    h0: Tensor | None = None
    last_merge: Merge | None = None

    @property
    def stream(self) -> Tensor:
        """(B, L, D): what the next block adds up, and what plans act on."""
        return self.x if self.h is None else self.x + self.h


class Taps(NamedTuple):
    """What a block computed on the way, in token order, direction axis first; None unless wanted.

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


class Entry(NamedTuple):
    """What enters a block.

    Args:
        tokens: L, class token included: the same for every image, whatever the plan.
        cls: the class token's position; None where it differs from image to image.
        token_sizes: of the tokens, where the convolution sees them.
    """

    tokens: int
    cls: int | None
    token_sizes: tuple[int, ...] | None = None


class Cost(NamedTuple):
    """Multiply-accumulates of a plan's own work for one image: as the paper's convention counts it, and honestly."""

    paper: int = 0
    honest: int = 0


class Plan(nn.Module):
    """A method. The base class changes nothing."""

    def wants(self, block: int) -> tuple[str, ...]:
        """The names of the taps that it needs of this block."""
        return ()

    def forward(self, block: int, state: State, taps: Taps) -> State:
        """What enters block + 1, from what leaves `block`. Not called after the last block."""
        return state

    def entering(self, model: ModelConfig) -> tuple[Entry, ...]:
        """What enters each block."""
        return (Entry(model.tokens, model.cls),) * model.depth

    def lengths(self, model: ModelConfig) -> tuple[int, ...]:
        """The tokens that enter each block."""
        return tuple(entry.tokens for entry in self.entering(model))

    def flops(self, block: int, model: ModelConfig) -> Cost:
        """What the plan itself computes after a block: merging, and what it looks at to decide."""
        return Cost()


class StaticPlan(Plan):
    """A schedule and its protection, as constants. A step's tensors are `{after}.weight` and so on, by the block it
    acts after."""

    def __init__(self, schedule: Schedule, protection: Protection, model: ModelConfig) -> None:
        super().__init__()
        self.dynamic = protection.mode == "dynamic"
        self.first = Entry(schedule.tokens, schedule.cls)
        for number in range(len(schedule.steps)):
            self.add_module(str(schedule.steps[number].after), MergeStep(schedule, number, protection, model))

    def step(self, block: int) -> "MergeStep | None":
        """What acts after this block."""
        return cast("MergeStep | None", self._modules.get(str(block)))

    def wants(self, block: int) -> tuple[str, ...]:
        return ("delta", "B", "A") if self.dynamic and self.step(block) is not None else ()

    def forward(self, block: int, state: State, taps: Taps) -> State:
        step = self.step(block)
        return state if step is None else step(state, taps)

    def entering(self, model: ModelConfig) -> tuple[Entry, ...]:
        entries = [self.first]
        for block in range(model.depth - 1):
            step = self.step(block)
            entries.append(entries[-1] if step is None else step.leaves)
        return tuple(entries)

    def flops(self, block: int, model: ModelConfig) -> Cost:
        step = self.step(block)
        return Cost() if step is None else Cost(honest=step.operations)


class MergeStep(nn.Module):
    """One step of a schedule, from L tokens to L'. Declares its buffers; `stm.bake` or a file fills those that hold
    floats.

    Buffers:
        weight: (L,), what each token is multiplied by before the merge; absent where it is computed from the running
            input.
        scale: (L',), size^p of each token after the step; absent at p = 0.
        h0: (K, E, N), where the protection has initial states.
    """

    keep: Tensor
    src: Tensor
    dst: Tensor
    into: Tensor
    direction: Tensor
    between: Tensor
    weight: Tensor | None
    scale: Tensor | None
    h0: Tensor | None

    def __init__(self, schedule: Schedule, number: int, protection: Protection, model: ModelConfig) -> None:
        super().__init__()
        step = schedule.steps[number]
        tokens, cls = (
            schedule.tokens_per_block(model.depth)[step.after],
            schedule.cls_per_block(model.depth)[step.after],
        )
        keep = sorted(set(range(tokens)) - set(step.sources))
        place = {position: new for new, position in enumerate(keep)}
        self.cls = place[cls]
        self.leaves = Entry(len(keep), self.cls, schedule.sizes[number + 1] if protection.span_conv else None)
        self.operations = model.d_model * tokens
        self.normalized = protection.normalized
        self._constant("keep", torch.tensor(keep))
        self._constant("src", torch.tensor(step.sources))
        self._constant("dst", torch.tensor([place[destination] for destination in step.destinations]))
        if protection.mode == "dynamic":
            self.weight = None
            self.operations += hsp.operations(step, model.d_inner, model.d_state)
            for name, value in hsp.absorbed(step, tokens, cls)._asdict().items():
                self._constant(name, value)
        else:
            self.register_buffer("weight", torch.ones(tokens))
        self.register_buffer("scale", torch.ones(len(keep)) if protection.step_scale > 0 else None)
        self.register_buffer("h0", torch.zeros(2, model.d_inner, model.d_state) if protection.initial_state else None)

    def forward(self, state: State, taps: Taps) -> State:
        weight = self._running_weights(taps) if self.weight is None else self.weight
        indices = Merge(self.keep, self.src, self.dst)
        x = merge(state.stream, indices, weight)
        return State(
            x, cls=self.cls, scale=self.scale, token_sizes=self.leaves.token_sizes, h0=self.h0, last_merge=indices
        )

    def _running_weights(self, taps: Taps) -> Tensor:
        """(B, L), from the block that has just run."""
        delta, B, A = taps.delta, taps.B, taps.A
        assert delta is not None and B is not None and A is not None  # it wants them
        absorbed = hsp.Absorbed(self.src, self.into, self.direction, self.between)
        weights = hsp.token_weights(hsp.least_squares(delta, B, A, absorbed), absorbed)
        return hsp.normalize(weights, absorbed) if self.normalized else weights

    def _constant(self, name: str, value: Tensor) -> None:
        """Indices follow from the schedule: they move with the module and are not saved."""
        self.register_buffer(name, value, persistent=False)
