"""A block of the native backend for inference, with everything that does not depend on the images laid out once.

The function is that of `Block`, and so is the order: norm, in_proj, convolution, x_proj, scan, out_proj. Of ViM-Ti's
    time for one
image a sixth is Python between these; here it is pointers that move. x_proj, which has few columns, is a product of our
own. Buffers and calls are kept for each shape and thread. What is rare (taps, gaps, first states) goes through the
plain block.
"""

import math
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stm.backends import Backend
from stm.backends.native import Prepared, for_product
from stm.backends.reference import gated
from stm.merging.plan import State, Taps
from stm.model.layers import REVERSE, Block, at, seen_by

NO_TAPS = Taps()


class _OfThread(threading.local):
    """Values by their keys, of each thread its own: a module may serve several."""

    def __init__(self) -> None:
        self.kept: dict[Any, Any] = {}


class Workspace:
    """The buffers that the blocks of a model share."""

    def __init__(self) -> None:
        self._thread = _OfThread()

    def take(self, name: str, *size: int) -> Tensor:
        """A tensor of that size in the thread's memory of that name, which all sizes share, unless one of them needs
        more of it."""
        kept, count = self._thread.kept, math.prod(size)
        if name not in kept or kept[name].numel() < count:
            kept[name] = torch.empty(count)
        memory: Tensor = kept[name]
        return memory[:count].view(size)


class _Walk(NamedTuple):
    """The calls between in_proj and the outputs, of some images and of directions that see the same tokens."""

    first: int  # the bytes before the first image, in what in_proj gives
    conv: Prepared
    select: Prepared  # x_proj
    scan: Prepared

    def __call__(self, x: Tensor, scale: Tensor | None, z: Tensor | None = None, gate: int = 0) -> None:
        """From x and z, the latter behind `gate` bytes, and scale, which lie in memory as those that this was laid out
        for."""
        self.conv.point("x", x, self.first)
        self.conv()
        self.select()
        if z is not None:
            self.scan.point("z", z, self.first + gate)
        if scale is not None:
            self.scan.point("scale", scale)
        self.scan()


class _Calls(NamedTuple):
    """A block's calls for one shape."""

    norm: Prepared
    x: Tensor  # (B, L, D), the sum, where there is something to add
    u: Tensor  # (B, L, D), its norm
    walks: tuple[_Walk, ...]
    y: tuple[Tensor, ...]  # what they fill: (B, L, E), or (B, l, E) for each direction


class PreparedBlock(nn.Module):
    """A block in float32 whose parameters do not change any more. Its outputs last until the thread's next block.

    Args:
        block: the plain one; its projections are used as they are.
        workspace: shared by the blocks of a model.
    """

    def __init__(self, block: Block, workspace: Workspace) -> None:
        super().__init__()
        self.block, self._workspace, self._thread = block, workspace, _OfThread()
        mixer = block.mixer
        self._decay_rates = mixer.decay_rates().detach()
        self._to_selected = for_product(mixer.x_proj_weight.detach())  # (K, E, R + 2 N and some)
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
        (y,) = calls.y
        xz, gate = self._in_proj(calls.u), y.shape[-1] * y.element_size()  # (B, L, 2 E)
        for walk in calls.walks:
            walk(xz, state.scale, xz, gate)
        return state._replace(x=x, h=self._out_proj(y)), NO_TAPS

    def forward_cls(self, state: State) -> State:
        """As `Block`."""
        c = state.cls
        if not isinstance(c, int) or _is_rare(state):
            return self.block.forward_cls(state)
        calls = self._calls(state, self._lay_out_reading, c)
        x = self._norm(calls, state)
        to_x, to_z = self.block.mixer.in_proj.weight.chunk(2)  # (E, D)
        inputs, z = F.linear(calls.u, to_x), F.linear(at(calls.u, c), to_z)  # (B, L, E), (B, E)
        at_c = []
        for k, (walk, y) in enumerate(zip(calls.walks, calls.y, strict=True)):
            seen, here = seen_by(k, c)
            walk(inputs[:, seen], None if state.scale is None else state.scale[..., seen])
            at_c.append(at(y, here))  # (B, E)
        return State(at(x, c)[:, None], self._out_proj(gated(torch.stack(at_c), z))[:, None])

    def _calls(self, state: State, lay_out: Callable[[State, Tensor], Any], *place: int) -> _Calls:
        """Those for the shape of a state, and of the class token's place where that matters."""
        scale = None if state.scale is None else state.scale.stride()
        shape = (place, state.x.shape, state.h is None, state.token_sizes, scale)
        calls: _Calls | None = self._thread.kept.get(shape)
        if calls is None:
            x, u = (self._workspace.take(name, *state.x.shape) for name in ("x", "u"))
            norm = self.block.norm
            prepared = Prepared.add_norm(state.x, state.h, norm.weight, norm.eps, None if state.h is None else x, u)
            calls = self._thread.kept[shape] = _Calls(prepared, x, u, *lay_out(state, u))
        return calls

    def _norm(self, calls: _Calls, state: State) -> Tensor:
        """Fill u; the residual stream."""
        calls.norm.point("x", state.x)
        if state.h is not None:
            calls.norm.point("h", state.h)
        calls.norm()
        return state.x if state.h is None else calls.x

    def _lay_out(self, state: State, u: Tensor) -> tuple[tuple[_Walk, ...], tuple[Tensor]]:
        """As many images at a time as there are threads: what one of them hands on is still in the cache."""
        x, z = self._in_proj(u).chunk(2, -1)  # (B, L, E), for their strides
        y = self._workspace.take("y", *x.shape)
        groups = zip(*(v.split(torch.get_num_threads()) for v in (x, z, y)), strict=True)
        first, walks = 0, []
        for x_of, z_of, y_of in groups:
            walks.append(self._walk(first, slice(None), slice(None), state, x_of, z_of, y_of))
            first += x_of.shape[0] * x_of.stride(0) * x_of.element_size()
        return tuple(walks), (y,)

    def _lay_out_reading(self, state: State, u: Tensor) -> tuple[tuple[_Walk, ...], tuple[Tensor, ...]]:
        """Each direction up to the class token."""
        x = u.new_empty(*u.shape[:2], self._to_selected.shape[1])  # (B, L, E), for its strides
        seen = [seen_by(k, state.cls)[0] for k in range(len(REVERSE))]
        y = [torch.empty_like(x[:, part]).contiguous() for part in seen]
        walks = (
            self._walk(0, slice(k, k + 1), part, state, x[:, part], None, y[k][None]) for k, part in enumerate(seen)
        )
        return tuple(walks), tuple(y)

    def _walk(self, first: int, of: slice, seen: slice, state: State, x: Tensor, z: Tensor | None, y: Tensor) -> _Walk:
        """The directions `of` over the tokens that they see, from x and z (b, l, E), which are here for their strides,
        to y."""
        mixer, reverse, weight = self.block.mixer, REVERSE[of], self._to_selected[of]
        span, scale = (
            None if state.token_sizes is None else state.token_sizes[seen],
            None if state.scale is None else state.scale[..., seen],
        )
        (batch, length, E), (K, _, width) = x.shape, weight.shape
        inputs = self._workspace.take("inputs", K, batch, length, E)
        selected = self._workspace.take("selected", K, batch * length, width)
        select = Prepared.product(inputs.flatten(1, 2), weight, selected)
        dt, B, C = selected[..., : sum(mixer.splits)].unflatten(1, (batch, length)).split(mixer.splits, -1)
        conv = Prepared.conv_silu(x, mixer.conv1d_weight[of], mixer.conv1d_bias[of], reverse, span, out=inputs)
        weights = (mixer.dt_proj_weight[of], mixer.dt_proj_bias[of])
        scan = Prepared.scan(
            inputs, dt, self._decay_rates[of], B, C, mixer.D[of], z, *weights, scale, None, None, reverse, out=y
        )
        return _Walk(first, conv, select, scan)


def _is_rare(state: State) -> bool:
    """Whether a state has what nothing is laid out for: gaps, first states, scales of each image, rows that are
    apart."""
    x, h, scale = state.x, state.h, state.scale
    if state.gap is not None or state.h0 is not None or (scale is not None and scale.dim() > 1):
        return True
    return not x.is_contiguous() or not (h is None or h.is_contiguous())
