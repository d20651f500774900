"""The causal convolution and its span form in torch alone, without flips: a backward walk uses anti-causal taps.

The span convolution reads a token of size s as s repeats in a row, and averages its output over them. The repeats are
never built. The window of a token's repeat m holds m copies of the token itself and the repeats before its first one,
so from repeat W on the window holds the token alone, and all later repeats give the same value. So at most W
evaluations per token are enough, each with its share of the mean; which tokens they read is a table per schedule.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from stm.backends.operators import operator


def conv_silu(
    x: Tensor, w: Tensor, b: Tensor, reverse: tuple[bool, ...], *, sizes: tuple[int, ...] | None = None
) -> Tensor:
    """Return what `stm.backends.reference.conv_silu` returns."""
    wide = x.to(torch.promote_types(x.dtype, w.dtype))
    if sizes is not None:
        out: Tensor = _span_conv(wide, w, b, list(reverse), list(sizes))
        return out.to(x.dtype)
    return torch.stack([F.silu(_causal(wide, w[k], b[k], back)) for k, back in enumerate(reverse)]).to(x.dtype)


def _causal(x: Tensor, w: Tensor, b: Tensor, back: bool) -> Tensor:
    """Return the convolution of x (B, L, E) with w (E, W) and b (E), before its SiLU, (B, L, E)."""
    length, width = x.shape[1], w.shape[-1]
    padded = F.pad(x, (0, 0, 0, width - 1) if back else (0, 0, width - 1, 0))
    out = b.expand_as(x)
    # W shifted multiply-adds keep channels innermost; torch's own convolution wants tokens innermost, and copies.
    for i in range(width):
        out = torch.addcmul(out, padded[:, i : i + length], w[:, width - 1 - i if back else i])
    return out


# The span form is an operator, so that torch.compile and torch.export see one node, and the tables of a schedule are
# constants of it. Its arithmetic is plain torch.

_SPAN = "Tensor x, Tensor w, Tensor b, bool[] reverse, int[] sizes"


@operator(
    f"span_conv_backward(Tensor grad, {_SPAN}) -> (Tensor, Tensor, Tensor)",
    fake=lambda grad, x, w, b, *_: (torch.empty_like(x), torch.empty_like(w), torch.empty_like(b)),
)
def _span_conv_backward(
    grad: Tensor, x: Tensor, w: Tensor, b: Tensor, reverse: list[bool], sizes: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    parts = [_span_backward(grad[k], x, w[k], b[k], tuple(sizes), back) for k, back in enumerate(reverse)]
    g_x, g_w, g_b = (torch.stack(directions) for directions in zip(*parts, strict=True))
    return g_x.sum(0), g_w, g_b  # both directions read the same x


@operator(
    f"span_conv({_SPAN}) -> Tensor",
    fake=lambda x, w, b, reverse, sizes: x.new_empty(len(reverse), *x.shape),
    backward=_span_conv_backward,
)
def _span_conv(x: Tensor, w: Tensor, b: Tensor, reverse: list[bool], sizes: list[int]) -> Tensor:
    return torch.stack([_span(x, w[k], b[k], tuple(sizes), back) for k, back in enumerate(reverse)])


def _span(x: Tensor, w: Tensor, b: Tensor, sizes: tuple[int, ...], back: bool) -> Tensor:
    """Return the mean over each token's repeats, (B, L, E), for x (B, L, E), w (E, W) and b (E)."""
    token, _, share, taps = _evaluations(x, w, sizes, back)
    return torch.zeros_like(x).index_add(1, token, F.silu(_sums(taps, w, b)) * share)


def _span_backward(
    grad: Tensor, x: Tensor, w: Tensor, b: Tensor, sizes: tuple[int, ...], back: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, w and b from the gradient of `_span`, (B, L, E)."""
    token, window, share, taps = _evaluations(x, w, sizes, back)
    sums = _sums(taps, w, b)
    gate = sums.sigmoid()
    # SiLU(s) = s sigmoid(s) has the derivative sigmoid(s) (1 + s (1 - sigmoid(s))).
    g_sums = grad.index_select(1, token) * share * gate * (1 + sums * (1 - gate))  # (B, evaluations, E)
    # The row beyond the last token collects what flows to before the walk, and is dropped.
    g_padded, width = F.pad(torch.zeros_like(x), (0, 0, 0, 1)), w.shape[-1]
    for t in range(width):
        g_padded.index_add_(1, window[t], g_sums * w[:, width - 1 - t])
    g_w = torch.stack([(g_sums * tap).sum((0, 1)) for tap in reversed(taps)], -1)  # (E, W)
    return g_padded[:, :-1], g_w, g_sums.sum((0, 1))


def _evaluations(
    x: Tensor, w: Tensor, sizes: tuple[int, ...], back: bool
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Return the table of a schedule, on the device of x, and the tokens read by each of the W taps.

    Returns:
        Token, window and share of each evaluation (see `table`), and W tensors (B, evaluations, E).
    """
    token, window, share = (v.to(x.device) for v in table(sizes, back, w.shape[-1]))
    padded = F.pad(x, (0, 0, 0, 1))  # a row of zeros, which windows before the first token read
    return token, window, share[:, None].to(x.dtype), [padded.index_select(1, tokens) for tokens in window]


def _sums(taps: list[Tensor], w: Tensor, b: Tensor) -> Tensor:
    """Return the convolution of the taps, before its SiLU, (B, evaluations, E)."""
    out = b.expand_as(taps[0])
    for t, tap in enumerate(taps):
        out = torch.addcmul(out, tap, w[:, len(taps) - 1 - t])
    return out


@lru_cache(maxsize=256)
def table(sizes: tuple[int, ...], back: bool, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the evaluations of the span convolution, in walking order.

    Only the first `width` repeats per token are evaluated; later windows contain one token only.

    Returns:
        The token of each evaluation.
        Its window, (W, evaluations): the token that stands 0, 1, .. repeats earlier; len(sizes) before the walk.
        The share of the token's repeats that it stands for, float64.
    """
    order = reversed(range(len(sizes))) if back else range(len(sizes))
    walk = [k for k in order for _ in range(sizes[k])]  # the token of each repeat
    tokens, windows, shares, repeat = [], [], [], 0
    for step, k in enumerate(walk):
        repeat = repeat + 1 if step > 0 and walk[step - 1] == k else 0
        if repeat < width:
            tokens.append(k)
            windows.append([walk[step - t] if step >= t else len(sizes) for t in range(width)])
            alone = sizes[k] - width + 1  # repeats whose window holds the token alone
            shares.append((alone if repeat == width - 1 else 1) / sizes[k])
    return torch.tensor(tokens), torch.tensor(windows).mT.contiguous(), torch.tensor(shares, dtype=torch.float64)
