"""A block of the native backend for inference, with everything that does not depend on the images laid out once.

It computes what `Block` computes, in the same order: norm, in_proj, convolution, x_proj, scan, out_proj. For one image,
a sixth of ViM-Ti's time is Python between these operations. Here the C calls are laid out once per shape and thread,
and a forward only moves a few of their pointers. x_proj has few columns, and libraries are slow at such a product, so
it has C code of its own. Rare inputs (taps, gaps) go through the plain block.

Invariants: parameters do not change any more, and a tensor that a call holds keeps its memory. All blocks share their
buffers, so a block's outputs last until the thread's next block runs.
"""

import math
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stm.backends import Backend
from stm.backends.native_calls import Prepared, for_product
from stm.backends.reference import gated
from stm.merging.plan import State, Taps
from stm.merging.schedule import Fixed
from stm.model.layers import REVERSE, Block, at, first_places, seen_by

NO_TAPS = Taps()


class _OfThread(threading.local):
    """Values by key, separate for each thread, since several threads may share a module but not its buffers."""

    def __init__(self) -> None:
        self.kept: dict[Any, Any] = {}


class Workspace:
    """The buffers that the blocks of a model share."""

    def __init__(self) -> None:
        self._thread = _OfThread()

    def take(self, name: str, *size: int) -> Tensor:
        """Return a view of this thread's buffer `name`, growing it if needed.

        Views of one name overlap, whatever their size. A view outlives a growth: it keeps the old memory.
        """
        kept, count = self._thread.kept, math.prod(size)
        if name not in kept or kept[name].numel() < count:
            kept[name] = torch.empty(count)
        memory: Tensor = kept[name]
        return memory[:count].view(size)


class _Walk(NamedTuple):
    """The calls between in_proj and out_proj, for some images of a batch and directions that pass the same tokens."""

    first: int  # bytes before the first of these images in the output of in_proj
    conv: Prepared
    select: Prepared  # x_proj
    scan: Prepared

    def __call__(self, x: Tensor, scale: Tensor | None, z: Tensor | None = None, gate: int = 0) -> None:
        """Run the calls on new tensors, whose strides are those that the calls were laid out for.

        Args:
            x: the output of in_proj, or its half for the convolution.
            scale: the factors of Delta, if the state has any.
            z: the tensor that holds the gate, `gate` bytes after its start; None without a gate.
        """
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
    x: Tensor  # (B, L, D), filled with the residual sum if the state has a pending output
    u: Tensor  # (B, L, D), filled with the norm
    walks: tuple[_Walk, ...]
    y: tuple[Tensor, ...]  # filled by the walks: (B, L, E), or (B, l, E) per direction of a last block


class PreparedBlock(nn.Module):
    """A block in float32 whose parameters do not change any more. Its outputs last until the thread's next block.

    Args:
        block: the plain block; its projections, packed or not, are used as they are.
        workspace: the buffers, shared by the blocks of a model, because blocks run one after the other.
    """

    def __init__(self, block: Block, workspace: Workspace) -> None:
        super().__init__()
        self.block, self._workspace, self._thread = block, workspace, _OfThread()
        mixer = block.mixer
        self._decay_rates = mixer.decay_rates().detach()
        self._to_selected = for_product(mixer.x_proj_weight.detach())  # (K, E, R + 2 N and some)
        # `forward`, not the module: nn.Module.__call__ looks for hooks, microseconds per call.
        self._in_proj: Callable[[Tensor], Tensor] = mixer.in_proj.forward
        self._out_proj: Callable[[Tensor], Tensor] = mixer.out_proj.forward

    @property
    def backend(self) -> Backend:
        """The backend of the block."""
        return self.block.backend

    def forward(self, state: State, wants: tuple[str, ...] = ()) -> tuple[State, Taps]:
        """Return what `Block.forward` returns."""
        if wants or self._is_rare(state):
            out: tuple[State, Taps] = self.block(state, wants)
            return out
        calls = self._calls(state, self._lay_out)
        x = self._norm(calls, state)
        (y,) = calls.y
        # x and z are the two halves of each row: the gate begins E floats into it, and nothing is copied apart.
        xz, gate = self._in_proj(calls.u), y.shape[-1] * y.element_size()  # (B, L, 2 E)
        for walk in calls.walks:
            walk(xz, state.scale, xz, gate)
        return state._replace(x=x, h=self._out_proj(y)), NO_TAPS

    def forward_cls(self, state: State) -> State:
        """Return what `Block.forward_cls` returns."""
        c = state.cls
        if isinstance(c, Tensor) or self._is_rare(state):
            return self.block.forward_cls(state)
        calls = self._calls(state, self._lay_out_reading, c)
        x = self._norm(calls, state)
        to_x, to_z = self.block.mixer.in_proj.weight.chunk(2)  # (E, D)
        inputs, z = F.linear(calls.u, to_x), F.linear(at(calls.u, c), to_z)  # (B, L, E), (B, n, E)
        at_c = []
        for k, (walk, y) in enumerate(zip(calls.walks, calls.y, strict=True)):
            tokens, position = seen_by(k, c)
            walk(inputs[:, tokens], None if state.scale is None else state.scale[..., tokens])
            at_c.append(at(y, position))  # (B, n, E)
        return State(at(x, c), self._out_proj(gated(torch.stack(at_c), z)), cls=first_places(c))

    def _calls(self, state: State, lay_out: Callable[[State, Tensor], Any], *cls: Fixed) -> _Calls:
        """Return the calls for the shape of a state, laid out when the shape is first met.

        Args:
            lay_out: makes the walks and their outputs.
            cls: where the class tokens are, if the layout depends on it.
        """
        scale = None if state.scale is None else state.scale.stride()
        shape = (cls, state.x.shape, state.h is None, state.token_sizes, scale)  # all that the layout depends on
        calls: _Calls | None = self._thread.kept.get(shape)
        if calls is None:
            x, u = (self._workspace.take(name, *state.x.shape) for name in ("x", "u"))
            norm = self.block.norm
            prepared = Prepared.add_norm(state.x, state.h, norm.weight, norm.eps, None if state.h is None else x, u)
            calls = self._thread.kept[shape] = _Calls(prepared, x, u, *lay_out(state, u))
        return calls

    def _norm(self, calls: _Calls, state: State) -> Tensor:
        """Fill `calls.u` with the norm, and return the residual stream."""
        calls.norm.point("x", state.x)
        if state.h is not None:
            calls.norm.point("h", state.h)
        calls.norm()
        return state.x if state.h is None else calls.x

    def _lay_out(self, state: State, u: Tensor) -> tuple[tuple[_Walk, ...], tuple[Tensor]]:
        """Return the walks of a whole block and their output.

        A walk takes as many images as there are threads. The convolution's outputs for these images are still in the
        cache when the product and the scan read them.
        """
        x, z = self._in_proj(u).chunk(2, -1)  # (B, L, E), for their strides
        y = self._workspace.take("y", *x.shape)
        groups = zip(*(v.split(torch.get_num_threads()) for v in (x, z, y)), strict=True)
        first, walks = 0, []
        for some_x, some_z, some_y in groups:
            walks.append(self._walk(first, slice(None), slice(None), state, some_x, some_z, some_y))
            first += some_x.shape[0] * some_x.stride(0) * some_x.element_size()
        return tuple(walks), (y,)

    def _lay_out_reading(self, state: State, u: Tensor) -> tuple[tuple[_Walk, ...], tuple[Tensor, ...]]:
        """Return the walks of a last block, one per direction up to its last class token, and their outputs."""
        x = u.new_empty(*u.shape[:2], self._to_selected.shape[1])  # (B, L, E), for its strides
        passed = [seen_by(k, state.cls)[0] for k in range(len(REVERSE))]
        y = [torch.empty_like(x[:, tokens]).contiguous() for tokens in passed]
        walks = (
            self._walk(0, slice(k, k + 1), tokens, state, x[:, tokens], None, y[k][None])
            for k, tokens in enumerate(passed)
        )
        return tuple(walks), tuple(y)

    def _walk(
        self, first: int, of: slice, tokens: slice, state: State, x: Tensor, z: Tensor | None, y: Tensor
    ) -> _Walk:
        """Return the calls of the directions `of` over the tokens that they pass.

        Args:
            first: bytes before the first image of x.
            x, z: (b, l, E); only their strides matter, since every run points the calls at others.
            y: the output, (b, l, E); (1, b, l, E) without a gate.
        """
        mixer, reverse, weight = self.block.mixer, REVERSE[of], self._to_selected[of]
        sizes = None if state.token_sizes is None else state.token_sizes[tokens]
        scale = None if state.scale is None else state.scale[..., tokens]
        (batch, length, E), (K, _, width) = x.shape, weight.shape
        inputs = self._workspace.take("inputs", K, batch, length, E)
        selected = self._workspace.take("selected", K, batch * length, width)
        select = Prepared.product(inputs.flatten(1, 2), weight, selected)
        # The width beyond R + 2 N is padding for whole vectors.
        dt, B, C = selected[..., : sum(mixer.splits)].unflatten(1, (batch, length)).split(mixer.splits, -1)
        conv = Prepared.conv_silu(x, mixer.conv1d_weight[of], mixer.conv1d_bias[of], reverse, sizes, out=inputs)
        weights = (mixer.dt_proj_weight[of], mixer.dt_proj_bias[of])
        scan = Prepared.scan(
            inputs, dt, self._decay_rates[of], B, C, mixer.D[of], z, *weights, scale, None, reverse, out=y
        )
        return _Walk(first, conv, select, scan)

    def _is_rare(self, state: State) -> bool:
        """Return whether a state or the block has a feature that no call is laid out for.

        That is a gap, a scale per image, a stream that is not contiguous, or a norm between scan and gate.
        """
        x, h, scale = state.x, state.h, state.scale
        if state.gap is not None or (scale is not None and scale.dim() > 1) or self.block.mixer.scan_norm is not None:
            return True
        return not x.is_contiguous() or not (h is None or h.is_contiguous())
