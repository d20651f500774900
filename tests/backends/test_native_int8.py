"""The int8 product in C against its definition (stm/model/quantized.py): the same bits, on every build."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stm.backends import native, native_calls
from stm.backends.native_calls import LEVELS, PackedInt8, Prepared
from stm.errors import UsageError
from stm.model.quantized import Int8, product
from tests.backends.test_native import library  # noqa: F401  (a fixture)

SHIM = Path(__file__).with_name("vnni.h")
AVAILABLE, REASON = native.status()
pytestmark = pytest.mark.skipif(not AVAILABLE, reason=REASON)


def by_c(x: torch.Tensor, int8: Int8) -> torch.Tensor:
    out = torch.full((*x.shape[:2], int8.weight.shape[1]), torch.nan)
    Prepared.int8_product(x, PackedInt8.of(int8.weight, int8.scale, int8.equalizer), out)()
    return out


def drawn(K: int, rows: int, E: int, width: int, seed: int = 0) -> tuple[torch.Tensor, Int8]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(K, rows, E, generator=g) * torch.randn(K, rows, 1, generator=g).exp()
    powers = torch.randint(-3, 4, (K, E), generator=g).float().exp2()
    return x, Int8.of(torch.randn(K, width, E, generator=g), powers)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("K", "rows", "E", "width"),
    [
        (1, 1, 1, 1),
        (1, 12, 8, 32),  # whole tiles of every build
        (1, 13, 9, 33),  # one more of each
        (2, 197, 64, 40),  # x_proj
        (1, 700, 200, 16),  # rows for several chunks
        (1, 5, 3000, 3),  # sums beyond 2^24, which float32 alone would round
    ],
)
def test_the_bits_are_the_definition_s(K: int, rows: int, E: int, width: int) -> None:
    x, int8 = drawn(K, rows, E, width)
    expected = int8(x)
    assert torch.equal(by_c(x, int8), expected)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)  # other chunks
        assert torch.equal(by_c(x, int8), expected)
    finally:
        torch.set_num_threads(threads)


@given(st.integers(1, 2), st.integers(1, 30), st.integers(1, 70), st.integers(1, 70), st.integers(0, 9))
def test_the_bits_are_the_definition_s_for_any_size(K: int, rows: int, E: int, width: int, seed: int) -> None:
    x, int8 = drawn(K, rows, E, width, seed)
    assert torch.equal(by_c(x, int8), int8(x))


@pytest.mark.usefixtures("library")
def test_rows_of_extreme_values() -> None:
    """Zeros give zeros, NaN stays in its row, and neither tiny nor huge rows lose their precision."""
    x, int8 = drawn(1, 6, 40, 20)
    x[0, 0] = 0
    x[0, 1, 3] = torch.nan
    x[0, 2] *= 1e-25
    x[0, 3] *= 1e25
    x[0, 4] = torch.tensor([0.5, 1.5, 2.5, 127.0]).repeat(10)  # halves, whose even neighbour is taken
    out = by_c(x, int8)[0]
    assert (out[0] == 0).all()
    assert out[1].isnan().all()
    assert torch.equal(out[2:], int8(x)[0, 2:])


def test_a_peak_below_all_bounds_is_zero() -> None:
    x, int8 = drawn(1, 1, 8, 8)
    out = by_c(x * 1e-38, int8)
    assert out.isfinite().all()
    assert torch.equal(out, int8(x * 1e-38))


def test_shapes_are_checked() -> None:
    x, int8 = drawn(1, 4, 8, 6)
    packed = PackedInt8.of(int8.weight, int8.scale, int8.equalizer)
    with pytest.raises(UsageError, match=r"x is \(1, 4, 7\)"):
        Prepared.int8_product(x[..., :7], packed, torch.empty(1, 4, 6))
    with pytest.raises(UsageError, match="out has strides"):
        Prepared.int8_product(x, packed, torch.empty(1, 6, 4).mT)


def test_the_level_with_vnni_is_preferred() -> None:
    assert list(LEVELS) == sorted(LEVELS, reverse=True)
    assert LEVELS[5][0] == "-v4-vnni"


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_the_code_around_vnni_on_any_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes with their offset, their layout and the shift of the sums: compiled with the instruction in plain C."""
    folder, built = Path(native_calls.__file__).parent, tmp_path / "libvnni.so"
    flags = ["-shared", "-fPIC", "-std=gnu11", "-O2", "-Wno-psabi", f"-I{folder}", "-include", str(SHIM)]
    subprocess.run(["cc", *flags, str(folder / "native_int8.c"), "-o", str(built), "-lm"], check=True)
    loaded = ctypes.CDLL(str(built))
    monkeypatch.setattr(native_calls, "_library", lambda: (loaded, "emulated VNNI"))
    assert native_calls.has_vnni()
    for K, rows, E, width in ((1, 1, 1, 1), (2, 30, 70, 21), (1, 13, 9, 33), (1, 5, 3000, 3)):
        x, int8 = drawn(K, rows, E, width)
        assert torch.equal(by_c(x, int8), int8(x))


def test_a_definition_without_c_adds_exactly() -> None:
    """Against integers of 64 bits, whose sums cannot be rounded."""
    x = torch.full((1, 2, 5000), 1.0)
    x[0, 1, ::2] = -1.0
    int8 = Int8.of(torch.linspace(-1, 1, 3 * 5000).view(1, 3, 5000), torch.ones(1, 5000))
    whole = (127 * x[0].long()) @ int8.weight[0].long().T
    scale = torch.tensor(1.0) * (1 / 127)
    assert torch.equal(product(x, int8.weight, int8.scale, int8.equalizer)[0], whole.float() * scale * int8.scale[0])
