"""Torch alone against the definition (stm/backends/reference.py) in float64: values and gradients, in blocks of any
length."""

from typing import Any

import pytest
import torch

from stm.backends import blocked, conv, reference
from tests.backends.cases import check, double, gradients, inputs, torch_checks

SPANS = (1, 2, 4, 7, 1, 3)


@pytest.mark.parametrize("L", [1, 2, 19, 33])
@pytest.mark.parametrize(("E", "N"), [(1, 1), (24, 16), (5, 3)])
def test_scan(L: int, E: int, N: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for longest in (1, 7, 32):
        monkeypatch.setattr(blocked, "LONGEST", longest)
        values = inputs(L=L, E=E, N=N)
        check(blocked.scan(**values), reference.scan(**double(values)))
        check(blocked.scan(**values, split=True), reference.scan(**double(values), split=True))


@pytest.mark.parametrize("reverse", [(False,), (True,), (True, False)])
def test_scan_with_bias_scale_and_gap_of_any_directions(reverse: tuple[bool, ...]) -> None:
    values = inputs(K=len(reverse), dt_weight=True, dt_bias=True, scale=True, gap=True) | {"reverse": reverse}
    check(blocked.scan(**values), reference.scan(**double(values)))


def test_gradients_of_the_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "LONGEST", 7)  # several blocks, the last a short one
    values = double(inputs(dt_weight=True, dt_bias=True, scale=True, gap=True))
    found, expected = gradients(blocked.scan, values), gradients(reference.scan, values)
    for name in expected:
        check(found[name], expected[name], 1e-10)


@pytest.mark.parametrize("sizes", [None, SPANS, (1,) * 6], ids=["plain", "span", "span of ones"])
def test_convolution_and_its_gradients(sizes: tuple[int, ...] | None) -> None:
    g = torch.Generator().manual_seed(0)
    values: dict[str, Any] = {
        "x": torch.randn(2, 6, 5, generator=g, dtype=torch.float64),
        "w": torch.randn(2, 5, 4, generator=g, dtype=torch.float64),
        "b": torch.randn(2, 5, generator=g, dtype=torch.float64),
        "reverse": (False, True),
        "sizes": sizes,
    }
    check(conv.conv_silu(**values), reference.conv_silu(**values), 1e-12)
    found, expected = gradients(conv.conv_silu, values), gradients(reference.conv_silu, values)
    for name in expected:
        check(found[name], expected[name], 1e-12)


@torch_checks
def test_the_operators_hold_what_torch_asks_of_them() -> None:
    """Fake kernels, autograd registration and schemas, by torch's own checks."""
    values = inputs(L=5, E=4, N=3)
    delta = reference.step_sizes(values["dt"], None)
    recurrence = (delta, delta * values["u"], values["A"], values["B"], values["C"])
    leaves = tuple(v.clone().requires_grad_() for v in recurrence)
    torch.library.opcheck(torch.ops.stm.blocked_recurrence.default, (*leaves, [False, True]))
    g = torch.Generator().manual_seed(0)
    convolution = tuple(torch.randn(*shape, generator=g).requires_grad_() for shape in ((2, 6, 5), (2, 5, 4), (2, 5)))
    torch.library.opcheck(torch.ops.stm.span_conv.default, (*convolution, [False, True], list(SPANS)))
