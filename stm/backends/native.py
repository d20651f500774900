"""The native backend: plain C through ctypes, for processors. Float32 inside; other dtypes are converted on the way.

The package's own build (setup.py) makes one library per level of the processor. A library is loaded after torch, so
that both share one OpenMP, and runs on as many threads as torch does; results do not depend on their number. The
operators hide the calls from torch.compile and torch.export, which see one node each.

This file has the three operations of a backend and their operators with gradients. How C is called is in
native_calls.py.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stm.backends.native_calls import call, conv_args, norm_args, pack, scan_args, status
from stm.backends.operators import operator
from stm.backends.reference import projected

__all__ = ["add_norm", "conv_silu", "scan", "status"]

SPAN = 64  # channels of a narrow work item, as in native.h: some gradients come in E / SPAN partial sums


def conv_silu(
    x: Tensor, w: Tensor, b: Tensor, reverse: tuple[bool, ...], *, sizes: tuple[int, ...] | None = None
) -> Tensor:
    """Return what `stm.backends.reference.conv_silu` returns. A slice of a wider tensor's channels is not copied."""
    out: Tensor = _conv(x.float(), w.float(), b.float(), list(reverse), None if sizes is None else list(sizes))
    return out.to(x.dtype)


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
    """Return what `stm.backends.reference.scan` returns.

    A slice of a wider tensor's channels is not copied. The product of dt and its weight is never in memory.
    """
    optional = (None if v is None else v.float() for v in (None if split else z, dt_weight, dt_bias, scale, gap))
    out: Tensor = _scan(
        u.float(), dt.float(), A.float(), B.float(), C.float(), D.float(), *optional, list(reverse), split
    )
    return out.to(u.dtype)


def add_norm(x: Tensor, h: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return what `stm.backends.reference.add_norm` returns."""
    *total, out = _add_norm(x.float(), None if h is None else h.float(), weight.float(), eps)
    return (total[0] if total else x), out.to(dtype)


# The operators. An operator must not return one of its inputs, so `_add_norm` returns no sum if there is no h.

_CONV = "Tensor x, Tensor w, Tensor b, bool[] reverse, int[]? sizes"
_SCAN = (
    "Tensor u, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor D, "
    "Tensor? z, Tensor? dt_weight, Tensor? dt_bias, Tensor? scale, Tensor? gap, bool[] reverse"
)
_NORM = "Tensor x, Tensor? h, Tensor weight, float eps"


def _conv_out(x: Tensor, w: Tensor, b: Tensor, reverse: Sequence[bool], sizes: Sequence[int] | None) -> Tensor:
    return x.new_empty(len(reverse), *x.shape)


def _scan_out(u: Tensor, *others: Any) -> Tensor:
    split = others[-1]
    return u.new_empty(u.shape if split else u.shape[1:])


def _gradients(grad: Tensor, *inputs: Any) -> list[Tensor]:
    return [v.new_empty(v.shape) for v in inputs if isinstance(v, Tensor)]


@operator(f"native_conv_backward(Tensor grad, {_CONV}) -> Tensor[]", fake=_gradients, device="CPU")
def _conv_backward(grad: Tensor, *inputs: Any) -> list[Tensor]:
    x, w, b, _, _ = inputs
    g_x = x.new_zeros(x.shape)
    g_w, g_b = (v.new_empty(x.shape[0], *v.shape) for v in (w, b))  # per image, as images run in different threads
    call("stm_conv_backward", conv_args(*inputs), pack((), (grad, g_x), (g_w, g_b)))
    return [g_x, g_w.sum(0), g_b.sum(0)]


@operator(f"native_conv({_CONV}) -> Tensor", fake=_conv_out, device="CPU", backward=_conv_backward)
def _conv(*inputs: Any) -> Tensor:
    out = _conv_out(*inputs)
    call("stm_conv", conv_args(*inputs, out=out))
    return out


@operator(f"native_scan_backward(Tensor grad, {_SCAN}) -> Tensor[]", fake=_gradients, device="CPU")
def _scan_backward(grad: Tensor, *inputs: Any) -> list[Tensor]:
    u, low, A, B, C, D, z, dt_weight, dt_bias, scale, gap, reverse = inputs
    # The forward pass never has Delta in memory; its gradient is as large anyway, so here the product is made.
    dt = projected(low, dt_weight)
    batch, spans = u.shape[1], -(-u.shape[3] // SPAN)
    g_u, g_dt, g_z, g_gap = (_empty(v) for v in (u, dt, z, gap))
    # Each work item, an image and a span of channels, writes its own sums. They are added below, in a fixed order.
    g_A, g_D = (_empty(v, batch) for v in (A, D))
    g_B, g_C, g_scale = (_empty(v, spans) for v in (B, C, None if scale is None else u.new_empty(u.shape[:3])))
    grads = pack((), (grad, g_u, g_dt, g_z, g_gap), (g_B, g_C, g_scale, g_A, g_D))
    call("stm_scan_backward", scan_args(u, dt, A, B, C, D, z, None, dt_bias, scale, gap, reverse), grads)
    if g_scale is not None:  # (spans, K, B, L)
        g_scale = g_scale.sum((0, 1) if scale.dim() == 2 else (0, 1, 2))
    g_A, g_B, g_C, g_D = (None if v is None else v.sum(0) for v in (g_A, g_B, g_C, g_D))
    g_bias = None if dt_bias is None or g_dt is None else g_dt.sum((1, 2))
    g_weight = None
    if dt_weight is not None and g_dt is not None:
        rows = g_dt.flatten(1, 2)  # (K, B L, E)
        g_dt, g_weight = rows.bmm(dt_weight).view(low.shape), rows.mT.bmm(low.flatten(1, 2))
    return [v for v in (g_u, g_dt, g_A, g_B, g_C, g_D, g_z, g_weight, g_bias, g_scale, g_gap) if v is not None]


@operator(
    f"native_scan({_SCAN}, bool split) -> Tensor", fake=_scan_out, device="CPU", backward=_scan_backward, constants=1
)
def _scan(*inputs: Any) -> Tensor:
    out = _scan_out(*inputs)
    call("stm_scan", scan_args(*inputs[:-1], out=out))
    return out


def _norm_out(x: Tensor, h: Tensor | None, weight: Tensor, eps: float) -> list[Tensor]:
    return [x.new_empty(x.shape) for given in (h, x) if given is not None]


@operator(f"native_add_norm_backward(Tensor[] grads, {_NORM}) -> Tensor[]", fake=_gradients, device="CPU")
def _add_norm_backward(grads: list[Tensor], x: Tensor, h: Tensor | None, weight: Tensor, eps: float) -> list[Tensor]:
    """Return the gradients of x, h and weight.

    Of y = s r w with s = x + h and r = (mean(s^2) + eps)^-1/2, the gradient of s is r (w dy - s r mean(w dy s r)).
    """
    *g_total, g_out = grads
    stream = x if h is None else x + h
    r = (stream.square().mean(-1, keepdim=True) + eps).rsqrt()  # (B, L, 1)
    unit, flow = stream * r, g_out * weight  # (B, L, D)
    g_x = torch.addcmul(flow, unit, (flow * unit).mean(-1, keepdim=True), value=-1) * r
    g_x = g_x + g_total[0] if g_total else g_x
    return [v for v in (g_x, None if h is None else g_x.clone(), (g_out * unit).sum((0, 1))) if v is not None]


@operator(f"native_add_norm({_NORM}) -> Tensor[]", fake=_norm_out, device="CPU", backward=_add_norm_backward)
def _add_norm(x: Tensor, h: Tensor | None, weight: Tensor, eps: float) -> list[Tensor]:
    out = _norm_out(x, h, weight, eps)
    call("stm_add_norm", norm_args(x, h, weight, eps, None if h is None else out[0], out[-1]))
    return out


def _empty(like: Tensor | None, *leading: int) -> Tensor | None:
    return None if like is None else like.new_empty(*leading, *like.shape)
