"""A block of the native backend for inference, with everything that does not depend on the images laid out once.

The function is that of `Block`, and so is the order: norm, in_proj, convolution, x_proj, scan, out_proj. Of ViM-Ti's time for one
image a sixth is Python between these; here it is pointers that move. x_proj, which has few columns, is a product of our own. Buffers
and calls are kept for each shape and thread. What is rare (taps, gaps, first states) goes through the plain block.
"""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stm.backends import Backend
from stm.backends.native import Prepared, for_product
from stm.model import REVERSE, Block, at, seen_by
from stm.plan import State, Taps
from stm.scan import gated

NO_TAPS = Taps()


class Buffers(NamedTuple):
    """What the blocks of a model hand on, for one shape; all of them write to the same."""

    x: Tensor  # (B, L, D), the residual stream
    u: Tensor  # (B, L, D), its norm
    inputs: Tensor  # (K, B, L, E), of the scan
    selected: Tensor  # (K, B L, R + 2 N and some): dt, B and C
    y: Tensor  # (B, L, E)


class _OfThread(threading.local):
    """Values by shape, of each thread its own: a module may serve several."""

    def __init__(self) -> None:
        self.by_shape: dict[Any, Any] = {}


class Workspace:
    """The buffers of a model."""

    def __init__(self) -> None:
        self._kept = _OfThread()

    def of(self, D: int, to_selected: Tensor, batch: int, length: int) -> Buffers:
        """Those for so many images and tokens, of a model of width D and a weight (K, E, width) of x_proj."""
        kept, shape = self._kept.by_shape, (batch, length)
        if shape not in kept:
            K, E, width = to_selected.shape
            sizes = ((batch, length, D), (batch, length, D), (K, batch, length, E), (K, batch * length, width), (batch, length, E))
            kept[shape] = Buffers(*(torch.empty(size) for size in sizes))
        found: Buffers = kept[shape]
        return found


class _Walk(NamedTuple):
    """The calls between in_proj and the outputs, of directions that see the same tokens."""

    seen: slice
    conv: Prepared
    select: Prepared  # x_proj
    scan: Prepared
    y: Tensor

    def __call__(self, x: Tensor, z: Tensor | None, scale: Tensor | None) -> None:
        """Fill y from x and z (B, L, E) and scale (L,) or (B, L), which lie in memory as those that this was laid out for."""
        self.conv.point("x", x)
        self.conv()
        self.select()
        if z is not None:
            self.scan.point("z", z)
        if scale is not None:
            self.scan.point("scale", scale)
        self.scan()


class _Calls(NamedTuple):
    """A block's calls for one shape."""

    norm: Prepared
    x: Tensor  # the sum, where there is something to add
    u: Tensor
    walks: tuple[_Walk, ...]


class PreparedBlock(nn.Module):
    """A block in float32 whose parameters do not change any more. Its outputs last until the thread's next block of that shape.

    Args:
        block: the plain one; its projections are used as they are.
        workspace: shared by the blocks of a model.
    """

    def __init__(self, block: Block, workspace: Workspace) -> None:
        super().__init__()
        self.block, self._workspace, self._kept = block, workspace, _OfThread()
        mixer = block.mixer
        self._rates = mixer.rates().detach()
        self._to_selected = for_product(mixer.x_proj_weight.detach())
        self._in_proj: Callable[[Tensor], Tensor] = mixer.in_proj.forward
        self._out_proj: Callable[[Tensor], Tensor] = mixer.out_proj.forward

    @property
    def backend(self) -> Backend:
        """The block's."""
        return self.block.backend

    def forward(self, state: State, wants: tuple[str, ...] = ()) -> tuple[State, Taps]:
        """As `Block`."""
        if wants or _is_rare(state):
            out: tuple[State, Taps] = self.block(state, wants)
            return out
        calls = self._calls(state, self._lay_out)
        x = self._norm(calls, state)
        (walk,) = calls.walks
        xz = self._in_proj(calls.u)  # (B, L, 2 E)
        walk(xz, xz.narrow(-1, walk.y.shape[-1], 1), state.scale)
        return state._replace(x=x, h=self._out_proj(walk.y)), NO_TAPS

    def read(self, state: State) -> State:
        """As `Block`."""
        c = state.cls
        if not isinstance(c, int) or _is_rare(state):
            return self.block.read(state)
        calls = self._calls(state, self._lay_out_reading, c)
        x = self._norm(calls, state)
        to_x, to_z = self.block.mixer.in_proj.weight.chunk(2)  # (E, D)
        inputs, z = F.linear(calls.u, to_x), F.linear(at(calls.u, c), to_z)  # (B, L, E), (B, E)
        at_c = []
        for k, walk in enumerate(calls.walks):
            walk(inputs[:, walk.seen], None, None if state.scale is None else state.scale[..., walk.seen])
            at_c.append(at(walk.y[0], seen_by(k, c)[1]))  # (B, E)
        return State(at(x, c)[:, None], self._out_proj(gated(torch.stack(at_c), z))[:, None])

    def _calls(self, state: State, lay_out: Callable[[State, Buffers], tuple[_Walk, ...]], *place: int) -> _Calls:
        """Those for the shape of a state, and of the class token's place where that matters."""
        scale = None if state.scale is None else state.scale.stride()
        shape = (place, state.x.shape, state.h is None, state.span, scale)
        calls: _Calls | None = self._kept.by_shape.get(shape)
        if calls is None:
            buffers = self._workspace.of(state.x.shape[2], self._to_selected, *state.x.shape[:2])
            total, norm = None if state.h is None else buffers.x, self.block.norm
            prepared = Prepared.add_norm(state.x, state.h, norm.weight, norm.eps, total, buffers.u)
            calls = self._kept.by_shape[shape] = _Calls(prepared, buffers.x, buffers.u, lay_out(state, buffers))
        return calls

    def _norm(self, calls: _Calls, state: State) -> Tensor:
        """Fill u; the residual stream."""
        calls.norm.point("x", state.x)
        if state.h is not None:
            calls.norm.point("h", state.h)
        calls.norm()
        return state.x if state.h is None else calls.x

    def _lay_out(self, state: State, buffers: Buffers) -> tuple[_Walk, ...]:
        x, z = self._in_proj(buffers.u).chunk(2, -1)  # (B, L, E), for their strides
        return (self._walk(slice(None), slice(None), state, x, z, buffers.inputs, buffers.selected, buffers.y),)

    def _lay_out_reading(self, state: State, buffers: Buffers) -> tuple[_Walk, ...]:
        """Each direction up to the class token."""
        batch, walks, x = state.x.shape[0], [], torch.empty_like(buffers.y)
        for k in range(len(REVERSE)):
            seen, _ = seen_by(k, state.cls)
            part = x[:, seen]  # (B, l, E)
            selected = buffers.selected.new_empty(1, batch * part.shape[1], buffers.selected.shape[-1])
            walks.append(
                self._walk(slice(k, k + 1), seen, state, part, None, torch.empty_like(part)[None], selected, torch.empty_like(part)[None])
            )
        return tuple(walks)

    def _walk(
        self, of: slice, seen: slice, state: State, x: Tensor, z: Tensor | None, inputs: Tensor, selected: Tensor, y: Tensor
    ) -> _Walk:
        """The directions `of` over the tokens that they see: x and z (B, l, E) for their strides, inputs (K, B, l, E) and so on to fill."""
        mixer, reverse = self.block.mixer, REVERSE[of]
        span, scale = None if state.span is None else state.span[seen], None if state.scale is None else state.scale[..., seen]
        select = Prepared.product(inputs.flatten(1, 2), self._to_selected[of], selected)
        dt, B, C = selected[..., : sum(mixer.splits)].unflatten(1, inputs.shape[1:3]).split(mixer.splits, -1)
        conv = Prepared.conv_silu(x, mixer.conv1d_weight[of], mixer.conv1d_bias[of], reverse, span, out=inputs)
        weights = (mixer.dt_proj_weight[of], mixer.dt_proj_bias[of])
        scan = Prepared.scan(inputs, dt, self._rates[of], B, C, mixer.D[of], z, *weights, scale, None, None, reverse, out=y)
        return _Walk(seen, conv, select, scan, y)


def _is_rare(state: State) -> bool:
    """Whether a state has what nothing is laid out for."""
    x, h = state.x, state.h
    return state.gap is not None or state.h0 is not None or not x.is_contiguous() or not (h is None or h.is_contiguous())
