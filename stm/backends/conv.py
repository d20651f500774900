"""The causal convolution and its span form in torch alone, without flips: a backward walk uses anti-causal taps."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from stm.backends.operators import operator


def conv_silu(
    x: Tensor, w: Tensor, b: Tensor, reverse: tuple[bool, ...], *, sizes: tuple[int, ...] | None = None
) -> Tensor:
    """As `stm.backends.reference.conv_silu`."""
    wide = x.to(torch.promote_types(x.dtype, w.dtype))
    if sizes is not None:
        out: Tensor = _span_conv(wide, w, b, list(reverse), list(sizes))
        return out.to(x.dtype)
    return torch.stack([F.silu(_causal(wide, w[k], b[k], back)) for k, back in enumerate(reverse)]).to(x.dtype)


def _causal(x: Tensor, w: Tensor, b: Tensor, back: bool) -> Tensor:
    """x (B, L, E), w (E, W), b (E): (B, L, E)."""
    length, width = x.shape[1], w.shape[-1]
    padded = F.pad(x, (0, 0, 0, width - 1) if back else (0, 0, width - 1, 0))
    out = b.expand_as(x)
    for i in range(width):
        out = torch.addcmul(out, padded[:, i : i + length], w[:, width - 1 - i if back else i])
    return out


# Operators of their own, so that the tables of a schedule are constants and not thousands of traced nodes.

_SPAN = "Tensor x, Tensor w, Tensor b, bool[] reverse, int[] sizes"


@operator(
    f"span_conv_backward(Tensor grad, {_SPAN}) -> (Tensor, Tensor, Tensor)",
    fake=lambda grad, x, w, b, *_: (torch.empty_like(x), torch.empty_like(w), torch.empty_like(b)),
)
def _span_conv_backward(
    grad: Tensor, x: Tensor, w: Tensor, b: Tensor, reverse: list[bool], sizes: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    parts = [_span_backward(grad[k], x, w[k], b[k], tuple(sizes), back) for k, back in enumerate(reverse)]
    g_x, g_w, g_b = (torch.stack(each) for each in zip(*parts, strict=True))
    return g_x.sum(0), g_w, g_b


@operator(
    f"span_conv({_SPAN}) -> Tensor",
    fake=lambda x, w, b, reverse, sizes: x.new_empty(len(reverse), *x.shape),
    backward=_span_conv_backward,
)
def _span_conv(x: Tensor, w: Tensor, b: Tensor, reverse: list[bool], sizes: list[int]) -> Tensor:
    return torch.stack([_span(x, w[k], b[k], tuple(sizes), back) for k, back in enumerate(reverse)])


def _span(x: Tensor, w: Tensor, b: Tensor, sizes: tuple[int, ...], back: bool) -> Tensor:
    """x (B, L, E), w (E, W), b (E): (B, L, E), the mean over each token's repeats."""
    token, _, share, taps = _evaluations(x, w, sizes, back)
    return torch.zeros_like(x).index_add(1, token, F.silu(_sums(taps, w, b)) * share)


def _span_backward(
    grad: Tensor, x: Tensor, w: Tensor, b: Tensor, sizes: tuple[int, ...], back: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, w and b from that of `_span` (B, L, E)."""
    token, window, share, taps = _evaluations(x, w, sizes, back)
    sums = _sums(taps, w, b)
    gate = sums.sigmoid()
    g_sums = grad.index_select(1, token) * share * gate * (1 + sums * (1 - gate))  # (B, evaluations, E)
    g_padded, width = F.pad(torch.zeros_like(x), (0, 0, 0, 1)), w.shape[-1]
    for t in range(width):
        g_padded.index_add_(1, window[t], g_sums * w[:, width - 1 - t])
    g_w = torch.stack([(g_sums * tap).sum((0, 1)) for tap in reversed(taps)], -1)  # (E, W)
    return g_padded[:, :-1], g_w, g_sums.sum((0, 1))


def _evaluations(
    x: Tensor, w: Tensor, sizes: tuple[int, ...], back: bool
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """The table of a schedule where x is, and the tokens that each tap sees: W times (B, evaluations, E)."""
    token, window, share = (v.to(x.device) for v in _table(sizes, back, w.shape[-1]))
    padded = F.pad(x, (0, 0, 0, 1))  # the zero that stands before the first token
    return token, window, share[:, None].to(x.dtype), [padded.index_select(1, tokens) for tokens in window]


def _sums(taps: list[Tensor], w: Tensor, b: Tensor) -> Tensor:
    """The convolution before its SiLU, (B, evaluations, E)."""
    out = b.expand_as(taps[0])
    for t, tap in enumerate(taps):
        out = torch.addcmul(out, tap, w[:, len(taps) - 1 - t])
    return out


@lru_cache(maxsize=256)
def _table(sizes: tuple[int, ...], back: bool, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the span convolution evaluates: at most `width` repeats a token, since from then on the window holds it
    alone.

    Returns:
        The token of each evaluation, its window (W, evaluations): the tokens 0, 1, .. before it in walking order,
        len(sizes) for none, and the share of the token's repeats that it stands for.
    """
    walk = [
        k for k in (reversed(range(len(sizes))) if back else range(len(sizes))) for _ in range(sizes[k])
    ]  # of each repeat
    tokens, windows, shares, repeat = [], [], [], 0
    for place, k in enumerate(walk):
        repeat = repeat + 1 if place > 0 and walk[place - 1] == k else 0
        if repeat < width:
            tokens.append(k)
            windows.append([walk[place - t] if place >= t else len(sizes) for t in range(width)])
            alone = sizes[k] - width + 1  # repeats whose window holds the token alone
            shares.append((alone if repeat == width - 1 else 1) / sizes[k])
    return torch.tensor(tokens), torch.tensor(windows).mT.contiguous(), torch.tensor(shares, dtype=torch.float64)
