"""A block of the native backend for inference, with everything that does not depend on the images laid out once.

It computes what `Block` computes, in the same order: norm, in_proj, convolution, x_proj, scan, out_proj. For one image,
a sixth of ViM-Ti's time is Python between these operations. Here the C calls are laid out once per shape and thread,
and a forward only moves a few of their pointers. x_proj has few columns, and libraries are slow at such a product, so
it has C code of its own. Rare inputs (taps, gaps) go through the plain block.

Invariants: parameters do not change any more, and a tensor that a call holds keeps its memory. All blocks share their
buffers, so a block's outputs last until the thread's next block runs.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stm.backends import Backend
from stm.backends.native_calls import PackedInt8, Prepared, for_product
from stm.backends.reference import gated
from stm.merging.plan import State, Taps
from stm.merging.schedule import Fixed
from stm.model.layers import REVERSE, Block, Mixer, at, first_places, seen_by
from stm.model.quantized import Int8, Int8Mixer
from stm.model.workspace import OfThread, Workspace

NO_TAPS = Taps()


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
    """A block whose parameters do not change, prepared. Its outputs last until the thread's next block.

    Args:
        block: the plain block; its projections, packed or not, are used as they are.
        workspace: the buffers, shared by the blocks of a model, because blocks run one after the other.
    """

    def __init__(self, block: Block, workspace: Workspace) -> None:
        super().__init__()
        self.block, self._workspace, self._thread = block, workspace, OfThread()
        mixer = block.mixer
        self._decay_rates = mixer.decay_rates().detach()
        self._selecting = _Int8(mixer) if isinstance(mixer, Int8Mixer) else _Floats(mixer)
        self._outer = mixer.input_dtype  # of what the matrix products read and write
        self._coarse = isinstance(mixer, Int8Mixer) or self._outer != torch.float32  # they are rounded anyway
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
        # x and z are the two halves of each row: the gate begins E values into it, and nothing is copied apart.
        xz = self._in_proj(calls.u)  # (B, L, 2 E)
        gate = y.shape[-1] * xz.element_size()
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
        inputs, z = self._selecting.half(calls.u), self.block.mixer.in_half(at(calls.u, c), 1)  # (B, L, E), (B, n, E)
        at_c = []
        for k, (walk, y) in enumerate(zip(calls.walks, calls.y, strict=True)):
            tokens, position = seen_by(k, c)
            walk(inputs[:, tokens], None if state.scale is None else state.scale[..., tokens])
            at_c.append(at(y, position))  # (B, n, E)
        at_c_gated = gated(torch.stack(at_c), z).to(self._outer)  # (B, n, E)
        return State(at(x, c), self._out_proj(at_c_gated), cls=first_places(c))

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
            x = self._workspace.take("x", *state.x.shape)
            u = self._workspace.take("u", *state.x.shape, dtype=self._outer)
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
        # The directions are added in float32 in any case, and their gated sum is rounded when it is written.
        out = y if self._outer == torch.float32 else self._workspace.take("gated", *x.shape, dtype=self._outer)
        groups = zip(*(v.split(torch.get_num_threads()) for v in (x, z, y, out)), strict=True)
        first, walks = 0, []
        for some_x, some_z, some_y, some_out in groups:
            walks.append(self._walk(first, slice(None), slice(None), state, some_x, some_z, some_y, some_out))
            first += some_x.shape[0] * some_x.stride(0) * some_x.element_size()
        return tuple(walks), (out,)

    def _lay_out_reading(self, state: State, u: Tensor) -> tuple[tuple[_Walk, ...], tuple[Tensor, ...]]:
        """Return the walks of a last block, one per direction up to its last class token, and their outputs."""
        x = u.new_empty(*u.shape[:2], self._decay_rates.shape[1])  # (B, L, E), for its strides and its dtype
        passed = [seen_by(k, state.cls)[0] for k in range(len(REVERSE))]
        y = [torch.empty_like(x[:, tokens], dtype=torch.float32).contiguous() for tokens in passed]
        walks = (
            self._walk(0, slice(k, k + 1), tokens, state, x[:, tokens], None, y[k][None])
            for k, tokens in enumerate(passed)
        )
        return tuple(walks), tuple(y)

    def _walk(
        self,
        first: int,
        of: slice,
        tokens: slice,
        state: State,
        x: Tensor,
        z: Tensor | None,
        y: Tensor,
        out: Tensor | None = None,
    ) -> _Walk:
        """Return the calls of the directions `of` over the tokens that they pass.

        Args:
            first: bytes before the first image of x.
            x, z: (b, l, E); only their strides matter, since every run points the calls at others.
            y: the sum of the directions, (b, l, E); (1, b, l, E) without a gate.
            out: the gated sum, (b, l, E); y itself if products are of float32.
        """
        mixer, reverse = self.block.mixer, REVERSE[of]
        sizes = None if state.token_sizes is None else state.token_sizes[tokens]
        scale = None if state.scale is None else state.scale[..., tokens]
        (batch, length, E), K = x.shape, len(reverse)
        inputs = self._workspace.take("inputs", K, batch, length, E)
        selected = self._workspace.take("selected", K, batch * length, self._selecting.width)
        select = self._selecting(of, inputs.flatten(1, 2), selected)
        # The width beyond R + 2 N is padding for whole vectors.
        dt, B, C = selected[..., : sum(mixer.splits)].unflatten(1, (batch, length)).split(mixer.splits, -1)
        conv = Prepared.conv_silu(x, mixer.conv1d_weight[of], mixer.conv1d_bias[of], reverse, sizes, out=inputs)
        weights = (mixer.dt_proj_weight[of].float(), mixer.dt_proj_bias[of])
        scan = Prepared.scan(
            inputs,
            dt,
            self._decay_rates[of],
            B,
            C,
            mixer.D[of],
            z,
            *weights,
            scale,
            None,
            reverse,
            out=y,
            gated=out,
            coarse=self._coarse,
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


class _Floats:
    """x_proj of a mixer of floats, in C of its own.

    Args:
        width: the columns of its output: R + 2 N, and padding for whole vectors.
    """

    def __init__(self, mixer: Mixer) -> None:
        self._weight = for_product(mixer.x_proj_weight.detach().float())  # (K, E, width)
        self.width, self._mixer = self._weight.shape[-1], mixer

    def __call__(self, of: slice, x: Tensor, out: Tensor) -> Prepared:
        """Prepare the product of the directions `of`, from x (K, rows, E) into out (K, rows, width)."""
        return Prepared.product(x, self._weight[of], out)

    def half(self, u: Tensor) -> Tensor:
        """Return the half of in_proj's output that goes to the convolution, (B, L, E)."""
        return self._mixer.in_half(u, 0)


class _Int8:
    """x_proj of an int8 mixer in C, and the half of in_proj that a last block needs; as `_Floats`."""

    def __init__(self, mixer: Int8Mixer) -> None:
        self._mixer, self.width = mixer, sum(mixer.splits)

    def __call__(self, of: slice, x: Tensor, out: Tensor) -> Prepared:
        product = self._mixer.x_proj
        weight = PackedInt8.of(product.weight[of], product.scale[of], product.equalizer[of])
        return Prepared.int8_product(x, weight, out)

    def half(self, u: Tensor) -> Tensor:
        return self._half(u)

    @cached_property
    def _half(self) -> "Int8Product":
        weight, scale = (v.chunk(2)[0] for v in (self._mixer.in_proj.weight, self._mixer.in_proj.scale))
        return Int8Product(weight, scale, self._mixer.in_proj.equalizer)


class Int8Product(nn.Module):
    """What `stm.model.quantized.Int8` computes, by C, with the same bits.

    Args:
        weight: (out, in), int8.
        scale: (out,).
        equalizer: (in,).
    """

    def __init__(self, weight: Tensor, scale: Tensor, equalizer: Tensor) -> None:
        super().__init__()
        self._packed = PackedInt8.of(weight[None], scale[None], equalizer[None])
        self._thread = OfThread()

    @classmethod
    def of(cls, product: Int8) -> "Int8Product":
        """Take the buffers of a product."""
        return cls(product.weight, product.scale, product.equalizer)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out) of x (..., in), both contiguous."""
        rows = x.numel() // x.shape[-1]
        out = x.new_empty(*x.shape[:-1], self._packed.shape[-1])
        call: Prepared | None = self._thread.kept.get(rows)
        if call is None:
            call = Prepared.int8_product(x.view(1, rows, -1), self._packed, out.view(1, rows, -1), "x", "out")
            self._thread.kept[rows] = call
        call.point("x", x)
        call.point("out", out)
        call()
        return out
