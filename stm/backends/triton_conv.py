"""The causal convolution with its SiLU, and its span form, in Triton: tiles of tokens and channels, read in place.

In the span form a token of size s stands for s repeats in a row (stm/backends/reference.py). A token's window holds the
token itself and, before it, repeats of earlier tokens. The repeat that stands j before the token's first one belongs to
a token `distance` places back in walking order. Without spans the distance is j; with spans it is a table per schedule.

A second table has the share of each of a token's first W repeats in its mean. From repeat W on, the window holds the
token alone, so one evaluation stands for all later repeats.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from stm.backends.operators import operator
from stm.backends.triton_common import bits, blocks, check, rows, sigmoid
from stm.errors import UsageError

BLOCK_L, BLOCK_E = 16, 64  # a tile's tokens and channels
WIDEST = 8  # the most taps, since the kernels are unrolled over them


def conv_silu(
    x: Tensor, w: Tensor, b: Tensor, reverse: tuple[bool, ...], *, sizes: tuple[int, ...] | None = None
) -> Tensor:
    """Return what `stm.backends.reference.conv_silu` returns."""
    out: Tensor = _conv(x, w, b, list(reverse), None if sizes is None else list(sizes))
    return out


@triton.jit
def _distance(distances, t, inside, k, L, j: tl.constexpr, W: tl.constexpr):
    """Return how many tokens before t (BLOCK_L) the repeat j (1 to W - 1) before its first one stands; 0 for none."""
    if distances is None:
        return tl.where(inside, j, 0)
    else:
        return tl.load(distances + (k * L + t) * (W - 1) + j - 1, mask=inside, other=0)


@triton.jit
def _tap(x, distances, t, e, inside, in_e, row_x, k, step, L, j: tl.constexpr, W: tl.constexpr):
    """Return the input j repeats before the first one of the tokens t: (BLOCK_L, BLOCK_E), zero before the walk."""
    if j == 0:
        return tl.load(x + t[:, None] * row_x + e[None, :], mask=inside[:, None] & in_e[None, :], other=0.0).to(
            tl.float32
        )
    else:
        distance = _distance(distances, t, inside, k, L, j, W)
        token = t - step * distance
        exists = (distance > 0) & (token >= 0) & (token < L)
        return tl.load(x + token[:, None] * row_x + e[None, :], mask=exists[:, None] & in_e[None, :], other=0.0).to(
            tl.float32
        )


@triton.jit
def _weight(w, e, in_e, k, E, tap: tl.constexpr, W: tl.constexpr):
    """Return the weight of the repeat `tap` places back: (BLOCK_E)."""
    return tl.load(w + (k * E + e) * W + (W - 1 - tap), mask=in_e, other=0.0)


@triton.jit
def _sum(x, w, b, distances, t, e, inside, in_e, row_x, k, step, L, E, repeat: tl.constexpr, W: tl.constexpr):
    """Return the convolution at one repeat of each of the tokens t, before its SiLU: (BLOCK_L, BLOCK_E)."""
    out = tl.load(b + k * E + e, mask=in_e, other=0.0)[None, :]
    for tap in tl.static_range(W):
        # Up to tap `repeat` the window holds the token itself, which is repeat 0 before its first one.
        value = _tap(x, distances, t, e, inside, in_e, row_x, k, step, L, max(tap - repeat, 0), W)
        out += _weight(w, e, in_e, k, E, tap, W)[None, :] * value
    return out


@triton.jit(do_not_specialize=["batch", "L", "reverse"])
def conv_forward(
    x, w, b, distances, shares, out, row_x, batch, L, E, reverse,
    REPEATS: tl.constexpr, W: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Write out (K, B, L, E): a program per direction, image and tile of tokens and channels."""
    t, e = tl.program_id(1) * BLOCK_L + tl.arange(0, BLOCK_L), tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    walk = tl.program_id(2).to(tl.int64)
    k, image = (walk // batch).to(tl.int32), walk % batch
    step = 1 - 2 * ((reverse >> k) & 1)
    inside, in_e = t < L, e < E
    mean = tl.zeros((BLOCK_L, BLOCK_E), tl.float32)
    for repeat in tl.static_range(REPEATS):
        value = _sum(x + image * L * row_x, w, b, distances, t, e, inside, in_e, row_x, k, step, L, E, repeat, W)
        value *= sigmoid(value)
        if shares is not None:
            value *= tl.load(shares + t * W + repeat, mask=inside, other=0.0)[:, None]
        mean += value
    at = (walk * L + t[:, None]) * E + e[None, :]
    tl.store(out + at, mean.to(out.dtype.element_ty), mask=inside[:, None] & in_e[None, :])


@triton.jit(do_not_specialize=["batch", "L", "reverse"])
def conv_backward(
    grad, x, w, b, distances, shares, g_x, g_w, g_b, row_x, batch, L, E, reverse,
    K: tl.constexpr, REPEATS: tl.constexpr, W: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Write g_x (B, L, E), and g_w (.., K, E, W) and g_b (.., K, E) per tile and repeat, whose sums are the caller's.

    A token's gradient is gathered from the outputs whose windows hold it, so no two programs write one address.
    """
    t, e = tl.program_id(1) * BLOCK_L + tl.arange(0, BLOCK_L), tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    image, in_e = tl.program_id(2).to(tl.int64), e < E
    tile = image * tl.num_programs(1) + tl.program_id(1)
    x += image * L * row_x
    g_t = tl.zeros((BLOCK_L, BLOCK_E), tl.float32)
    for k in tl.static_range(K):
        step = 1 - 2 * ((reverse >> k) & 1)
        for behind in tl.static_range(W):
            owner = t + step * behind  # the window's token, which stands so many tokens further on in the walk
            inside = (t < L) & (owner >= 0) & (owner < L)
            g_out = tl.load(
                grad + ((k * batch + image) * L + owner[:, None]) * E + e[None, :],
                mask=inside[:, None] & in_e[None, :],
                other=0.0,
            ).to(tl.float32)
            for repeat in tl.static_range(REPEATS):
                value = _sum(x, w, b, distances, owner, e, inside, in_e, row_x, k, step, L, E, repeat, W)
                opening = sigmoid(value)
                g_sum = g_out * opening * (1.0 + value * (1.0 - opening))
                if shares is not None:
                    g_sum *= tl.load(shares + owner * W + repeat, mask=inside, other=0.0)[:, None]
                for tap in tl.static_range(W):
                    weight = _weight(w, e, in_e, k, E, tap, W)[None, :]
                    if behind == 0:  # the token's own window, in which it fills the first taps
                        if tap <= repeat:
                            g_t += g_sum * weight
                    elif tap > repeat:  # a later token's window, which may hold this one or not
                        holds = _distance(distances, owner, inside, k, L, tap - repeat, W) == behind
                        g_t += tl.where(holds[:, None], g_sum * weight, 0.0)
                if behind == 0:  # each window counts once for the parameters
                    parameter = ((tile * REPEATS + repeat) * K + k) * E + e
                    tl.store(g_b + parameter, tl.sum(g_sum, 0), mask=in_e)
                    for tap in tl.static_range(W):
                        tapped = _tap(x, distances, owner, e, inside, in_e, row_x, k, step, L, max(tap - repeat, 0), W)
                        tl.store(g_w + parameter * W + (W - 1 - tap), tl.sum(g_sum * tapped, 0), mask=in_e)
    tl.store(
        g_x + (image * L + t[:, None]) * E + e[None, :],
        g_t.to(g_x.dtype.element_ty),
        mask=(t < L)[:, None] & in_e[None, :],
    )


# On the host.

_CONV = "Tensor x, Tensor w, Tensor b, bool[] reverse, int[]? sizes"


def _out(x: Tensor, w: Tensor, b: Tensor, reverse: Sequence[bool], sizes: Sequence[int] | None) -> Tensor:
    return x.new_empty(len(reverse), *x.shape)


def _gradients(grad: Tensor, x: Tensor, w: Tensor, b: Tensor, *others: Any) -> list[Tensor]:
    return [v.new_empty(v.shape) for v in (x, w, b)]


@operator(f"triton_conv_backward(Tensor grad, {_CONV}) -> Tensor[]", fake=_gradients)
def _conv_backward(grad: Tensor, *inputs: Any) -> list[Tensor]:
    x, w, b, distances, shares, row_x, reverse, block = _arrange(*inputs)
    (batch, length, channels), directions = x.shape, w.shape[0]
    grid = blocks(channels, BLOCK_E), blocks(length, BLOCK_L), batch
    g_x = x.new_zeros(x.shape)
    g_w, g_b = (v.new_zeros(grid[2], grid[1], block["REPEATS"], *v.shape) for v in (w, b))
    if x.numel():
        with torch.cuda.device_of(x):
            conv_backward[grid](
                *(grad.contiguous(), x, w, b, distances, shares, g_x, g_w, g_b),
                *(row_x, batch, length, channels, reverse),
                K=directions,
                **block,
            )
    return [g.to(v.dtype) for g, v in zip((g_x, g_w.sum((0, 1, 2)), g_b.sum((0, 1, 2))), inputs[:3], strict=True)]


@operator(f"triton_conv({_CONV}) -> Tensor", fake=_out, backward=_conv_backward)
def _conv(*inputs: Any) -> Tensor:
    x, w, b, distances, shares, row_x, reverse, block = _arrange(*inputs)
    batch, length, channels = x.shape
    out = _out(*inputs)
    if out.numel():
        grid = blocks(channels, BLOCK_E), blocks(length, BLOCK_L), w.shape[0] * batch
        with torch.cuda.device_of(x):
            conv_forward[grid](x, w, b, distances, shares, out, row_x, batch, length, channels, reverse, **block)
    return out


def _arrange(x: Tensor, w: Tensor, b: Tensor, reverse: Sequence[bool], sizes: Sequence[int] | None) -> tuple[Any, ...]:
    """Return the inputs checked and laid out for the kernels.

    These are x, w, b, the two tables of the spans, the distance of x's rows, the directions as bits, and the
    compile-time sizes.
    """
    _, length, channels = x.shape
    width = w.shape[-1]
    check("w", w, (len(reverse), channels, width))
    check("b", b, w.shape[:2])
    if not 1 <= width <= WIDEST:
        raise UsageError(f"a convolution of width {width}, expected 1 to {WIDEST}")
    if sizes is not None and (len(sizes) != length or min(sizes, default=1) < 1):
        raise UsageError(f"expected {length} sizes of at least 1, got {list(sizes)}")
    x, row_x = rows(x)
    distances, shares, repeats = None, None, 1
    if sizes is not None:
        distances, shares = _tables(tuple(sizes), tuple(reverse), width, x.device)
        repeats = min(width, max(sizes, default=1))
    block = {"REPEATS": repeats, "W": width, "BLOCK_L": BLOCK_L, "BLOCK_E": BLOCK_E}
    return x, w.float().contiguous(), b.float().contiguous(), distances, shares, row_x, bits(reverse), block


@lru_cache(maxsize=256)
def _tables(
    sizes: tuple[int, ...], reverse: tuple[bool, ...], width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the distances (K, L, W - 1) and the shares (L, W) of a schedule; see the module's text."""
    distances = torch.zeros(len(reverse), len(sizes), width - 1, dtype=torch.int32)
    for k, back in enumerate(reverse):
        walk = list(reversed(range(len(sizes)))) if back else list(range(len(sizes)))
        for step, token in enumerate(walk):
            # Every token has at least one repeat, so W - 1 tokens back are enough.
            repeats = [n for n in range(1, min(step, width - 1) + 1) for _ in range(sizes[walk[step - n]])]
            window = repeats[: width - 1]
            distances[k, token, : len(window)] = torch.tensor(window, dtype=torch.int32)
    size = torch.tensor(sizes)[:, None]
    repeat = torch.arange(width)
    alone = (repeat == width - 1) * (size - width)  # the repeats after the W-th are equal to it
    shares = torch.where(repeat < size, 1 + alone.clamp(min=0), 0) / size
    return distances.to(device), shares.float().to(device)
