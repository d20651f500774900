"""The addition of the pending output to the residual stream and the RMSNorm of the sum, in one Triton kernel.

The operation does little arithmetic and is bound by memory, so each row is read once and stays in registers.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from stm.backends.operators import operator
from stm.backends.triton_common import check, power_of_two, rows

PROGRAMS = 512  # of the backward pass; each sums the weight's gradient over its rows, so this many sums are in memory


def add_norm(x: Tensor, h: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return what `stm.backends.reference.add_norm` returns."""
    *total, out = _add_norm(x, h, weight, eps, dtype)
    return total[0] if total else x, out


@triton.jit
def norm_forward(x, h, weight, total, out, row_x, row_h, D, eps, BLOCK: tl.constexpr):
    """Write total = x + h, if there is an h, and out, its norm. One program per row (D)."""
    row, d = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = d < D
    v = tl.load(x + row * row_x + d, mask=inside, other=0.0).to(tl.float32)
    if h is not None:
        v += tl.load(h + row * row_h + d, mask=inside, other=0.0).to(tl.float32)
        tl.store(total + row * D + d, v.to(total.dtype.element_ty), mask=inside)
    scale = tl.rsqrt(tl.sum(v * v, 0) / D + eps)
    normal = v * scale * tl.load(weight + d, mask=inside, other=0.0)
    tl.store(out + row * D + d, normal.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["count"])
def norm_backward(g_total, g_out, x, h, weight, g_x, g_h, g_weight, row_x, row_h, count, D, eps, BLOCK: tl.constexpr):
    """Write g_x and g_h, equal but for their dtypes, and g_weight (programs, D), each program's sum over its rows.

    Of y = s r w with s = x + h and r = (mean(s^2) + eps)^-1/2, the gradient of s is r (w dy - s r^2 mean(w dy s)).
    """
    first, d = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    in_d = d < D
    w = tl.load(weight + d, mask=in_d, other=0.0)
    sum_weight = tl.zeros((BLOCK,), tl.float32)
    for done in range(0, count - first, tl.num_programs(0)):
        row = first + done
        at = row * D + d
        v = tl.load(x + row * row_x + d, mask=in_d, other=0.0).to(tl.float32)
        if h is not None:
            v += tl.load(h + row * row_h + d, mask=in_d, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(v * v, 0) / D + eps)
        g = tl.load(g_out + at, mask=in_d, other=0.0).to(tl.float32)
        sum_weight += g * v * scale
        g *= w
        g_v = scale * (g - v * (scale * scale / D) * tl.sum(g * v, 0))
        if g_total is not None:
            g_v += tl.load(g_total + at, mask=in_d, other=0.0).to(tl.float32)
        tl.store(g_x + at, g_v.to(g_x.dtype.element_ty), mask=in_d)
        if h is not None:
            tl.store(g_h + at, g_v.to(g_h.dtype.element_ty), mask=in_d)
    tl.store(g_weight + first * D + d, sum_weight, mask=in_d)


# On the host. An operator must not return an input, so `_add_norm` returns no sum if there is no h.

_NORM = "Tensor x, Tensor? h, Tensor weight, float eps, ScalarType dtype"


def _out(x: Tensor, h: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype) -> list[Tensor]:
    out = x.new_empty(x.shape, dtype=dtype)
    return [out] if h is None else [x.new_empty(x.shape), out]


def _gradients(grads: list[Tensor], *inputs: Any) -> list[Tensor]:
    return [v.new_empty(v.shape) for v in inputs if isinstance(v, Tensor)]


@operator(f"triton_add_norm_backward(Tensor[] grads, {_NORM}) -> Tensor[]", fake=_gradients)
def _add_norm_backward(
    grads: list[Tensor], x: Tensor, h: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> list[Tensor]:
    *g_total, g_out = (g.contiguous() for g in grads)
    (x_rows, row_x), (h_rows, row_h) = rows(x), (None, 0) if h is None else rows(h)
    count, block = x.numel() // max(1, x.shape[-1]), _block(x)
    g_x, g_h = x.new_empty(x.shape), None if h is None else h.new_empty(h.shape)
    g_weight = weight.new_zeros(min(PROGRAMS, count), *weight.shape, dtype=torch.float32)
    if x.numel():
        with torch.cuda.device_of(x):
            norm_backward[g_weight.shape[0],](
                *(g_total[0] if g_total else None, g_out, x_rows, h_rows, weight.contiguous(), g_x, g_h, g_weight),
                *(row_x, row_h, count, x.shape[-1], eps),
                **block,
            )
    return [g for g in (g_x, g_h, g_weight.sum(0).to(weight.dtype)) if g is not None]


@operator(f"triton_add_norm({_NORM}) -> Tensor[]", fake=_out, backward=_add_norm_backward)
def _add_norm(x: Tensor, h: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype) -> list[Tensor]:
    check("h", h, x.shape)
    check("weight", weight, x.shape[-1:])
    outputs = _out(x, h, weight, eps, dtype)
    (x, row_x), (h, row_h) = rows(x), (None, 0) if h is None else rows(h)
    if x.numel():
        with torch.cuda.device_of(x):
            norm_forward[x.numel() // x.shape[-1],](
                *(x, h, weight.contiguous(), None if h is None else outputs[0], outputs[-1]),
                *(row_x, row_h, x.shape[-1], eps),
                **_block(x),
            )
    return outputs


def _block(x: Tensor) -> dict[str, int]:
    """Return the compile-time sizes: a program holds a whole row, 8 elements per thread."""
    block = power_of_two(x.shape[-1])
    return {"BLOCK": block, "num_warps": max(1, min(8, block // 256))}
