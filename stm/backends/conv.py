"""The causal convolution and its span form in torch alone, without flips: a backward walk uses anti-causal taps."""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def conv_silu(x: Tensor, w: Tensor, b: Tensor, reverse: tuple[bool, ...], *, sizes: tuple[int, ...] | None = None) -> Tensor:
    """As `stm.scan.conv_silu`."""
    if sizes is not None:
        return _span_conv(x, w, b, list(reverse), list(sizes))
    return torch.stack([F.silu(_causal(x, w[k], b[k], back)) for k, back in enumerate(reverse)])


def _causal(x: Tensor, w: Tensor, b: Tensor, back: bool) -> Tensor:
    """x (B, L, E), w (E, W), b (E): (B, L, E)."""
    length, width = x.shape[1], w.shape[-1]
    padded = F.pad(x, (0, 0, 0, width - 1) if back else (0, 0, width - 1, 0))
    out = b.expand_as(x)
    for i in range(width):
        out = torch.addcmul(out, padded[:, i : i + length], w[:, width - 1 - i if back else i])
    return out


@torch.library.custom_op("stm::span_conv", mutates_args=())
def _span_conv(x: Tensor, w: Tensor, b: Tensor, reverse: list[bool], sizes: list[int]) -> Tensor:
    """An operator of its own, so that the tables of a schedule are constants and not thousands of traced nodes."""
    return torch.stack([_span(x, w[k], b[k], tuple(sizes), back) for k, back in enumerate(reverse)])


@_span_conv.register_fake
def _(x: Tensor, w: Tensor, b: Tensor, reverse: list[bool], sizes: list[int]) -> Tensor:
    return x.new_empty(len(reverse), *x.shape)


@torch.library.custom_op("stm::span_conv_backward", mutates_args=())
def _span_conv_backward(
    grad: Tensor, x: Tensor, w: Tensor, b: Tensor, reverse: list[bool], sizes: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        leaves = [v.detach().requires_grad_() for v in (x, w, b)]
        out = torch.stack([_span(leaves[0], leaves[1][k], leaves[2][k], tuple(sizes), back) for k, back in enumerate(reverse)])
    g_x, g_w, g_b = torch.autograd.grad(out, leaves, grad)
    return g_x, g_w, g_b


@_span_conv_backward.register_fake
def _(grad: Tensor, x: Tensor, w: Tensor, b: Tensor, reverse: list[bool], sizes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(w), torch.empty_like(b)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.reverse, ctx.sizes = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_span_conv_backward(grad, *ctx.saved_tensors, ctx.reverse, ctx.sizes), None, None


_span_conv.register_autograd(_differentiate, setup_context=_save)


def _span(x: Tensor, w: Tensor, b: Tensor, sizes: tuple[int, ...], back: bool) -> Tensor:
    """x (B, L, E), w (E, W), b (E): (B, L, E), the mean over each token's repeats."""
    width = w.shape[-1]
    token, window, share = (v.to(x.device) for v in _evaluations(sizes, back, width))
    padded = F.pad(x, (0, 0, 0, 1))  # the zero that stands before the first token
    out = b.expand(x.shape[0], len(share), -1)  # (B, evaluations, E)
    for t in range(width):
        out = torch.addcmul(out, padded.index_select(1, window[t]), w[:, width - 1 - t])
    return torch.zeros_like(x).index_add(1, token, F.silu(out) * share[:, None].to(x.dtype))


@lru_cache(maxsize=256)
def _evaluations(sizes: tuple[int, ...], back: bool, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the span convolution evaluates: at most `width` repeats a token, since from then on the window holds it alone.

    Returns:
        The token of each evaluation, its window (W, evaluations): the tokens 0, 1, .. before it in walking order, len(sizes)
        for none, and the share of the token's repeats that it stands for.
    """
    walk = [k for k in (reversed(range(len(sizes))) if back else range(len(sizes))) for _ in range(sizes[k])]  # of each repeat
    tokens, windows, shares, repeat = [], [], [], 0
    for place, k in enumerate(walk):
        repeat = repeat + 1 if place > 0 and walk[place - 1] == k else 0
        if repeat < width:
            tokens.append(k)
            windows.append([walk[place - t] if place >= t else len(sizes) for t in range(width)])
            alone = sizes[k] - width + 1  # repeats whose window holds the token alone
            shares.append((alone if repeat == width - 1 else 1) / sizes[k])
    return torch.tensor(tokens), torch.tensor(windows).mT.contiguous(), torch.tensor(shares, dtype=torch.float64)
