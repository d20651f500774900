"""A block of the native backend for inference, with everything that does not depend on the images laid out once.

The function is that of `Block`, to the bit, and so is the order: norm, in_proj, convolution, x_proj, scan, out_proj. Of ViM-Ti's
time for one image a sixth is Python between these; here it is pointers that move. Buffers and calls are kept for each shape and
thread. What is rare (taps, gaps, first states) goes through the plain block.
"""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stm.backends.native import Prepared
from stm.model import REVERSE, Block
from stm.plan import State, Taps

NO_TAPS = Taps()


class Buffers(NamedTuple):
    """What the blocks of a model hand on, for one shape; all of them write to the same."""

    x: Tensor  # (B, L, D), the residual stream
    u: Tensor  # (B, L, D), its norm
    inputs: Tensor  # (K, B, L, E), of the scan
    selected: Tensor  # (K, B L, R + 2 N): dt, B and C
    y: Tensor  # (B, L, E)


class _OfThread(threading.local):
    """Values by shape, of each thread its own: a module may serve several."""

    def __init__(self) -> None:
        self.by_shape: dict[Any, Any] = {}


class Workspace:
    """The buffers of a model."""

    def __init__(self) -> None:
        self._kept = _OfThread()

    def of(self, block: Block, batch: int, length: int) -> Buffers:
        """Those for so many images and tokens."""
        kept, shape = self._kept.by_shape, (batch, length)
        if shape not in kept:
            K, columns, E = block.mixer.x_proj_weight.shape
            D = block.norm.weight.shape[0]
            sizes = ((batch, length, D), (batch, length, D), (K, batch, length, E), (K, batch * length, columns), (batch, length, E))
            kept[shape] = Buffers(*(torch.empty(size) for size in sizes))
        return kept[shape]


class _Calls(NamedTuple):
    """A block's calls for one shape."""

    buffers: Buffers
    norm: Prepared
    conv: Prepared
    scan: Prepared


class PreparedBlock(nn.Module):
    """A block in float32 whose parameters do not change any more. Its outputs last until the thread's next block of that shape.

    Args:
        block: the plain one; its projections are used as they are.
        workspace: shared by the blocks of a model.
    """

    def __init__(self, block: Block, workspace: Workspace) -> None:
        super().__init__()
        self.block, self._workspace, self._calls = block, workspace, _OfThread()
        mixer = block.mixer
        self._rates = mixer.rates().detach()
        self._to_selected = mixer.x_proj_weight.detach().mT  # (K, E, R + 2 N)
        self._in_proj: Callable[[Tensor], Tensor] = mixer.in_proj.forward
        self._out_proj: Callable[[Tensor], Tensor] = mixer.out_proj.forward

    def forward(self, state: State, wants: tuple[str, ...] = ()) -> tuple[State, Taps]:
        """As `Block`."""
        x, h, scale = state.x, state.h, state.scale
        if wants or state.gap is not None or state.h0 is not None or not x.is_contiguous() or (h is not None and not h.is_contiguous()):
            out: tuple[State, Taps] = self.block(state, wants)
            return out
        shape = (x.shape, h is None, state.span, None if scale is None else scale.stride())
        calls = self._calls.by_shape.get(shape)
        if calls is None:
            calls = self._calls.by_shape[shape] = self._lay_out(state)
        (total, u, inputs, selected, y), norm, conv, scan = calls
        norm.point("x", x)
        if h is not None:
            norm.point("h", h)
            x = total
        norm()
        xz = self._in_proj(u)  # (B, L, 2 E)
        conv.point("x", xz)
        conv()
        torch.bmm(inputs.flatten(1, 2), self._to_selected, out=selected)
        scan.point("z", xz.narrow(-1, y.shape[-1], 1))
        if scale is not None:
            scan.point("scale", scale)
        scan()
        return state._replace(x=x, h=self._out_proj(y)), NO_TAPS

    def _lay_out(self, state: State) -> _Calls:
        mixer, (batch, length, _) = self.block.mixer, state.x.shape
        buffers = self._workspace.of(self.block, batch, length)
        x, z = self._in_proj(buffers.u).chunk(2, -1)  # (B, L, E), for their strides
        dt, B, C = buffers.selected.unflatten(1, (batch, length)).split(mixer.splits, -1)
        total = None if state.h is None else buffers.x
        norm = Prepared.add_norm(state.x, state.h, self.block.norm.weight, self.block.norm.eps, total, buffers.u)
        conv = Prepared.conv_silu(x, mixer.conv1d_weight, mixer.conv1d_bias, REVERSE, state.span, out=buffers.inputs)
        weights = (mixer.dt_proj_weight, mixer.dt_proj_bias)
        rest = (state.scale, None, None, REVERSE)
        scan = Prepared.scan(buffers.inputs, dt, self._rates, B, C, mixer.D, z, *weights, *rest, out=buffers.y)
        return _Calls(buffers, norm, conv, scan)
