"""The selective scan in Triton: one program walks one direction of one image for a few channels, all N states in registers.

Time is linear in the number of tokens, without padding. Inside everything is float32; what is read and written has its own dtype.
A program holds its states as (N, channels), channels innermost: a thread then owns whole columns, and C_t h_t is a sum of its own
registers. With fewer channels to a program, the threads of a warp share the states, which trades work for more programs. Triton would
lay out the states after whatever it finds contiguous in memory, so their addresses contain a factor `one` that it knows nothing about.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from stm.backends.operators import operator
from stm.backends.triton_common import bits, check, rows, sigmoid, softplus

LOG2E = tl.constexpr(1.4426950408889634)
STATES = 32  # the most that a thread holds: two channels of 16, which share what was read of B and C
PROGRAMS = 1024  # fewer take fewer channels each: two for each of an H100's 528 schedulers. From its data sheet, not tuned on one
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
    scale: Tensor | None = None,
    gap: Tensor | None = None,
    h0: Tensor | None = None,
    split: bool = False,
) -> Tensor:
    """As `stm.scan.scan`."""
    out: Tensor = _scan(u, dt, A, B, C, D, None if split else z, scale, gap, h0, list(reverse), split)
    return out


@triton.jit
def _token(u, dt, B, C, gap, row, e, n, in_e, in_n, E, row_B, row_C):
    """One token as it is stored: its input, Delta before its softplus, B, C and gap."""
    u_t = tl.load(u + row * E + e, mask=in_e, other=0.0)
    dt_t = tl.load(dt + row * E + e, mask=in_e, other=0.0)
    B_t = tl.load(B + row * row_B + n, mask=in_n, other=0.0)
    C_t = tl.load(C + row * row_C + n, mask=in_n, other=0.0)
    gap_t = 0.0
    if gap is not None:
        gap_t = tl.load(gap + row * E + e, mask=in_e, other=0.0).to(tl.float32)
    return u_t, dt_t, B_t, C_t, gap_t


@triton.jit
def _steps(dt_t, gap_t, scale, place):
    """The softplus, its factor, and the elapsed time of one token."""
    soft, factor = softplus(dt_t.to(tl.float32)), 1.0
    if scale is not None:
        factor = tl.load(scale + place)
    return soft, factor, soft * factor + gap_t


@triton.jit(do_not_specialize=["one"])
def scan_forward(
    u, dt, A, B, C, D, scale, gap, h0, y, between, row_B, row_C, row_scale, batch, L, E, reverse, one,
    N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """y (K, B, L, E), and in `between` (K, B, chunks, N, E), where it is given, the state before each chunk of tokens."""
    b, k = tl.program_id(1), tl.program_id(2)
    e, n = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_N)
    in_e, in_n = e < E, n < N
    inside = in_n[:, None] & in_e[None, :]
    parameter = (k * E + e[None, :]) * N + n[:, None] * one
    A_2 = tl.load(A + parameter, mask=inside, other=0.0) * LOG2E  # (N, E): exp2 is the instruction
    D_e = tl.load(D + k * E + e, mask=in_e, other=0.0)
    h = tl.zeros((BLOCK_N, BLOCK_E), tl.float32)
    if h0 is not None:
        h += tl.load(h0 + parameter, mask=inside, other=0.0)
    back = (reverse >> k) & 1
    step = 1 - 2 * back
    walk = k * batch + b  # of all walks
    first = walk.to(tl.int64) * L
    t = back * (L - 1)
    u_next, dt_next, B_next, C_next, gap_next = _token(u, dt, B, C, gap, first + t, e, n, in_e, in_n, E, row_B, row_C)
    for i in range(L):
        u_t, dt_t, B_t, C_t, gap_t = u_next, dt_next, B_next, C_next, gap_next
        # The next token is on its way while this one is computed; after the last one it is the last one again.
        ahead = t + tl.where(i + 1 < L, step, 0)
        u_next, dt_next, B_next, C_next, gap_next = _token(u, dt, B, C, gap, first + ahead, e, n, in_e, in_n, E, row_B, row_C)
        if between is not None:
            if i % CHUNK == 0:
                place = walk.to(tl.int64) * ((L + CHUNK - 1) // CHUNK) + i // CHUNK
                tl.store(between + (place * N + n[:, None]) * E + e[None, :] * one, h, mask=inside)
        x = u_t.to(tl.float32)
        soft, factor, elapsed = _steps(dt_t, gap_t, scale, b * row_scale + t)
        h = tl.exp2(elapsed[None, :] * A_2) * h + (soft * factor * x)[None, :] * B_t.to(tl.float32)[:, None]
        y_t = tl.sum(h * C_t.to(tl.float32)[:, None], 0) + D_e * x
        tl.store(y + (first + t) * E + e, y_t.to(y.dtype.element_ty), mask=in_e)
        t = ahead


@triton.jit
def gate_forward(y, z, out, row_z, total, E, K: tl.constexpr, BLOCK: tl.constexpr):
    """out (B, L, E): the sum of y (K, B, L, E) over the directions, times SiLU(z) where z is given; `total` is B L E."""
    row, e = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    in_e = e < E
    place = row * E + e
    both = tl.load(y + place, mask=in_e, other=0.0).to(tl.float32)
    for k in tl.static_range(1, K):
        both += tl.load(y + k * total + place, mask=in_e, other=0.0).to(tl.float32)
    if z is not None:
        gate = tl.load(z + row * row_z + e, mask=in_e, other=0.0).to(tl.float32)
        both *= gate * sigmoid(gate)
    tl.store(out + place, both.to(out.dtype.element_ty), mask=in_e)


@triton.jit(do_not_specialize=["one"])
def scan_backward(
    grad, u, dt, A, B, C, D, scale, gap, between, scratch, g_u, g_dt, g_A, g_B, g_C, g_D, g_scale, g_gap, g_h0,
    row_B, row_C, row_scale, walk_grad, batch, L, E, reverse, one,
    N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The gradients from that of y: `grad` (K, B, L, E), or (B, L, E) for all directions. From the last chunk of tokens to the first.

    A chunk's states are computed again into `scratch` (programs, CHUNK, N, channels), then its tokens are walked backwards. Sums over
    the images (A, D, h0: a leading B) and over channels (B, C, scale: a leading axis of channel blocks) are the caller's.
    """
    block, b, k = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    e_local, n = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_N)
    e = block * BLOCK_E + e_local
    in_e, in_n = e < E, n < N
    inside = in_n[:, None] & in_e[None, :]
    parameter = (k * E + e[None, :]) * N + n[:, None] * one
    A_n = tl.load(A + parameter, mask=inside, other=0.0)  # (N, E)
    D_e = tl.load(D + k * E + e, mask=in_e, other=0.0)
    back = (reverse >> k) & 1
    step = 1 - 2 * back
    walk = (k * batch + b).to(tl.int64)
    walks = tl.num_programs(2) * batch
    first, start = walk * L, back * (L - 1)
    chunks = (L + CHUNK - 1) // CHUNK
    mine = ((walk * tl.num_programs(0) + block) * CHUNK * BLOCK_N + n[:, None]) * BLOCK_E + e_local[None, :] * one  # in scratch
    g_h = tl.zeros((BLOCK_N, BLOCK_E), tl.float32)  # of the state that leaves the token in hand
    sum_A = tl.zeros((BLOCK_N, BLOCK_E), tl.float32)
    sum_D = tl.zeros((BLOCK_E,), tl.float32)
    for c in range(chunks):
        chunk = chunks - 1 - c
        tokens = tl.minimum(CHUNK, L - chunk * CHUNK)
        h = tl.load(between + ((walk * chunks + chunk) * N + n[:, None]) * E + e[None, :] * one, mask=inside, other=0.0)
        for j in range(tokens):
            tl.store(scratch + mine + j * BLOCK_N * BLOCK_E, h)
            t = start + step * (chunk * CHUNK + j)
            u_t, dt_t, B_t, C_t, gap_t = _token(u, dt, B, C, gap, first + t, e, n, in_e, in_n, E, row_B, row_C)
            soft, factor, elapsed = _steps(dt_t, gap_t, scale, b * row_scale + t)
            h = tl.exp(elapsed[None, :] * A_n) * h + (soft * factor * u_t.to(tl.float32))[None, :] * B_t.to(tl.float32)[:, None]
        tl.debug_barrier()  # a state may have been written by another thread of the program
        for j_from_end in range(tokens):
            j = tokens - 1 - j_from_end
            before = tl.load(scratch + mine + j * BLOCK_N * BLOCK_E)
            t = start + step * (chunk * CHUNK + j)
            u_t, dt_t, B_t, C_t, gap_t = _token(u, dt, B, C, gap, first + t, e, n, in_e, in_n, E, row_B, row_C)
            g_y = tl.load(grad + (k * walk_grad + b).to(tl.int64) * L * E + t * E + e, mask=in_e, other=0.0).to(tl.float32)
            x, B_f, C_f = u_t.to(tl.float32), B_t.to(tl.float32)[:, None], C_t.to(tl.float32)[:, None]
            soft, factor, elapsed = _steps(dt_t, gap_t, scale, b * row_scale + t)
            delta = soft * factor
            decay = tl.exp(elapsed[None, :] * A_n)
            h = decay * before + (delta * x)[None, :] * B_f
            row = first + t
            place = row * E + e
            partial = block * walks * L + row  # of sums over channels
            tl.store(g_C + partial * N + n, tl.sum(g_y[None, :] * h, 1), mask=in_n)
            g_state = g_h + C_f * g_y[None, :]
            tl.store(g_B + partial * N + n, tl.sum(g_state * (delta * x)[None, :], 1), mask=in_n)
            g_product = tl.sum(g_state * B_f, 0)  # of Delta u
            g_exponent = g_state * before * decay  # of elapsed A
            g_elapsed = tl.sum(g_exponent * A_n, 0)
            g_delta = g_product * x + g_elapsed
            sum_A += g_exponent * elapsed[None, :]
            sum_D += g_y * x
            tl.store(g_u + place, (g_product * delta + g_y * D_e).to(g_u.dtype.element_ty), mask=in_e)
            tl.store(g_dt + place, (g_delta * factor * sigmoid(dt_t.to(tl.float32))).to(g_dt.dtype.element_ty), mask=in_e)
            if gap is not None:
                tl.store(g_gap + place, g_elapsed.to(g_gap.dtype.element_ty), mask=in_e)
            if scale is not None:
                tl.store(g_scale + partial, tl.sum(g_delta * soft, 0))
            g_h = decay * g_state
        tl.debug_barrier()  # before the next chunk overwrites the states
    of_image = b * tl.num_programs(2) * E
    tl.store(g_A + of_image.to(tl.int64) * N + parameter, sum_A, mask=inside)
    tl.store(g_D + of_image + k * E + e, sum_D, mask=in_e)
    if g_h0 is not None:
        tl.store(g_h0 + of_image.to(tl.int64) * N + parameter, g_h, mask=inside)


# The host's side.

_SCAN = "Tensor u, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor D, Tensor? z, Tensor? scale, Tensor? gap, Tensor? h0, bool[] reverse"


class Walk(NamedTuple):
    """The inputs of a scan without its gate, checked and laid out for the kernels. The names are those of `stm.scan.scan`."""

    u: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    scale: Tensor | None
    gap: Tensor | None
    h0: Tensor | None
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
        scale: Tensor | None,
        gap: Tensor | None,
        h0: Tensor | None,
        reverse: Sequence[bool],
    ) -> "Walk":
        directions, batch, length, channels = u.shape
        states = A.shape[-1]
        check("u", u, (len(reverse), batch, length, channels))
        check("dt", dt, u.shape)
        check("A", A, (directions, channels, states))
        check("B", B, (directions, batch, length, states))
        check("C", C, B.shape)
        check("D", D, (directions, channels))
        check("gap", gap, u.shape)
        check("h0", h0, A.shape)
        if scale is not None:
            check("scale", scale, (batch, length)[-scale.dim() :])
            scale = scale.float().contiguous()
        A, D, h0 = (None if v is None else v.float().contiguous() for v in (A, D, h0))
        (B, row_B), (C, row_C) = rows(B), rows(C)
        gap = None if gap is None else gap.contiguous()
        return cls(u.contiguous(), dt.contiguous(), A, B, C, D, scale, gap, h0, row_B, row_C, bits(reverse))

    @property
    def row_scale(self) -> int:
        """From one image's factors to the next's."""
        return self.scale.shape[-1] if self.scale is not None and self.scale.dim() == 2 else 0

    def block(self, states: int) -> dict[str, int]:
        """The compile-time sizes, for threads that hold at most so many states."""
        directions, batch, _, channels = self.u.shape
        N = self.A.shape[-1]
        block_n = triton.next_power_of_2(N)
        block_e = max(1, min(64, 32 * states // block_n, triton.next_power_of_2(channels)))
        while block_e > 8 and directions * batch * triton.cdiv(channels, block_e) < PROGRAMS:
            block_e //= 2
        return {"N": N, "BLOCK_N": block_n, "BLOCK_E": block_e, "CHUNK": CHUNK, "num_warps": 1}

    def forward(self, keep: bool = False, block: dict[str, int] | None = None) -> tuple[Tensor, Tensor | None]:
        """y (K, B, L, E) in the dtype of u, and with `keep` the state before each chunk of tokens, for `backward`."""
        directions, batch, length, channels = self.u.shape
        block = block or self.block(STATES // 2 if keep else STATES)
        y = torch.empty_like(self.u)
        between = None
        if keep:
            between = self.A.new_empty(directions, batch, triton.cdiv(length, CHUNK), block["N"], channels)
        if y.numel():
            with torch.cuda.device_of(y):
                scan_forward[triton.cdiv(channels, block["BLOCK_E"]), batch, directions](
                    *(self.u, self.dt, self.A, self.B, self.C, self.D, self.scale, self.gap, self.h0, y, between),
                    *(self.row_B, self.row_C, self.row_scale, batch, length, channels, self.reverse, 1),
                    **block,
                )
        return y, between

    def backward(self, grad: Tensor, between: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of u, dt, A, B, C, D, scale, gap and h0, from that of y: (K, B, L, E), or (B, L, E) for all directions."""
        directions, batch, length, channels = self.u.shape
        block = self.block(STATES // 4)
        blocks = triton.cdiv(channels, block["BLOCK_E"])
        scratch = self.A.new_empty(directions * batch * blocks, CHUNK, block["BLOCK_N"], block["BLOCK_E"])
        g_u, g_dt, g_gap = (None if v is None else torch.empty_like(v) for v in (self.u, self.dt, self.gap))
        g_A, g_D, g_h0 = (None if v is None else v.new_zeros(batch, *v.shape) for v in (self.A, self.D, self.h0))
        g_B, g_C = (self.A.new_zeros(blocks, *v.shape) for v in (self.B, self.C))
        g_scale = None if self.scale is None else self.A.new_zeros(blocks, directions, batch, length)
        if self.u.numel():
            with torch.cuda.device_of(grad):
                scan_backward[blocks, batch, directions](
                    *(grad, self.u, self.dt, self.A, self.B, self.C, self.D, self.scale, self.gap, between, scratch),
                    *(g_u, g_dt, g_A, g_B, g_C, g_D, g_scale, g_gap, g_h0),
                    *(self.row_B, self.row_C, self.row_scale, batch if grad.dim() == 4 else 0),
                    *(batch, length, channels, self.reverse, 1),
                    **block,
                )
        if g_scale is not None:
            g_scale = g_scale.sum((0, 1) if self.row_scale else (0, 1, 2))
        g_A, g_D, g_h0, g_B, g_C = (None if v is None else v.sum(0) for v in (g_A, g_D, g_h0, g_B, g_C))
        return g_u, g_dt, g_A, g_B, g_C, g_D, g_scale, g_gap, g_h0


def gate(y: Tensor, z: Tensor | None) -> Tensor:
    """The sum of y (K, B, L, E) over the directions, times SiLU(z) where z (B, L, E) is given."""
    directions, batch, length, channels = y.shape
    check("z", z, y.shape[1:])
    z, row_z = rows(z)
    out = y.new_empty(y.shape[1:])
    if out.numel():
        block = min(1024, triton.next_power_of_2(channels))
        with torch.cuda.device_of(y):
            gate_forward[batch * length, triton.cdiv(channels, block)](y, z, out, row_z, out.numel(), channels, K=directions, BLOCK=block)
    return out


def _out(u: Tensor, *others: Any) -> Tensor:
    split = others[-1]
    return u.new_empty(u.shape if split else u.shape[1:])


def _gradients(grad: Tensor, *inputs: Any) -> list[Tensor]:
    return [v.new_empty(v.shape) for v in inputs if isinstance(v, Tensor)]


@operator(f"triton_scan_backward(Tensor grad, {_SCAN}) -> Tensor[]", fake=_gradients)
def _scan_backward(grad: Tensor, *inputs: Any) -> list[Tensor]:
    u, dt, A, B, C, D, z, scale, gap, h0, reverse = inputs
    walk = Walk.of(u, dt, A, B, C, D, scale, gap, h0, reverse)
    y, between = walk.forward(keep=True)
    g_z = None
    if z is not None:  # the gate, whose gradients torch knows
        total, opening = y.sum(0, dtype=torch.float32), z.float()
        g_z = torch.ops.aten.silu_backward(grad.float() * total, opening)
        grad = grad.float() * F.silu(opening)
    g_u, g_dt, g_A, g_B, g_C, g_D, *rest = walk.backward(grad.contiguous(), between)
    grads = [g_u, g_dt, g_A, g_B, g_C, g_D, g_z, *rest]
    return [g.to(v.dtype) for g, v in zip(grads, inputs[:-1], strict=True) if v is not None]


@operator(f"triton_scan({_SCAN}, bool split) -> Tensor", fake=_out, backward=_scan_backward, constants=1)
def _scan(*inputs: Any) -> Tensor:
    *before_z, z, scale, gap, h0, reverse, split = inputs
    y, _ = Walk.of(*before_z, scale, gap, h0, reverse).forward()
    return y if split else gate(y, z)
