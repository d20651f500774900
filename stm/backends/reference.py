"""The reference: the recurrence, the causal convolution and the norm as they are defined, one token after the other.

Slow and plain, in any floating dtype. Every backend is tested against this file in float64, and the protocols in
stm/backends have these signatures. Tensors are in token order throughout: a reversed direction walks from the last
token to the first, and its outputs lie where its inputs do.

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
    split: bool = False,
) -> Tensor:
    """Run the selective scan: h_t = exp(Delta_t A) h_{t-1} + Delta_t B_t u_t, y_t = C_t h_t + D u_t.

    Args:
        u: (K, B, L, E), the convolved input of each direction.
        dt: (K, B, L, E), Delta before its softplus; with `dt_weight` the low-rank input of Delta, (K, B, L, R).
        A: (K, E, N), negative.
        B, C: (K, B, L, N).
        D: (K, E).
        z: (B, L, E), the gate, or None for no gate.
        reverse: for each direction, whether it walks from the last token to the first.
        dt_weight: (K, E, R), by which dt is still to be multiplied. A backend that multiplies while it walks never
            holds Delta in memory.
        dt_bias: (K, E), still to be added to dt.
        scale: (L,) or (B, L), multiplies Delta: the step scale of merged tokens.
        gap: (K, B, L, E), elapsed Delta of removed tokens. It decays the state before a token and injects nothing.
        split: return each direction by itself and without the gate.

    Returns:
        (B, L, E), the sum over the directions times SiLU(z); with `split` (K, B, L, E). The dtype is that of u.
    """
    delta = step_sizes(projected(dt, dt_weight), scale, dt_bias)  # (K, B, L, E)
    elapsed = delta if gap is None else delta + gap  # only time that passed for a token still present injects
    directions = []
    for k, backward in enumerate(reverse):
        h = torch.zeros_like(A[k])  # (E, N), then (B, E, N)
        y = [u.new_empty(0)] * u.shape[2]  # by position, whichever way the direction walks
        for t in reversed(range(u.shape[2])) if backward else range(u.shape[2]):
            # The official discretisation: exact for A (zero-order hold), first order for B (Delta B).
            h = torch.exp(elapsed[k, :, t, :, None] * A[k]) * h + (delta * u)[k, :, t, :, None] * B[k, :, t, None, :]
            y[t] = (h * C[k, :, t, None, :]).sum(-1) + D[k] * u[k, :, t]  # (B, E)
        directions.append(torch.stack(y, 1))
    out = torch.stack(directions)  # (K, B, L, E)
    return (out if split else gated(out, z)).to(u.dtype)


def conv_silu(
    x: Tensor, w: Tensor, b: Tensor, reverse: tuple[bool, ...], *, sizes: tuple[int, ...] | None = None
) -> Tensor:
    """Return SiLU of the causal depthwise convolution of each direction.

    With `sizes` this is the span convolution: token k is read as if it stood sizes[k] times in a row, and its output is
    the mean over its repeats. So a merged token fills the windows of its neighbours as its original tokens did.

    Args:
        x: (B, L, E).
        w: (K, E, W): w[..., W - 1 - t] weighs the token t places earlier in walking order.
        b: (K, E).
        reverse: for each direction, whether it walks from the last token to the first.
        sizes: original tokens per token; None for the plain convolution.

    Returns:
        (K, B, L, E), in the dtype of x.
    """
    dtype, x = x.dtype, x.to(torch.promote_types(x.dtype, w.dtype))
    counts = torch.tensor(sizes or (1,) * x.shape[1], device=x.device)
    owner = torch.repeat_interleave(torch.arange(x.shape[1], device=x.device), counts)  # the token of each repeat
    repeated = x[:, owner]  # (B, sum of sizes, E)
    width, directions = w.shape[-1], []
    for k, backward in enumerate(reverse):
        walk = repeated.flip(1) if backward else repeated
        padded = F.pad(walk, (0, 0, width - 1, 0))  # zeros stand before the first token
        out = b[k] + sum(w[k, :, i] * padded[:, i : i + walk.shape[1]] for i in range(width))
        # The mean is taken after SiLU: each repeat is a token of its own in the model that was trained.
        out = F.silu(out.flip(1) if backward else out)
        directions.append(torch.zeros_like(x).index_add(1, owner, out) / counts[:, None])  # (B, L, E)
    return torch.stack(directions).to(dtype)


def add_norm(x: Tensor, h: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the residual stream with the pending output added, and the RMSNorm of the sum.

    Args:
        x: (B, L, D), the residual stream, float32.
        h: (B, L, D), the previous mixer's output that is not yet added, or None.
        weight: (D,).
        eps: added to the mean square.
        dtype: the dtype of the norm, which the matrix products read.

    Returns:
        x + h (B, L, D), and its norm (B, L, D) in `dtype`.
    """
    if h is not None:
        x = x + h
    return x, F.rms_norm(x, weight.shape, weight, eps).to(dtype)


def projected(dt: Tensor, weight: Tensor | None) -> Tensor:
    """Return dt (K, B, L, E): dt (K, B, L, R) times its weight (K, E, R), or dt itself without a weight."""
    return dt if weight is None else torch.bmm(dt.flatten(1, 2), weight.mT).unflatten(1, dt.shape[1:3])


def step_sizes(dt: Tensor, scale: Tensor | None, dt_bias: Tensor | None = None) -> Tensor:
    """Return Delta (K, B, L, E): softplus(dt + dt_bias) * scale.

    Args:
        dt: (K, B, L, E).
        scale: (L,) or (B, L).
        dt_bias: (K, E).
    """
    # At least float32: Delta is summed along the walk inside the exponent.
    dt = dt.to(torch.promote_types(dt.dtype, torch.float32))
    delta = F.softplus(dt if dt_bias is None else dt + dt_bias[:, None, None])
    return delta if scale is None else delta * scale[..., None]


def gated(y: Tensor, z: Tensor | None) -> Tensor:
    """Return the sum of y (K, B, L, E) over the directions, times SiLU(z) if there is a gate z (B, L, E)."""
    # One gate for both directions: gating each and adding, as the official code does, is the same product.
    total = y.sum(0)
    return total if z is None else total * F.silu(z)
