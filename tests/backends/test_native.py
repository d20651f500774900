"""The native backend against the definition (stm/backends/reference.py) in float64: values, gradients, extreme
inputs."""

import ctypes
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stm import backends
from stm.backends import native, native_calls, reference
from stm.errors import BackendError, UsageError
from tests.backends.cases import BOTH, check, double, inputs, torch_checks

AVAILABLE, REASON = native.status()
SOURCES = Path(__file__).resolve().parents[2] / "stm" / "backends"
pytestmark = pytest.mark.skipif(not AVAILABLE, reason=REASON)


OPTIONAL: list[set[str]] = [
    {"dt_weight"},
    {"dt_bias"},
    {"scale"},
    {"gap"},
    {"dt_weight", "dt_bias", "scale", "gap"},
]
each_option = pytest.mark.parametrize("optional", OPTIONAL, ids=lambda names: "+".join(sorted(names)))


def libraries() -> list[Any]:
    """Every build that this processor can run: each has its own vectors and its own exp2."""
    if not AVAILABLE:
        return []
    folder = Path(native_calls.__file__).parent
    level = ctypes.CDLL(str(folder / "libstm.so")).stm_level()
    return [(folder / f"libstm{name}.so", text) for n, (name, text) in native_calls.LEVELS.items() if n <= level]


@pytest.fixture(params=libraries(), ids=lambda library: library[1])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    path, text = request.param
    loaded = ctypes.CDLL(str(path))
    monkeypatch.setattr(native_calls, "_library", lambda: (loaded, text))


def check_scan(values: dict[str, Any], **options: Any) -> None:
    check(native.scan(**values, **options), reference.scan(**double(values), **options))


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("N", [1, 3, 16, 64])
@pytest.mark.parametrize("E", [1, 16, 24, 64, 100])
def test_scan_of_any_size(E: int, N: int) -> None:
    check_scan(inputs(E=E, N=N))


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("L", [1, 2, 5, 15, 16, 17, 33, 50])
def test_scan_of_any_length(L: int) -> None:
    """Walks are cut into blocks of 8 tokens, and their rests into 2 and 1."""
    check_scan(inputs(L=L), split=True)


@pytest.mark.parametrize("reverse", [(False,), (True,), (True, False), (True, True)])
def test_scan_of_any_directions(reverse: tuple[bool, ...]) -> None:
    check_scan(inputs(K=len(reverse)) | {"reverse": reverse})


@each_option
def test_scan_with_options(optional: set[str]) -> None:
    values = inputs(**dict.fromkeys(optional, True))
    check_scan(values)
    check_scan(values | {"z": None})
    if "scale" in optional:
        check_scan(values | {"scale": torch.rand(2, 19)})  # a factor for each image


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    "change",
    [
        {"dt": lambda v: v * 0 + 1e4},  # Delta huge: the state forgets at once
        {"dt": lambda v: v * 0 - 100},  # Delta a denormal number
        {"dt": lambda v: v * 30},
        {"A": lambda v: v * 1e-7},  # the state never forgets
        {"A": lambda v: v * 1e6},  # the exponent leaves float's range
        {"A": lambda v: v * 0},
        {"u": lambda v: v * 1e-40, "B": lambda v: v * 1e3},  # denormal tokens
        {"u": lambda v: v * 1e15, "C": lambda v: v * 1e15},
        {"z": lambda v: v * 100},
    ],
    ids=["huge Delta", "tiny Delta", "wild Delta", "slow", "fast", "no decay", "denormal", "large", "wild gate"],
)
def test_scan_of_extreme_inputs(change: dict[str, Callable[[Tensor], Tensor]]) -> None:
    values = inputs(L=67)
    check_scan(values | {name: f(values[name]) for name, f in change.items()})


@pytest.mark.usefixtures("library")
def test_a_slow_state_keeps_its_precision_over_a_long_walk() -> None:
    """Decays near 1 multiply 2000 times: an error of theirs would add up."""
    values = inputs(K=1, batch=1, L=2000, E=16, N=1)
    values |= {
        "A": torch.full_like(values["A"], -1e-3),
        "u": torch.ones_like(values["u"]),
        "B": torch.ones_like(values["B"]),
    }
    check_scan(values | {"C": torch.ones_like(values["C"])})


def test_nan_is_not_hidden() -> None:
    for name in ("u", "dt", "A", "B", "C", "z"):
        values = inputs()
        values[name] = values[name].clone()
        values[name].view(-1)[7] = torch.nan
        assert native.scan(**values).isnan().any(), name


def test_strided_inputs_are_read_in_place() -> None:
    """B, C and dt as slices of x_proj's output, u and z as slices of in_proj's, and one whose channels are apart."""
    values = inputs()
    wide = torch.randn(2, 2, 19, 48)
    values |= {"B": wide[..., 5:21], "C": wide[..., 21:37], "u": torch.randn(2, 2, 19, 50)[..., 3:27]}
    values |= {"z": torch.randn(2, 19, 48)[..., 24:], "dt": torch.randn(2, 2, 24, 19).mT}
    check_scan(values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    values = inputs()
    small = {name: v.to(dtype) if name in ("u", "dt", "B", "C", "z") else v for name, v in values.items()}
    out = native.scan(**small)
    assert out.dtype == dtype
    wide = {name: v.float() if isinstance(v, Tensor) else v for name, v in small.items()}
    assert out.equal(native.scan(**wide).to(dtype))


def test_threads_do_not_change_the_result() -> None:
    values = inputs(batch=3, E=150)
    once = native.scan(**values)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads % 2 + 1)
        assert native.scan(**values).equal(once)
    finally:
        torch.set_num_threads(threads)


def conv_inputs(L: int = 19, E: int = 24, W: int = 4, K: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(L + E + W)
    return torch.randn(2, L, E, generator=g), torch.randn(K, E, W, generator=g), torch.randn(K, E, generator=g)


SIZES = [None, (1,) * 19, (2, 1) * 9 + (1,), (1, 3, 4, 5, 9, 1, 2, 2, 1, 1, 7, 1, 1, 4, 3, 2, 1, 1, 6)]


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("E", [1, 24, 100])
def test_conv_with_and_without_spans(E: int, sizes: tuple[int, ...] | None) -> None:
    tensors = conv_inputs(E=E)
    check(
        native.conv_silu(*tensors, BOTH, sizes=sizes),
        reference.conv_silu(*(v.double() for v in tensors), BOTH, sizes=sizes),
        tolerance=1e-6,
    )


@pytest.mark.parametrize("W", [1, 2, 3, 6])
def test_conv_of_any_width(W: int) -> None:
    x, w, b = conv_inputs(W=W)
    for sizes in SIZES:
        check(
            native.conv_silu(x, w, b, BOTH, sizes=sizes),
            reference.conv_silu(x.double(), w.double(), b.double(), BOTH, sizes=sizes),
        )


@pytest.mark.parametrize(("L", "reverse"), [(1, (False,)), (1, (True,)), (2, (True, False)), (3, (True,))])
def test_conv_of_short_walks(L: int, reverse: tuple[bool, ...]) -> None:
    x, w, b = conv_inputs(L=L, K=len(reverse))
    wide = torch.cat([x, x], -1)[..., :24]  # rows apart, as a chunk of in_proj's output
    for values in (x, 1e4 * x, wide):
        check(
            native.conv_silu(values, w, b, reverse),
            reference.conv_silu(values.double(), w.double(), b.double(), reverse),
        )


def gradients(f: Callable[..., Tensor], tensors: list[Tensor], weight: Tensor) -> tuple[Tensor, ...]:
    leaves = [v.detach().clone().requires_grad_() for v in tensors]
    return torch.autograd.grad((f(*leaves) * weight.to(leaves[0])).sum(), leaves)


def check_gradients(values: dict[str, Any], **options: Any) -> None:
    names = [name for name, v in values.items() if isinstance(v, Tensor)]
    fixed = {name: v for name, v in values.items() if name not in names} | options

    def run(scan: Any) -> Callable[..., Tensor]:
        return lambda *tensors: scan(**dict(zip(names, tensors, strict=True)), **fixed)

    weight = torch.randn(native.scan(**values, **options).shape, generator=torch.Generator().manual_seed(0))
    got = gradients(run(native.scan), [values[name] for name in names], weight)
    expected = gradients(run(reference.scan), [values[name].double() for name in names], weight)
    for name, a, b in zip(names, got, expected, strict=True):
        try:
            check(a, b)
        except AssertionError as error:
            raise AssertionError(f"gradient of {name}: {error}") from None


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(("L", "E", "N"), [(1, 5, 3), (16, 16, 16), (19, 24, 16), (37, 100, 3), (33, 70, 64)])
def test_gradients_of_the_scan(L: int, E: int, N: int) -> None:
    check_gradients(inputs(L=L, E=E, N=N))


@each_option
def test_gradients_with_options(optional: set[str]) -> None:
    values = inputs(**dict.fromkeys(optional, True))
    check_gradients(values)
    check_gradients(values | {"z": None})
    check_gradients({name: v for name, v in values.items() if name != "z"} | {"z": None}, split=True)
    if "scale" in optional:
        check_gradients(values | {"scale": 1 + torch.rand(2, 19)})


@pytest.mark.parametrize("reverse", [(False,), (True,), (True, True)])
def test_gradients_of_any_directions(reverse: tuple[bool, ...]) -> None:
    check_gradients(inputs(K=len(reverse)) | {"reverse": reverse})


def test_gradients_of_extreme_inputs() -> None:
    values = inputs(L=40)
    check_gradients(values | {"dt": values["dt"] * 10})
    check_gradients(values | {"A": values["A"] * 1e-6})
    check_gradients(values | {"A": values["A"] * 1e4})


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("sizes", SIZES)
def test_gradients_of_the_conv(sizes: tuple[int, ...] | None) -> None:
    for tensors in (conv_inputs(E=70), conv_inputs(W=2)):
        weight = torch.randn(2, 2, 19, tensors[0].shape[-1], generator=torch.Generator().manual_seed(0))
        got = gradients(lambda *v: native.conv_silu(*v, BOTH, sizes=sizes), list(tensors), weight)
        expected = gradients(
            lambda *v: reference.conv_silu(*v, BOTH, sizes=sizes), [v.double() for v in tensors], weight
        )
        for a, b in zip(got, expected, strict=True):
            check(a, b)


def norm_inputs(D: int, pending: bool = True) -> tuple[Tensor, Tensor | None, Tensor]:
    g = torch.Generator().manual_seed(D)
    x, h = torch.randn(2, 5, D, generator=g), torch.randn(2, 5, D, generator=g)
    return x, h if pending else None, torch.randn(D, generator=g)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("factor", [1e-3, 1, 1e4])
@pytest.mark.parametrize("pending", [True, False])
@pytest.mark.parametrize("D", [1, 24, 100])
def test_add_norm_and_its_gradients(D: int, pending: bool, factor: float) -> None:
    x, h, weight = norm_inputs(D, pending)
    tensors = [v for v in (factor * x, h, weight) if v is not None]

    def run(add_norm: Any) -> Callable[..., Tensor]:
        def both(*given: Tensor) -> Tensor:
            total, norm = add_norm(given[0], given[1] if pending else None, given[-1], 1e-5, given[0].dtype)
            return torch.cat([total / factor, norm])

        return both

    check(run(native.add_norm)(*tensors), run(reference.add_norm)(*(v.double() for v in tensors)), 1e-6)
    mixed = torch.randn(4, 5, D, generator=torch.Generator().manual_seed(1))
    got, expected = (
        gradients(run(f), values, mixed)
        for f, values in ((native.add_norm, tensors), (reference.add_norm, [v.double() for v in tensors]))
    )
    for a, b in zip(got, expected, strict=True):
        check(a, b)


@pytest.mark.parametrize(
    ("source", "structure", "layout"),
    [
        ("native_norm.c", "norm_args", native_calls.NORM),
        ("native_conv.c", "conv_args", native_calls.CONV),
        ("native_scan.h", "scan_args", native_calls.SCAN),
    ],
)
def test_the_layouts_are_those_of_the_c_structures(source: str, structure: str, layout: native_calls.Layout) -> None:
    text = (SOURCES / source).read_text(encoding="utf-8")
    body = re.sub(r"/\*.*?\*/", "", text[: text.index(f"}} {structure};")].rpartition("{")[2], flags=re.S)
    fields: dict[str, list[str]] = {"int64_t": [], "view": [], "const": []}
    order = []
    for kind, names in re.findall(r"(int64_t|view|const) ([^;]+);", body):
        fields[kind] += re.findall(r"(\w+)(?=,|$)", names)
        order.append(kind)
    assert tuple(map(tuple, fields.values())) == layout
    assert order == sorted(order, key=list(fields).index)  # integers, then views, then pointers


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("columns", [1, 16, 44, 56, 80])  # one to five vectors of AVX-512
@pytest.mark.parametrize("rows", [1, 5, 23, 24, 25, 101])
def test_product_of_many_rows_with_few_columns(rows: int, columns: int) -> None:
    g = torch.Generator().manual_seed(rows + columns)
    x, weight = torch.randn(2, rows, 40, generator=g), torch.randn(2, columns, 40, generator=g)
    packed = native_calls.for_product(weight)
    out = torch.full((2, rows, packed.shape[-1]), torch.nan)
    native_calls.Prepared.product(x, packed, out)()
    check(out[..., :columns], torch.bmm(x.double(), weight.double().mT), 1e-6)
    assert not out[..., columns:].any()


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_threads_share_a_product(threads: int) -> None:
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 29, 40, generator=g), native_calls.for_product(torch.randn(3, 20, 40, generator=g))
    out, before = torch.empty(3, 29, 32), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        native_calls.Prepared.product(x, weight, out)()
    finally:
        torch.set_num_threads(before)
    check(out, torch.bmm(x.double(), weight.double()), 1e-6)


def test_a_product_of_strided_tensors_is_refused() -> None:
    x, weight, out = torch.randn(1, 4, 8), native_calls.for_product(torch.randn(1, 3, 8)), torch.empty(1, 4, 16)
    apart = (x.mT.contiguous().mT, weight, out), (x, weight, out.mT.contiguous().mT)
    for changed in (*apart, (x, weight[..., :3].contiguous(), out[..., :3].contiguous())):
        with pytest.raises(UsageError, match="expected it contiguous and the width"):
            native_calls.Prepared.product(*changed)


@torch_checks
def test_the_operators_hold_what_torch_asks_of_them() -> None:
    """Schema, fake kernels, autograd registration and tracing, by torch.library.opcheck."""
    x, w, b = (v.requires_grad_() for v in conv_inputs())
    torch.library.opcheck(torch.ops.stm.native_conv, (x, w, b, list(BOTH), None))
    torch.library.opcheck(torch.ops.stm.native_conv, (x, w, b, list(BOTH), list(SIZES[3] or ())))
    for optional in (set(), OPTIONAL[-1]):
        values = inputs(**dict.fromkeys(optional, True))
        tensors = [
            values.get(name) for name in ("u", "dt", "A", "B", "C", "D", "z", "dt_weight", "dt_bias", "scale", "gap")
        ]
        leaves = [None if v is None else v.requires_grad_() for v in tensors]
        torch.library.opcheck(torch.ops.stm.native_scan, (*leaves, list(BOTH), False))
    for tensors in (norm_inputs(24), norm_inputs(24, pending=False)):
        leaves = [None if v is None else v.requires_grad_() for v in tensors]
        torch.library.opcheck(torch.ops.stm.native_add_norm, (*leaves, 1e-5))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("dt", lambda v: v[:, :, 1:]),
        ("B", lambda v: v[..., :3]),
        ("z", lambda v: v[:, 1:]),
        ("A", lambda v: v[:1]),
        ("D", lambda v: v[:, 1:]),
        ("dt_weight", lambda v: v[:, 1:]),
    ],
)
def test_shapes_that_do_not_fit_are_refused(name: str, change: Callable[[Tensor], Tensor]) -> None:
    values = inputs(dt_weight=name == "dt_weight")
    with pytest.raises(UsageError, match=rf"^{name} is \("):
        native.scan(**values | {name: change(values[name])})


def test_sizes_that_do_not_fit_are_refused() -> None:
    for sizes in ((1,) * 18, (0,) + (1,) * 18):
        with pytest.raises(UsageError, match="expected 19 sizes of at least 1"):
            native.conv_silu(*conv_inputs(), BOTH, sizes=sizes)


def test_without_a_library_the_reason_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an install without a compiler: `auto` takes torch alone and says so."""
    monkeypatch.setattr(native_calls, "__file__", str(tmp_path / "native.py"))
    native_calls._library.cache_clear()
    try:
        available, reason = native.status()
        assert not available
        assert reason.startswith("the native library cannot be loaded: ")
        chosen = backends.choose()
        assert chosen.name == "blocked"
        assert chosen.fallbacks == (f"native is not available: {reason}",)
        with pytest.raises(BackendError, match="native is not available"):
            backends.choose("native")
        with pytest.raises(BackendError, match="cannot be loaded"):
            native.conv_silu(*conv_inputs(), BOTH)
    finally:
        native_calls._library.cache_clear()
