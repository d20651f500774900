"""The grouping and layouts of the mamba-ssm backend, with stand-ins for its kernels.

The stand-ins have the signatures of mamba-ssm 2.3.2 (csrc/selective_scan/selective_scan.cpp) and causal-conv1d 1.7
(causal_conv1d/cpp_functions.py), refuse what those refuse, and compute with the definition (stm/scan.py).
"""

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stm import backends
from stm import scan as reference
from stm.backends import blocked, conv, mamba_ssm
from stm.errors import BackendError
from tests.backends.cases import BOTH, check, double, gradients, inputs

COMMIT = "0123456789abcdef0123456789abcdef01234567"


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
    assert z is None and delta_bias is None
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
    assert (z, delta_bias, out, dz, recompute_out_z) == (None, None, None, None, False)
    ours = [v.unflatten(1, (groups, -1)).permute(1, 0, 3, 2).contiguous() for v in (dout, u, delta)]
    grad, x, dt = ours
    step = F.softplus(dt) if delta_softplus else dt
    A_g, B_g, C_g = A.unflatten(0, (groups, -1)), *(v.permute(1, 0, 3, 2).contiguous() for v in (B, C))
    made = blocked._recurrence_backward(grad, step, step * x, A_g, B_g, C_g, torch.zeros_like(A_g), [False] * groups)
    g_elapsed, g_product, g_A, g_B, g_C, _ = made
    g_u, g_delta = g_product * step, (g_elapsed + g_product * x) * (torch.sigmoid(dt) if delta_softplus else 1)
    if D is not None:
        g_u = g_u + D.unflatten(0, (groups, -1))[:, None, None] * grad
    flat = [v.permute(1, 0, 3, 2).flatten(1, 2) for v in (g_u, g_delta)]
    g_D = None if D is None else (grad * x).sum((1, 2)).flatten()
    return [*flat, g_A.flatten(0, 1), g_B.permute(1, 0, 3, 2), g_C.permute(1, 0, 3, 2), g_D, None]


def conv_forward(x: Tensor, weight: Tensor, bias: Tensor, seq_idx: None, initial_states: None, final_states_out: None, silu: bool) -> Tensor:
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


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules of the names that are imported."""
    for name, members in (("selective_scan_cuda", {"fwd": forward, "bwd": backward}), ("causal_conv1d", {"cpp_functions": CONV})):
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    mamba_ssm._kernels.cache_clear()
    yield
    mamba_ssm._kernels.cache_clear()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("reverse", [BOTH, (True, False), (False,), (True,)])
@pytest.mark.parametrize("optional", [set(), {"scale"}, {"gap"}, {"h0"}, {"scale", "gap", "h0"}], ids=lambda names: "+".join(sorted(names)))
def test_scan(optional: set[str], reverse: tuple[bool, ...]) -> None:
    values = inputs(K=len(reverse), L=6, E=5, N=3, **dict.fromkeys(optional, True)) | {"reverse": reverse}
    check(mamba_ssm.scan(**values), reference.scan(**double(values)))
    check(mamba_ssm.scan(**values, split=True), reference.scan(**double(values), split=True))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("optional", [set(), {"scale", "gap", "h0"}], ids=["plain", "all"])
def test_gradients_of_the_scan(optional: set[str]) -> None:
    values = inputs(L=4, E=5, N=3, **dict.fromkeys(optional, True))
    found, expected = gradients(mamba_ssm.scan, values), gradients(reference.scan, double(values))
    for name in expected:
        check(found[name], expected[name])


@pytest.mark.usefixtures("installed")
def test_an_initial_state_of_fast_and_slow_channels() -> None:
    values = inputs(L=4, E=5, N=16, h0=True)
    for factor in (1e-6, 1e3):
        scaled = values | {"A": values["A"] * factor}
        check(mamba_ssm.scan(**scaled), reference.scan(**double(scaled)))


@pytest.mark.usefixtures("installed")
def test_half_precision_is_given_as_one_dtype() -> None:
    values = {name: v.bfloat16() if name in ("u", "B", "C", "z") else v for name, v in inputs(L=5, E=8, N=4).items()}
    found = mamba_ssm.scan(**values)
    assert found.dtype == torch.bfloat16
    check(found, reference.scan(**double(values)), 2e-2)  # Delta is rounded to bfloat16, too


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("sizes", [None, (1, 2, 4, 7, 1, 3)], ids=["plain", "span"])
def test_convolution_and_its_gradients(sizes: tuple[int, ...] | None) -> None:
    g = torch.Generator().manual_seed(0)
    values: dict[str, Any] = {"x": torch.randn(2, 6, 5, generator=g), "w": torch.randn(2, 5, 4, generator=g)}
    values |= {"b": torch.randn(2, 5, generator=g), "reverse": BOTH, "sizes": sizes}
    check(mamba_ssm.conv_silu(**values), reference.conv_silu(**double(values)))
    found, expected = gradients(mamba_ssm.conv_silu, values), gradients(reference.conv_silu, double(values))
    for name in expected:
        check(found[name], expected[name])


@pytest.mark.usefixtures("installed")
def test_the_operators_hold_what_torch_asks_of_them() -> None:
    g = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g).requires_grad_()

    scan = (leaf(2, 6, 4), leaf(2, 6, 4), leaf(6, 3), leaf(2, 2, 3, 4), leaf(2, 2, 3, 4))
    for D in (leaf(6), None):
        torch.library.opcheck(torch.ops.stm.mamba_scan.default, (*scan, D, True, ""))
    torch.library.opcheck(torch.ops.stm.mamba_conv.default, (leaf(2, 6, 4), leaf(6, 3), leaf(6), ""))


@pytest.mark.usefixtures("installed")
def test_it_is_available_where_the_kernels_import() -> None:
    assert backends.status("mamba_ssm", "cuda") == (True, "mamba-ssm's and causal-conv1d's CUDA kernels")


def test_kernels_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for Hugging Face's `kernels`: what is fetched, at which revision, and what is taken of it."""
    ops = SimpleNamespace(ops=SimpleNamespace(selective_scan_fwd=forward, selective_scan_bwd=backward))
    asked: list[Any] = []

    def get_kernel(repo: str, *, revision: str) -> Any:
        asked.append((repo, revision))
        return SimpleNamespace(_ops=ops, _causal_conv1d=SimpleNamespace(cpp_functions=CONV))

    monkeypatch.setitem(sys.modules, "kernels", SimpleNamespace(get_kernel=get_kernel))  # type: ignore[misc]  # stands in for a module
    monkeypatch.setattr(mamba_ssm, "find_spec", lambda name: object())
    mamba_ssm._kernels.cache_clear()
    assert backends.status(f"kernels@{COMMIT}", "cuda") == (True, f"kernels-community/mamba-ssm of the Hub at {COMMIT}")
    assert asked == []  # the status fetches nothing
    chosen = backends.choose(f"kernels@{COMMIT}", "cuda")
    assert asked == [("kernels-community/mamba-ssm", COMMIT)]
    values = inputs(L=4, E=5, N=3)
    check(chosen.scan(**values), reference.scan(**double(values)))
    assert len(asked) == 1
    mamba_ssm._kernels.cache_clear()

    def fails(repo: str, *, revision: str) -> Any:
        raise FileNotFoundError("no build for this torch")

    monkeypatch.setitem(sys.modules, "kernels", SimpleNamespace(get_kernel=fails))  # type: ignore[misc]
    with pytest.raises(BackendError, match=rf"kernels-community/mamba-ssm at {COMMIT} cannot be used: no build for this torch"):
        backends.choose(f"kernels@{COMMIT}", "cuda")
