"""The C functions between matrix products in bfloat16, and the coarse scan, against the definition."""

from typing import Any

import pytest
import torch
from torch import Tensor

from stm.backends import native, reference
from stm.backends.native_calls import Prepared
from tests.backends.cases import BOTH, inputs
from tests.backends.test_native import library  # noqa: F401  (a fixture)

AVAILABLE, REASON = native.status()
pytestmark = [pytest.mark.skipif(not AVAILABLE, reason=REASON), pytest.mark.usefixtures("library")]
HALF_STEP = 2.0**-8  # of bfloat16, relative: 8 bits, the first of which is not stored


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scanned(values: dict[str, Any], **options: Any) -> Tensor:
    out = torch.empty(values["u"].shape[1:])
    names = ("u", "dt", "A", "B", "C", "D", "z", "dt_weight", "dt_bias", "scale", "gap", "reverse")
    Prepared.scan(*(values.get(name) for name in names), out=out, **options)()
    return out


@pytest.mark.parametrize("E", [24, 100])
def test_a_coarse_scan_is_within_its_bound(E: int) -> None:
    """The exponential has a relative error of 1.5e-4 and Delta one of 6e-5 (native.h); a walk adds them up."""
    values = inputs(E=E, L=50, dt_weight=True, dt_bias=True)
    exact, coarse = scanned(values), scanned(values, coarse=True)
    assert 0 < float((coarse - exact).norm() / exact.norm()) < 5e-4


def test_slow_decays_stay_slow_in_a_coarse_scan() -> None:
    """2^x is exact at 0: a state that decays by 1e-6 a step keeps its value over a long walk."""
    values = inputs(E=16, L=2000, N=4)
    values |= {"A": torch.full_like(values["A"], -1e-6), "z": None}
    out = torch.empty_like(values["u"])
    names = ("u", "dt", "A", "B", "C", "D", "z", "dt_weight", "dt_bias", "scale", "gap", "reverse")
    Prepared.scan(*(values.get(name) for name in names), out=out, coarse=True)()
    expected = reference.scan(**values, split=True)
    assert float((out - expected).norm() / expected.norm()) < 5e-4


@pytest.mark.parametrize("E", [24, 100])
def test_a_scan_with_a_gate_in_bfloat16(E: int) -> None:
    values = inputs(E=E, dt_weight=True, dt_bias=True, scale=True)
    expected = reference.scan(**values)
    gated = torch.empty(values["z"].shape, dtype=torch.bfloat16)
    z = values["z"].bfloat16()
    expected = reference.scan(**values | {"z": z.float()})
    scanned(values | {"z": z, "scale": values["scale"].expand(2, 19)}, gated=gated)
    torch.testing.assert_close(gated.float(), expected, rtol=HALF_STEP, atol=2e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("sizes", [None, (1, 2, 1, 5, 1, 1, 3)])
@pytest.mark.parametrize("E", [16, 37])
def test_a_convolution_of_bfloat16(E: int, sizes: tuple[int, ...] | None) -> None:
    """x may be half of a wider row. Nothing of it is rounded: the output is float32."""
    wide, w, b = normal(2, 7, 2 * E).bfloat16(), normal(2, E, 4), normal(2, E)
    x, out = wide.chunk(2, -1)[0], torch.empty(2, 2, 7, E)
    Prepared.conv_silu(x, w, b, BOTH, sizes, out=out)()
    torch.testing.assert_close(out, reference.conv_silu(x.float(), w, b, BOTH, sizes=sizes), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("D", [16, 37])
@pytest.mark.parametrize("pending", [True, False])
def test_a_norm_to_bfloat16(D: int, pending: bool) -> None:
    x, weight = normal(2, 5, D), normal(D)
    h = normal(2, 5, D, seed=1).bfloat16() if pending else None
    total, out = torch.empty_like(x) if pending else None, torch.empty(2, 5, D, dtype=torch.bfloat16)
    Prepared.add_norm(x, h, weight, 1e-5, total, out)()
    expected_total, expected = reference.add_norm(x, h, weight, 1e-5, torch.float32)
    if total is not None:
        assert torch.equal(total, expected_total)
    torch.testing.assert_close(out.float(), expected, rtol=HALF_STEP, atol=1e-6)


def test_rounding_is_that_of_torch() -> None:
    """To the even one of two, over infinity, and no NaN becomes a number, whatever its bits are."""
    special = torch.tensor([1 + HALF_STEP, 1 + 3 * HALF_STEP, torch.inf, -torch.inf, 3.4e38, -0.0, 1e-40])
    nan = torch.tensor([0x7FFFFFFF, -1, 0x7FC00000, 0x7F800001], dtype=torch.int32).view(torch.float32)
    x = torch.cat([special, nan])[:, None, None].contiguous()  # rows of one value: the norm of 1 is a factor near 1
    out = torch.empty(x.shape, dtype=torch.bfloat16)
    floats = torch.empty(x.shape)
    for to in (out, floats):
        Prepared.add_norm(x, None, torch.tensor([1 + 3 * HALF_STEP]), 1e-5, None, to)()
    assert torch.equal(out.isnan(), floats.isnan())
    assert torch.equal(out.nan_to_num(), floats.bfloat16().nan_to_num())
