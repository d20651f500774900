"""The native backend on any shape and layout, empty ones too, against the definition in float64.

`fuzz/native.sh` runs this file and test_native.py on a build under AddressSanitizer and UBSan, with more shapes:
STM_FUZZ_SHAPES=2000.
"""

import os
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from stm.backends import native, native_calls, reference
from tests.backends.cases import BOTH, check, double, gradients, inputs
from tests.backends.test_native import library

__all__ = ["library"]

AVAILABLE, REASON = native.status()
pytestmark = pytest.mark.skipif(not AVAILABLE, reason=REASON)
SHAPES = int(os.environ.get("STM_FUZZ_SHAPES", "40"))


def unaligned(v: Tensor) -> Tensor:
    """The same values between two floats, as a mapped file may hold them."""
    if not v.numel():
        return v
    held = bytearray(1) + bytearray(v.detach().contiguous().numpy().tobytes()) + bytearray(4)
    moved = torch.frombuffer(held, dtype=torch.float32, offset=1, count=v.numel()).view(v.shape)
    assert moved.data_ptr() % 4 == 1
    return moved


def spaced(v: Tensor) -> Tensor:
    """The same values as a slice of a wider tensor."""
    wide = torch.full((*v.shape[:-1], v.shape[-1] + 5), torch.nan)
    wide[..., 3 : 3 + v.shape[-1]] = v
    return wide[..., 3 : 3 + v.shape[-1]]


def apart(v: Tensor) -> Tensor:
    """The same values with the last axis outermost."""
    return v.movedim(-1, 0).contiguous().movedim(0, -1)


LAYOUTS = (lambda v: v, unaligned, spaced, apart)


def compare(values: dict[str, Any], **options: Any) -> None:
    """Values and gradients; an empty output has the right shape, and no gradient but zeros."""
    got = native.scan(**values, **options)
    assert got.shape == (values["u"].shape if options.get("split") else values["u"].shape[1:])
    ours = gradients(native.scan, values)
    assert {name: g.shape for name, g in ours.items()} == {name: values[name].shape for name in ours}
    if not got.numel():
        assert not any(g.any() for g in ours.values())
        return
    check(got, reference.scan(**double(values), **options))
    theirs = gradients(reference.scan, double(values))
    scale = max(g.abs().max() for g in theirs.values() if g.numel()).clamp_min(1)
    for name, g in ours.items():
        # A gradient that vanishes is compared with the largest.
        assert not g.numel() or (g.double() - theirs[name]).abs().max() <= 2e-5 * scale, name


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("empty", ["batch", "L", "E", "N"])
def test_an_empty_axis_ends_no_process(empty: str) -> None:
    compare(inputs(dt_weight=empty != "N", dt_bias=True, scale=True, gap=True, **{empty: 0}))  # type: ignore[arg-type]


@pytest.mark.usefixtures("library")
def test_a_weight_of_no_rank_is_a_product_of_zeros() -> None:
    values = inputs(dt_weight=True, dt_bias=True)
    compare(values | {"dt": values["dt"][..., :0], "dt_weight": values["dt_weight"][..., :0]})
    compare(values | {"dt": torch.randn(2, 2, 19, 4000), "dt_weight": torch.randn(2, 24, 4000) / 100})


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 0, 5), (2, 3, 0), (0, 0, 0), (2, 1, 1)])
def test_conv_and_norm_of_an_empty_axis(shape: tuple[int, int, int]) -> None:
    x, w, b = torch.randn(shape), torch.randn(2, shape[-1], 4), torch.randn(2, shape[-1])
    leaves = [v.requires_grad_() for v in (x, w, b)]
    for sizes in (None, (2,) * shape[1]):
        out = native.conv_silu(*leaves, BOTH, sizes=sizes)
        assert out.shape == (2, *shape)
        zero = out.numel() == 0
        assert all(
            g.shape == v.shape and not (zero and g.any()) for g, v in zip(grads(out, leaves), leaves, strict=True)
        )
    total, norm = native.add_norm(x, x, w[0, :, 0], 1e-5, torch.float32)
    assert total.shape == norm.shape == shape


def grads(out: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out.sum(), leaves)


def test_products_of_an_empty_axis() -> None:
    for K, rows, E, columns in ((0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)):
        weight = native_calls.for_product(torch.randn(K, columns, E))
        out = torch.full((K, rows, weight.shape[-1]), torch.nan)
        native_calls.Prepared.product(torch.randn(K, rows, E), weight, out)()
        assert not out.any()


def test_shapes_and_layouts_at_random() -> None:
    """Each draw is a shape, with or without each option, and a layout for each tensor."""
    draw = random.Random(0)
    for _ in range(SHAPES):
        sizes = {
            "K": draw.choice([1, 2]),
            "batch": draw.choice([0, 1, 2, 3]),
            "L": draw.choice([0, 1, 2, 7, 8, 9, 33]),
            "E": draw.choice([0, 1, 4, 15, 17, 64, 70, 130]),
            "N": draw.choice([0, 1, 3, 16, 33]),
        }
        options = {name: draw.random() < 0.5 for name in ("dt_weight", "dt_bias", "scale", "gap")}
        values = inputs(**sizes, **options)  # type: ignore[arg-type]
        layouts = {name: draw.choice(LAYOUTS) for name, v in values.items() if isinstance(v, Tensor)}
        values |= {name: layout(values[name]) for name, layout in layouts.items()}
        if draw.random() < 0.3:
            values["z"] = None
        with torch.no_grad():
            got = native.scan(**values)
        if got.numel():
            check(got, reference.scan(**double(values)), 2e-5)
        if draw.random() < 0.5 and values["z"] is not None:
            compare(values)
        draw_conv(draw, sizes)


def draw_conv(draw: random.Random, size: dict[str, int]) -> None:
    x = torch.randn(size["batch"], size["L"], size["E"])
    w, b = torch.randn(size["K"], size["E"], draw.choice([1, 2, 4, 16])), torch.randn(size["K"], size["E"])
    x, w, b = (draw.choice(LAYOUTS)(v) for v in (x, w, b))
    repeats = tuple(draw.choice([1, 1, 2, 5, 40]) for _ in range(size["L"])) if draw.random() < 0.5 else None
    reverse = BOTH[: size["K"]]
    got = native.conv_silu(x, w, b, reverse, sizes=repeats)
    if got.numel():
        check(got, reference.conv_silu(x.double(), w.double(), b.double(), reverse, sizes=repeats))
