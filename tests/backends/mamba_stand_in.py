"""Stand-ins for mamba-ssm's and causal-conv1d's kernels, which need a GPU.

They have the signatures of mamba-ssm 2.3.2.post1 (csrc/selective_scan/selective_scan.cpp) and causal-conv1d 1.5.2 to
1.7.0 (causal_conv1d/cpp_functions.py), refuse what those refuse, and compute with the definition
(stm/backends/reference.py).
"""

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stm.backends import blocked, conv, reference


def softplus_inverse(delta: Tensor) -> Tensor:
    return delta.double().expm1().log()


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> list[Tensor]:
    """selective_scan_cuda.fwd: [out, states]."""
    batch, channels, length = u.shape
    groups = B.shape[1]
    assert u.dtype == delta.dtype == B.dtype == C.dtype
    assert A.dtype == torch.float32 and A.shape[0] == channels and A.shape[1] <= 256
    assert B.shape == C.shape == (batch, groups, A.shape[1], length)
    assert all(v.stride(-1) == 1 or v.shape[-1] == 1 for v in (u, delta, B, C))
    assert D is None or (D.dtype == torch.float32 and D.shape == (channels,))
    assert z is None
    assert delta_bias is None or (
        delta_bias.dtype == torch.float32 and delta_bias.shape == (channels,) and delta_softplus
    )
    if delta_bias is not None:
        delta = delta.double() + delta_bias[:, None]
    dt = delta.double() if delta_softplus else softplus_inverse(delta)
    as_ours = [v.unflatten(1, (groups, -1)).permute(1, 0, 3, 2) for v in (u.double(), dt)]
    out = reference.scan(
        *as_ours,
        A.double().unflatten(0, (groups, -1)),
        *(v.permute(1, 0, 3, 2).double() for v in (B, C)),
        torch.zeros(groups, channels // groups) if D is None else D.double().unflatten(0, (groups, -1)),
        None,
        (False,) * groups,
        split=True,
    )
    return [out.permute(1, 0, 3, 2).flatten(1, 2).to(u.dtype), torch.zeros(batch, channels, 1, 2 * A.shape[1])]


def backward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    states: Tensor,
    out: Tensor | None,
    dz: Tensor | None,
    delta_softplus: bool,
    recompute_out_z: bool,
) -> list[Tensor | None]:
    """selective_scan_cuda.bwd: the gradients of u, delta, A, B, C, D and delta_bias, by way of torch's backend."""
    groups = B.shape[1]
    assert dout.stride(-1) == 1
    assert states.shape == (u.shape[0], u.shape[1], 1, 2 * A.shape[1])
    assert (z, out, dz, recompute_out_z) == (None, None, None, False)
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    ours = [v.unflatten(1, (groups, -1)).permute(1, 0, 3, 2).contiguous() for v in (dout, u, delta)]
    grad, x, dt = ours
    step = F.softplus(dt) if delta_softplus else dt
    A_g, B_g, C_g = A.unflatten(0, (groups, -1)), *(v.permute(1, 0, 3, 2).contiguous() for v in (B, C))
    made = blocked._recurrence_backward(grad, step, step * x, A_g, B_g, C_g, [False] * groups)
    g_elapsed, g_product, g_A, g_B, g_C = made
    g_u, g_delta = g_product * step, (g_elapsed + g_product * x) * (torch.sigmoid(dt) if delta_softplus else 1)
    if D is not None:
        g_u = g_u + D.unflatten(0, (groups, -1))[:, None, None] * grad
    flat = [v.permute(1, 0, 3, 2).flatten(1, 2) for v in (g_u, g_delta)]
    g_bias = None if delta_bias is None else flat[1].sum((0, 2))
    g_D = None if D is None else (grad * x).sum((1, 2)).flatten()
    return [*flat, g_A.flatten(0, 1), g_B.permute(1, 0, 3, 2), g_C.permute(1, 0, 3, 2), g_D, g_bias]


def conv_forward(
    x: Tensor, weight: Tensor, bias: Tensor, seq_idx: None, initial_states: None, final_states_out: None, silu: bool
) -> Tensor:
    assert x.stride(2) == 1 or x.stride(1) == 1
    assert weight.dtype == bias.dtype and 2 <= weight.shape[-1] <= 4
    assert silu
    padded = F.pad(x.double(), (weight.shape[-1] - 1, 0))
    return F.silu(F.conv1d(padded, weight.double()[:, None], bias.double(), groups=x.shape[1])).to(x.dtype)


def conv_backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    dout: Tensor,
    seq_idx: None,
    initial_states: None,
    dfinal_states: None,
    dx: None,
    return_dinitial_states: bool,
    silu: bool,
) -> tuple[Any, ...]:
    one = dout.mT.contiguous()[None], x.mT.contiguous(), weight[None], bias[None], [False], [1] * x.shape[-1]
    g_x, g_weight, g_bias = conv._span_conv_backward(*one)
    return g_x.mT, g_weight[0], g_bias[0], None


CONV = SimpleNamespace(causal_conv1d_fwd_function=conv_forward, causal_conv1d_bwd_function=conv_backward)
