"""Numbers that hold: what is infinite or no number stays so at the same places, wherever and however long the walk."""

import pytest
import torch
from torch import Tensor

from stm import backends
from stm.backends import blocked, native, reference
from tests.backends.cases import BOTH, check, double, inputs

BACKENDS = [
    pytest.param(native, marks=pytest.mark.skipif(not native.status()[0], reason=native.status()[1])),
    blocked,
]
each_backend = pytest.mark.parametrize("backend", BACKENDS, ids=lambda module: module.__name__.rpartition(".")[2])
OPTIONS = ("dt_weight", "dt_bias", "scale", "gap")
INFINITY = float("inf")


def check_places(got: Tensor, expected: Tensor) -> None:
    """The same places are no number, the same infinite, and the others are near."""
    assert got.isnan().equal(expected.isnan())
    assert got.isinf().equal(expected.isinf())
    finite = expected.isfinite()
    if finite.any():
        check(got[finite], expected[finite].double())


@each_backend
@pytest.mark.parametrize("name", ["u", "dt", "A", "B", "C", "D", "z", *OPTIONS])
def test_a_scan_hides_no_number(backend: backends.Backend, name: str) -> None:
    options = dict.fromkeys(OPTIONS, True) if name in OPTIONS else {}
    for value in (INFINITY, -INFINITY, float("nan"), 3e38, -3e38, 1e-45):
        values = inputs(L=11, N=4, **options)
        values[name].view(-1)[7] = value
        check_places(backend.scan(**values), reference.scan(**values))


@each_backend
@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("value", [INFINITY, -INFINITY, float("nan"), 90.0, -90.0, -104.0, 1e-45])
def test_neither_does_a_convolution_nor_a_norm(backend: backends.Backend, which: int, value: float) -> None:
    g = torch.Generator().manual_seed(which)
    x, w, b, h = (torch.randn(shape, generator=g) for shape in ((2, 5, 24), (2, 24, 4), (2, 24), (2, 5, 24)))
    (x, w, b)[which].view(-1)[7] = value
    for sizes in (None, (1, 2, 3, 1, 1)):
        check_places(backend.conv_silu(x, w, b, BOTH, sizes=sizes), reference.conv_silu(x, w, b, BOTH, sizes=sizes))
    of_norm = ((x, h, b[0]), (h, x, b[0]), (h, h, b[0]))[which]
    for got, expected in zip(
        backend.add_norm(*of_norm, 1e-5, torch.float32), reference.add_norm(*of_norm, 1e-5, torch.float32), strict=True
    ):
        check_places(got, expected)


@each_backend
def test_denormal_numbers_are_not_flushed(backend: backends.Backend) -> None:
    """A library that is linked with -ffast-math has them flushed in the whole process as soon as it is loaded.

    How long they take is measured in docs/speed.md: no test holds anything to a clock. The expected values are exact up
    to the last bit of a denormal number, and `check` would take zeros for them.
    """
    last_bit = 2.0**-149
    x = torch.linspace(-5e-39, 5e-39, 24).expand(2, 5, 24).contiguous()
    values = inputs(L=5, N=4)
    values |= {name: torch.zeros_like(values[name]) for name in ("A", "B", "C")}
    out = backend.scan(**values | {"u": x.expand(2, 2, 5, 24), "D": torch.ones(2, 24), "z": None})
    assert out.equal(2 * x) and out.count_nonzero() == out.numel()  # D u of both directions
    taps = torch.zeros(2, 24, 4)
    taps[..., -1] = 1
    for each in backend.conv_silu(x, taps, torch.zeros(2, 24), BOTH):
        assert (each.double() - x.double() / 2).abs().max() <= last_bit  # SiLU is half of a small number
    added, normed = backend.add_norm(x, x, torch.ones(24), 1e-5, torch.float32)
    assert added.equal(2 * x)
    check(normed * 2.0**100, 2 * x.double() * 2.0**100 / 1e-5**0.5)  # the squares vanish beside the epsilon
    assert (torch.tensor(last_bit) * 1.0).item() == last_bit, "the process computes as before"


@each_backend
@pytest.mark.parametrize("L", [1, 9])
def test_expanded_inputs_and_those_whose_channels_are_apart(backend: backends.Backend, L: int) -> None:
    values = inputs(L=L, **dict.fromkeys(OPTIONS, True))
    for name in ("u", "dt", "B", "C", "gap"):
        one = values[name][:, :1, :1]
        values[name] = one.expand_as(values[name])  # one row for every token of every image
        check(backend.scan(**values), reference.scan(**double(values)))
        values[name] = one.mT.contiguous().mT.expand_as(values[name])
    values |= {"z": values["z"].mT.contiguous().mT, "A": values["A"][:1].expand(2, -1, -1)}
    values |= {"D": values["D"][:, :1].expand(2, 24), "scale": values["scale"][:1].expand(L)}
    check(backend.scan(**values), reference.scan(**double(values)))
    x = values["z"][:, :1].expand(2, L, 24)
    w, b = torch.randn(2, 24, 1).expand(2, 24, 4), torch.randn(24).expand(2, 24)
    check(backend.conv_silu(x, w, b, BOTH), reference.conv_silu(x.double(), w.double(), b.double(), BOTH))


@each_backend
def test_steps_up_to_ten_thousand(backend: backends.Backend) -> None:
    """A state forgets all, and takes in ten thousand times its input: against float64, with every step by itself."""
    values = inputs(L=19)
    for step in (1e2, 1e3, 1e4):
        values["dt"] = values["dt"].clone()
        values["dt"][..., ::3, :] = step
        check(backend.scan(**values), reference.scan(**double(values)))


@each_backend
def test_sixteen_thousand_tokens(backend: backends.Backend) -> None:
    """Against a closed form, as the definition takes a minute: with A = 0 and Delta, B and C at 1 it is a sum."""
    L, E = 16_384, 8
    u = torch.rand(1, 1, L, E, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(1, 1, L, 1)
    dt = torch.full_like(u, 0.541324854612918)  # softplus gives 1
    out = backend.scan(u, dt, torch.zeros(1, E, 1), ones, ones, torch.zeros(1, E), None, (False,))
    check(out, u.double().cumsum(2)[0])
    slow = backend.scan(u, dt, torch.full((1, E, 1), -1e-3), ones, ones, torch.zeros(1, E), None, (True,))
    decays = torch.exp(-1e-3 * torch.arange(L, dtype=torch.float64))
    # float32 rounds this decay by up to 3e-8 of itself, and a thousand tokens are remembered.
    check(slow[:, :1], (decays[:, None] * u[0].double()).sum(1, keepdim=True), 3e-5)


@each_backend
def test_what_half_precision_cannot_hold_is_infinite(backend: backends.Backend) -> None:
    values = inputs(L=9)
    values |= {"u": values["u"] * 1e4, "C": values["C"] * 1e2}
    small = {name: v.half() if name in ("u", "dt", "B", "C", "z") else v for name, v in values.items()}
    wide = {name: v.float() if isinstance(v, Tensor) else v for name, v in small.items()}
    got, expected = backend.scan(**small), reference.scan(**wide)
    assert got.dtype == torch.float16 and got.isinf().any() and not got.isnan().any()
    assert got.isinf().equal(expected.half().isinf())
    assert backend.scan(**{n: v.bfloat16() if n == "u" else v for n, v in wide.items()}).isfinite().all()
