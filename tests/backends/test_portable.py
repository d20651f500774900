"""The backend of programs, in chunks and as a loop, against the definition (stm/backends/reference.py) in float64."""

import pytest
import torch

from stm.backends import portable, reference
from tests.backends.cases import check, double, inputs

SPANS = (1, 2, 4, 7, 1, 3)
forms = pytest.mark.parametrize("form", [portable.chunks, portable.loop])


@forms
@pytest.mark.parametrize("L", [1, 2, 3, 19, 50])
@pytest.mark.parametrize(("E", "N"), [(1, 1), (24, 16)])
def test_scan(form: portable.Recurrence, L: int, E: int, N: int) -> None:
    values = inputs(L=L, E=E, N=N)
    check(portable.scan(**values, recurrence=form), reference.scan(**double(values)))
    check(portable.scan(**values, recurrence=form, split=True), reference.scan(**double(values), split=True))


@forms
@pytest.mark.parametrize("reverse", [(False,), (True,), (True, False)])
def test_scan_with_bias_scale_and_gap_of_any_directions(form: portable.Recurrence, reverse: tuple[bool, ...]) -> None:
    values = inputs(K=len(reverse), dt_weight=True, dt_bias=True, scale=True, gap=True) | {"reverse": reverse}
    check(portable.scan(**values, recurrence=form), reference.scan(**double(values)))


@forms
@pytest.mark.parametrize("shift", [-40.0, 30.0])
def test_steps_of_any_length_stay_finite(form: portable.Recurrence, shift: float) -> None:
    """Tokens that pass no time, and tokens after which nothing of the state is left."""
    values = inputs()
    values["dt"] = values["dt"] + shift
    check(portable.scan(**values, recurrence=form), reference.scan(**double(values)))


@pytest.mark.parametrize("sizes", [None, SPANS])
def test_convolution(sizes: tuple[int, ...] | None) -> None:
    g = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(*shape, generator=g) for shape in ((2, 6, 5), (2, 5, 4), (2, 5)))
    found = portable.conv_silu(x, w, b, (False, True), sizes=sizes)
    check(found, reference.conv_silu(x.double(), w.double(), b.double(), (False, True), sizes=sizes))
