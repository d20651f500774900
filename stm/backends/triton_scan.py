"""The selective scan in Triton: both directions at once, time linear in the number of tokens, no padding.

Tensors are read in place and keep their dtypes; the state is float32. A state depends on the one before it, so a
program walks the tokens one by one, and the machine is filled by images, directions and channels. The backward pass
computes states again, a chunk of tokens at a time, from the states kept between the chunks: nothing of size
(B, L, E, N) is ever built.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stm.backends.operators import operator
from stm.backends.reference import projected
from stm.backends.triton_common import bits, blocks, check, power_of_two, rows
from stm.backends.triton_scan_kernels import gate_forward, scan_backward, scan_forward

# The most states that a thread holds: two channels of 16, which share the values read of B and C.
STATES = 32
# With fewer programs than this, each takes fewer channels. Two per scheduler of an H100, which has 528: a number of its
# data sheet, not tuned on one.
PROGRAMS = 1024
CHUNK = 16  # tokens between two states that are kept for the backward pass


def scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    reverse: tuple[bool, ...],
    *,
    dt_weight: Tensor | None = None,
    dt_bias: Tensor | None = None,
    scale: Tensor | None = None,
    gap: Tensor | None = None,
    split: bool = False,
) -> Tensor:
    """Return what `stm.backends.reference.scan` returns."""
    dt = projected(dt, dt_weight)
    out: Tensor = _scan(u, dt, A, B, C, D, None if split else z, dt_bias, scale, gap, list(reverse), split)
    return out


_SCAN = (
    "Tensor u, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor D, "
    "Tensor? z, Tensor? dt_bias, Tensor? scale, Tensor? gap, bool[] reverse"
)


class Walk(NamedTuple):
    """The inputs of a scan without its gate, checked and laid out for the kernels.

    The names are those of `stm.backends.reference.scan`.

    Args:
        row_B, row_C: elements from a token's B or C to the next one's, since both are slices of x_proj's output.
        reverse: the directions as bits.
    """

    u: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    dt_bias: Tensor | None
    scale: Tensor | None
    gap: Tensor | None
    row_B: int
    row_C: int
    reverse: int

    @classmethod
    def of(
        cls,
        u: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        dt_bias: Tensor | None,
        scale: Tensor | None,
        gap: Tensor | None,
        reverse: Sequence[bool],
    ) -> "Walk":
        """Check the inputs and lay them out; copies only tensors that the kernels cannot read in place.

        Raises:
            UsageError: another shape.
        """
        directions, batch, length, channels = u.shape
        states = A.shape[-1]
        check("u", u, (len(reverse), batch, length, channels))
        check("dt", dt, u.shape)
        check("A", A, (directions, channels, states))
        check("B", B, (directions, batch, length, states))
        check("C", C, B.shape)
        check("D", D, (directions, channels))
        check("dt_bias", dt_bias, D.shape)
        check("gap", gap, u.shape)
        if scale is not None:
            check("scale", scale, (batch, length)[-scale.dim() :])
            scale = scale.float().contiguous()
        A, D = A.float().contiguous(), D.float().contiguous()
        (B, row_B), (C, row_C) = rows(B), rows(C)
        dt_bias = None if dt_bias is None else dt_bias.float().contiguous()
        gap = None if gap is None else gap.contiguous()
        return cls(u.contiguous(), dt.contiguous(), A, B, C, D, dt_bias, scale, gap, row_B, row_C, bits(reverse))

    @property
    def row_scale(self) -> int:
        """Elements from one image's factors to the next image's; 0 if all images share them."""
        return self.scale.shape[-1] if self.scale is not None and self.scale.dim() == 2 else 0

    def block(self, states: int) -> dict[str, int]:
        """Return the compile-time sizes, for threads that hold at most so many states.

        A program is one warp of 32 threads. Halving its channels doubles the programs, until they fill the machine.
        """
        directions, batch, _, channels = self.u.shape
        N = self.A.shape[-1]
        block_n = power_of_two(N)
        block_e = max(1, min(64, 32 * states // block_n, power_of_two(channels)))
        while block_e > 8 and directions * batch * blocks(channels, block_e) < PROGRAMS:
            block_e //= 2
        return {"N": N, "BLOCK_N": block_n, "BLOCK_E": block_e, "CHUNK": CHUNK, "num_warps": 1}

    def forward(self, keep: bool = False, block: dict[str, int] | None = None) -> tuple[Tensor, Tensor | None]:
        """Return y (K, B, L, E) in the dtype of u, and with `keep` the state before each chunk of tokens.

        Args:
            keep: whether `backward` will follow.
            block: compile-time sizes, for tests; by default those of `block`.
        """
        directions, batch, length, channels = self.u.shape
        block = block or self.block(STATES // 2 if keep else STATES)
        y = torch.empty_like(self.u)
        between = None
        if keep:
            between = self.A.new_empty(directions, batch, blocks(length, CHUNK), block["N"], channels)
        if y.numel():
            with torch.cuda.device_of(y):
                scan_forward[blocks(channels, block["BLOCK_E"]), batch, directions](
                    *(self.u, self.dt, self.A, self.B, self.C, self.D),
                    *(self.dt_bias, self.scale, self.gap, y, between),
                    *(self.row_B, self.row_C, self.row_scale, batch, length, channels, self.reverse, 1),
                    **block,
                )
        return y, between

    def backward(self, grad: Tensor, between: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of u, dt, A, B, C, D, dt_bias, scale and gap; None for absent inputs.

        Args:
            grad: the gradient of y: (K, B, L, E), or (B, L, E) if it is the same for all directions.
            between: the states that `forward` kept.
        """
        directions, batch, length, channels = self.u.shape
        block = self.block(STATES // 4)
        count = blocks(channels, block["BLOCK_E"])
        scratch = self.A.new_empty(directions * batch * count, CHUNK, block["BLOCK_N"], block["BLOCK_E"])
        g_u, g_dt, g_gap = (None if v is None else torch.empty_like(v) for v in (self.u, self.dt, self.gap))
        # Programs write sums of their own, per image or per block of channels; they are added up below. So no two
        # programs write one address, and the order of the sums is fixed.
        g_A, g_D = (v.new_zeros(batch, *v.shape) for v in (self.A, self.D))
        g_bias = None if self.dt_bias is None else torch.zeros_like(g_D)
        g_B, g_C = (self.A.new_zeros(count, *v.shape) for v in (self.B, self.C))
        g_scale = None if self.scale is None else self.A.new_zeros(count, directions, batch, length)
        if self.u.numel():
            with torch.cuda.device_of(grad):
                scan_backward[count, batch, directions](
                    *(grad, self.u, self.dt, self.A, self.B, self.C, self.D),
                    *(self.dt_bias, self.scale, self.gap, between, scratch),
                    *(g_u, g_dt, g_A, g_B, g_C, g_D, g_bias, g_scale, g_gap),
                    *(self.row_B, self.row_C, self.row_scale, batch if grad.dim() == 4 else 0),
                    *(batch, length, channels, self.reverse, 1),
                    **block,
                )
        if g_scale is not None:
            g_scale = g_scale.sum((0, 1) if self.row_scale else (0, 1, 2))
        g_bias = None if g_bias is None else g_bias.sum(0)
        return g_u, g_dt, g_A.sum(0), g_B.sum(0), g_C.sum(0), g_D.sum(0), g_bias, g_scale, g_gap


def gate(y: Tensor, z: Tensor | None) -> Tensor:
    """Return the sum of y (K, B, L, E) over the directions, times SiLU(z) if there is a gate z (B, L, E)."""
    directions, batch, length, channels = y.shape
    check("z", z, y.shape[1:])
    z, row_z = (None, 0) if z is None else rows(z)
    out = y.new_empty(y.shape[1:])
    if out.numel():
        block = min(1024, power_of_two(channels))
        with torch.cuda.device_of(y):
            gate_forward[batch * length, blocks(channels, block)](
                y, z, out, row_z, out.numel(), channels, K=directions, BLOCK=block
            )
    return out


def _out(u: Tensor, *others: Any) -> Tensor:
    split = others[-1]
    return u.new_empty(u.shape if split else u.shape[1:])


def _gradients(grad: Tensor, *inputs: Any) -> list[Tensor]:
    return [v.new_empty(v.shape) for v in inputs if isinstance(v, Tensor)]


@operator(f"triton_scan_backward(Tensor grad, {_SCAN}) -> Tensor[]", fake=_gradients)
def _scan_backward(grad: Tensor, *inputs: Any) -> list[Tensor]:
    u, dt, A, B, C, D, z, dt_bias, scale, gap, reverse = inputs
    walk = Walk.of(u, dt, A, B, C, D, dt_bias, scale, gap, reverse)
    y, between = walk.forward(keep=True)
    assert between is not None  # `keep` asks for it
    g_z = None
    if z is not None:  # the gate acts on the sum over the directions: torch's own kernels do for its gradients
        total, opening = y.sum(0, dtype=torch.float32), z.float()
        g_z = torch.ops.aten.silu_backward(grad.float() * total, opening)
        grad = grad.float() * F.silu(opening)
    g_u, g_dt, g_A, g_B, g_C, g_D, *rest = walk.backward(grad.contiguous(), between)
    grads = [g_u, g_dt, g_A, g_B, g_C, g_D, g_z, *rest]
    return [g.to(v.dtype) for g, v in zip(grads, inputs[:-1], strict=True) if g is not None]


@operator(f"triton_scan({_SCAN}, bool split) -> Tensor", fake=_out, backward=_scan_backward, constants=1)
def _scan(*inputs: Any) -> Tensor:
    u, dt, A, B, C, D, z, dt_bias, scale, gap, reverse, split = inputs
    y, _ = Walk.of(u, dt, A, B, C, D, dt_bias, scale, gap, reverse).forward()
    return y if split else gate(y, z)
