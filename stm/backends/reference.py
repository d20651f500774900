"""The reference: the recurrence and the causal convolution as they are defined, one token after the other.

Slow and plain, in any floating dtype; every backend is tested against this file. The signatures are those of a Backend
(stm/backends), and everything is in token order: a reversed direction walks from the last token to the first.
Source: hustvl/Vim, vim/models_mamba.py and its mamba_ssm/ops/selective_scan_interface.py (`selective_scan_ref`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


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
    h0: Tensor | None = None,
    split: bool = False,
) -> Tensor:
    """The selective scan: h_t = exp(Delta_t A) h_{t-1} + Delta_t B_t u_t, y_t = C_t h_t + D u_t.

    Args:
        u: (K, B, L, E), the convolved input of each direction.
        dt: (K, B, L, E), Delta before its softplus; or (K, B, L, R), which `dt_weight` makes it of.
        A: (K, E, N), negative.
        B, C: (K, B, L, N).
        D: (K, E).
        z: (B, L, E), the gate, or None for none.
        reverse: for each direction, whether it walks from the last token to the first.
        dt_weight: (K, E, R), where dt is not yet multiplied by it.
        dt_bias: (K, E), added to dt, where dt does not include it.
        scale: (L,) or (B, L): Delta is multiplied by it.
        gap: (K, B, L, E): elapsed Delta of removed tokens: it decays the state before a token and injects nothing.
        h0: (K, E, N): the state before the first token of each direction's walk.
        split: return each direction without the gate.

    Returns:
        (B, L, E), the sum over the directions times SiLU(z); with `split` (K, B, L, E).
    """
    delta = step_sizes(projected(dt, dt_weight), scale, dt_bias)  # (K, B, L, E)
    elapsed = delta if gap is None else delta + gap
    directions = []
    for k, backward in enumerate(reverse):
        h = torch.zeros_like(A[k]) if h0 is None else h0[k]  # (E, N), then (B, E, N)
        y = [u.new_empty(0)] * u.shape[2]
        for t in reversed(range(u.shape[2])) if backward else range(u.shape[2]):
            h = torch.exp(elapsed[k, :, t, :, None] * A[k]) * h + (delta * u)[k, :, t, :, None] * B[k, :, t, None, :]
            y[t] = (h * C[k, :, t, None, :]).sum(-1) + D[k] * u[k, :, t]  # (B, E)
        directions.append(torch.stack(y, 1))
    out = torch.stack(directions)  # (K, B, L, E)
    return (out if split else gated(out, z)).to(u.dtype)


def conv_silu(
    x: Tensor, w: Tensor, b: Tensor, reverse: tuple[bool, ...], *, sizes: tuple[int, ...] | None = None
) -> Tensor:
    """SiLU of the causal depthwise convolution of each direction.

    Args:
        x: (B, L, E).
        w: (K, E, W): w[..., W - 1 - t] weighs the token t before, in walking order.
        b: (K, E).
        reverse: for each direction, whether it walks from the last token to the first.
        sizes: the span convolution: evaluate as if token k stood sizes[k] times in a row, and average over its repeats.

    Returns:
        (K, B, L, E).
    """
    dtype, x = x.dtype, x.to(torch.promote_types(x.dtype, w.dtype))
    counts = torch.tensor(sizes or (1,) * x.shape[1], device=x.device)
    owner = torch.repeat_interleave(torch.arange(x.shape[1], device=x.device), counts)  # of each repeat
    repeated = x[:, owner]  # (B, sum of sizes, E)
    width, directions = w.shape[-1], []
    for k, backward in enumerate(reverse):
        walk = repeated.flip(1) if backward else repeated
        padded = F.pad(walk, (0, 0, width - 1, 0))
        out = b[k] + sum(w[k, :, i] * padded[:, i : i + walk.shape[1]] for i in range(width))
        out = F.silu(out.flip(1) if backward else out)
        directions.append(torch.zeros_like(x).index_add(1, owner, out) / counts[:, None])
    return torch.stack(directions).to(dtype)


def add_norm(x: Tensor, h: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The residual stream with the pending output added, and its RMSNorm.

    Args:
        x: (B, L, D), the residual stream, float32.
        h: (B, L, D), the mixer's output that is not yet added, or None.
        weight: (D,).
        dtype: of the normalised output, the GEMMs'.

    Returns:
        x + h (B, L, D), and its norm (B, L, D) in `dtype`.
    """
    if h is not None:
        x = x + h
    return x, F.rms_norm(x, weight.shape, weight, eps).to(dtype)


def projected(dt: Tensor, weight: Tensor | None) -> Tensor:
    """dt (K, B, L, E): the product of dt (K, B, L, R) and its weight (K, E, R), where there is one."""
    return dt if weight is None else torch.bmm(dt.flatten(1, 2), weight.mT).unflatten(1, dt.shape[1:3])


def step_sizes(dt: Tensor, scale: Tensor | None, dt_bias: Tensor | None = None) -> Tensor:
    """Delta (K, B, L, E): the softplus of dt (K, B, L, E) and its bias (K, E), times `scale` (L,) or (B, L), in at
    least float32."""
    dt = dt.to(torch.promote_types(dt.dtype, torch.float32))
    delta = F.softplus(dt if dt_bias is None else dt + dt_bias[:, None, None])
    return delta if scale is None else delta * scale[..., None]


def gated(y: Tensor, z: Tensor | None) -> Tensor:
    """The sum of y (K, B, L, E) over the directions, times SiLU(z) where z (B, L, E) is given."""
    total = y.sum(0)
    return total if z is None else total * F.silu(z)
