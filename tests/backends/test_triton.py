"""The Triton backend against the definition (stm/backends/reference.py) in float64, values and gradients, on ordinary
and extreme inputs.

On a CUDA device where there is one; elsewhere under Triton's interpreter (tests/conftest.py), at milliseconds a token:
shapes are tiny.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stm.backends import reference
from stm.backends.reference import add_norm as reference_add_norm
from stm.config import Config, ModelConfig, Preprocess, dense_schedule
from stm.errors import UsageError
from stm.model.initialize import initialize
from stm.model.vim import ViM
from tests.backends.cases import BOTH, double, gradients, inputs, torch_checks
from tests.backends.cases import check as check_on_cpu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton", reason="there is no Triton for this platform")

from stm.backends import Backend, triton_conv, triton_scan  # noqa: E402
from stm.backends import triton as backend  # noqa: E402

SPANS = (1, 2, 4, 7, 1, 3)
OPTIONAL: list[set[str]] = [
    set(),
    {"dt_bias"},
    {"scale"},
    {"gap"},
    {"dt_weight", "dt_bias", "scale", "gap"},
]


def there(values: dict[str, Any]) -> dict[str, Any]:
    return {name: v.to(DEVICE) if isinstance(v, Tensor) else v for name, v in values.items()}


def check(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    check_on_cpu(got.cpu(), expected, tolerance)


def check_gradients(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], values: dict[str, Any]) -> None:
    found, expected = gradients(ours, there(values)), gradients(theirs, double(values))
    for name in expected:
        try:
            check(found[name], expected[name])
        except AssertionError as error:
            raise AssertionError(f"gradient of {name}: {error}") from None


@pytest.mark.parametrize(("L", "E", "N"), [(1, 1, 1), (2, 8, 16), (7, 5, 3), (3, 20, 5)])
def test_scan(L: int, E: int, N: int) -> None:
    values = inputs(L=L, E=E, N=N, batch=1)
    check(backend.scan(**there(values)), reference.scan(**double(values)))
    check(backend.scan(**there(values), split=True), reference.scan(**double(values), split=True))


@pytest.mark.parametrize("block", [2, 8, 64])
def test_scan_with_any_share_of_the_channels(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program takes fewer channels where there are few images; more than there are is masked."""
    values = inputs(L=2, E=20, N=4, batch=1)
    sizes = {"N": 4, "BLOCK_N": 4, "BLOCK_E": block, "CHUNK": 16, "num_warps": 1}
    monkeypatch.setattr(triton_scan.Walk, "block", lambda self, states: sizes)
    check(backend.scan(**there(values)), reference.scan(**double(values)))


def test_large_batches_give_a_program_more_channels() -> None:
    def block(batch: int, E: int = 768, N: int = 16) -> int:
        meta = {
            name: v.to("meta") if isinstance(v, Tensor) else v
            for name, v in inputs(K=2, batch=1, L=1, E=E, N=N).items()
        }
        for name in ("u", "dt", "B", "C"):
            meta[name] = meta[name].expand(-1, batch, -1, -1)
        walk = triton_scan.Walk.of(*(meta[name] for name in ("u", "dt", "A", "B", "C", "D")), None, None, None, BOTH)
        return walk.block(triton_scan.STATES)["BLOCK_E"]

    assert [block(batch) for batch in (1, 8, 16, 128)] == [8, 8, 16, 64]
    assert block(128, N=64) == 16  # as many states a thread
    assert block(128, E=5) == 8


@pytest.mark.parametrize("optional", OPTIONAL, ids=lambda names: "+".join(sorted(names)))
def test_scan_with_bias_scale_and_gap(optional: set[str]) -> None:
    values = inputs(L=4, E=5, N=3, **dict.fromkeys(optional, True))
    check(backend.scan(**there(values)), reference.scan(**double(values)))
    if "scale" in optional:
        values |= {
            "scale": 1 + torch.rand(2, 4, generator=torch.Generator().manual_seed(0)),
            "z": None,
        }  # a factor for each image
        check(backend.scan(**there(values)), reference.scan(**double(values)))


@pytest.mark.parametrize("reverse", [(False,), (True,), (True, False), (True, True)])
def test_scan_of_any_directions(reverse: tuple[bool, ...]) -> None:
    values = inputs(K=len(reverse), L=3, E=5, N=3, batch=1) | {"reverse": reverse}
    check(backend.scan(**there(values)), reference.scan(**double(values)))


@pytest.mark.filterwarnings(
    "ignore:overflow encountered in exp:RuntimeWarning"
)  # of the interpreter: SiLU(-100) is 0 by way of inf
@pytest.mark.parametrize(
    "change",
    [
        lambda v: v | {"dt": v["dt"] * 30},  # from no step at all to one that forgets everything
        lambda v: v | {"dt": torch.full_like(v["dt"], -12.0)},  # steps of 6e-6: softplus to its last digits
        lambda v: v | {"A": v["A"] * 1e-7},
        lambda v: v | {"A": v["A"] * 1e5},
        lambda v: v | {"u": v["u"] * 1e-30},
        lambda v: v | {"z": v["z"] * 100},
    ],
    ids=["steps far apart", "tiny steps", "no decay", "all decay", "tiny inputs", "wide gates"],
)
def test_scan_of_extreme_inputs(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    values = change(inputs(L=5, E=8, N=3, batch=1))
    check(backend.scan(**there(values)), reference.scan(**double(values)))


def test_scan_of_slices() -> None:
    """B and C side by side in one tensor and z beside x, as a model has them, and tokens cut off, as its last block
    does."""
    values = inputs(L=5, E=6, N=3)
    selected = torch.cat([values["B"], values["C"], values["B"]], -1).to(DEVICE)
    wide = torch.cat([values["z"], values["z"]], -1).to(DEVICE)
    slices = there(values) | {"B": selected[..., :3], "C": selected[..., 3:6], "z": wide[..., 6:]}
    check(backend.scan(**slices), reference.scan(**double(values)))
    cut = {name: v[:, :, :4] if name in ("u", "dt", "B", "C") else v for name, v in slices.items()} | {
        "z": slices["z"][:, 1:]
    }
    check(
        backend.scan(**cut),
        reference.scan(**double({n: v.cpu() if isinstance(v, Tensor) else v for n, v in cut.items()})),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scan_in_half_precision_keeps_its_state_in_float32(dtype: torch.dtype) -> None:
    values = inputs(L=8, E=8, N=3, batch=1)
    values |= {name: values[name].to(dtype) for name in ("u", "B", "C", "z")}
    found = backend.scan(**there(values), split=True)
    assert found.dtype == dtype
    expected = reference.scan(**double(values), split=True)
    assert (found.cpu().double() - expected).abs().max() <= expected.abs().max() * torch.finfo(
        dtype
    ).eps / 2 * 1.01  # one rounding
    check(backend.scan(**there(values)), reference.scan(**double(values)), 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("optional", OPTIONAL, ids=lambda names: "+".join(sorted(names)))
def test_gradients_of_the_scan(optional: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_scan, "CHUNK", 2)  # several chunks, the last a short one
    values = inputs(L=3, E=5, N=3, **dict.fromkeys(optional, True))
    check_gradients(backend.scan, reference.scan, values)
    if len(optional) > 1:
        values |= {"scale": 1 + torch.rand(2, 3, generator=torch.Generator().manual_seed(0)), "z": None}
        check_gradients(backend.scan, reference.scan, values)


def test_gradients_of_each_direction_and_of_several_blocks_of_channels() -> None:
    values = inputs(L=2, E=20, N=3, batch=1) | {"z": None, "split": True}
    check_gradients(backend.scan, reference.scan, values)


@pytest.mark.parametrize("factor", [1e-6, 1e4])
def test_gradients_where_nothing_or_everything_decays(factor: float) -> None:
    values = inputs(L=3, E=4, N=3, batch=1)
    check_gradients(backend.scan, reference.scan, values | {"A": values["A"] * factor})


def conv_inputs(L: int = 6, E: int = 5, W: int = 4, K: int = 2, sizes: tuple[int, ...] | None = None) -> dict[str, Any]:
    g = torch.Generator().manual_seed(L + E + W)
    x = torch.randn(2, L, 2 * E, generator=g)[..., :E]  # rows apart, as a chunk of in_proj's output
    return {
        "x": x,
        "w": torch.randn(K, E, W, generator=g),
        "b": torch.randn(K, E, generator=g),
        "reverse": BOTH[:K],
        "sizes": sizes,
    }


@pytest.mark.parametrize("sizes", [None, SPANS, (1,) * 6, (1, 1, 1, 9, 1, 2)])
@pytest.mark.parametrize("W", [1, 4, 5])
def test_convolution_of_any_width_with_and_without_spans(sizes: tuple[int, ...] | None, W: int) -> None:
    values = conv_inputs(W=W, sizes=sizes)
    check(backend.conv_silu(**there(values)), reference.conv_silu(**double(values)))


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_conv, "BLOCK_L", 4)
    monkeypatch.setattr(triton_conv, "BLOCK_E", 4)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("L", [1, 2, 4, 6])
def test_convolution_across_tiles(L: int) -> None:
    for sizes in (None, SPANS[:L]):
        values = conv_inputs(L=L, sizes=sizes) | {"reverse": (True, False)}
        check(backend.conv_silu(**there(values)), reference.conv_silu(**double(values)))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(("sizes", "W", "E"), [(None, 4, 5), (None, 2, 3), (SPANS, 4, 3), ((1, 2, 1, 5, 1, 1), 3, 3)])
def test_gradients_of_the_convolution(sizes: tuple[int, ...] | None, W: int, E: int) -> None:
    values = conv_inputs(E=E, W=W, sizes=sizes)
    check_gradients(backend.conv_silu, reference.conv_silu, values | {"x": values["x"][:1]})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_convolution_in_half_precision(dtype: torch.dtype) -> None:
    values = conv_inputs(sizes=SPANS)
    values["x"] = values["x"].to(dtype)
    found = backend.conv_silu(**there(values))
    assert found.dtype == dtype
    check(found, reference.conv_silu(**double(values)), torch.finfo(dtype).eps)


@pytest.mark.parametrize("with_h", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_add_norm_and_its_gradients(dtype: torch.dtype, with_h: bool) -> None:
    g = torch.Generator().manual_seed(0)
    values: dict[str, Any] = {
        "x": torch.randn(2, 3, 20, generator=g),
        "weight": torch.randn(20, generator=g),
        "eps": 1e-5,
    }
    values["h"] = torch.randn(2, 3, 20, generator=g).to(dtype) if with_h else None
    total, out = backend.add_norm(**there(values), dtype=dtype)
    expected = reference_add_norm(**double(values), dtype=torch.float64)
    assert (total.dtype, out.dtype) == (torch.float32, dtype)
    tolerance = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
    check(total, expected[0], 1e-6)
    check(out, expected[1], tolerance)

    def both(function: Any, dtype: torch.dtype) -> Callable[..., Tensor]:
        return lambda **v: torch.cat([each.flatten().to(v["x"].dtype) for each in function(**v, dtype=dtype)])

    found, wanted = (
        gradients(both(backend.add_norm, dtype), there(values)),
        gradients(both(reference_add_norm, torch.float64), double(values)),
    )
    for name in wanted:
        check(found[name], wanted[name], 2 * tolerance)
    leaf = values["x"].clone().to(DEVICE).requires_grad_()  # only one of the outputs is used
    backend.add_norm(leaf, None, values["weight"].to(DEVICE), 1e-5, torch.float32)[1].sum().backward()
    assert leaf.grad is not None


@torch_checks
def test_the_operators_hold_what_torch_asks_of_them() -> None:
    """Schema, fake kernels, autograd registration and tracing, by torch.library.opcheck."""
    values = there(inputs(L=1, E=2, N=1, batch=1, dt_bias=True, scale=True, gap=True))
    tensors = [
        values[name].requires_grad_() for name in ("u", "dt", "A", "B", "C", "D", "z", "dt_bias", "scale", "gap")
    ]
    torch.library.opcheck(torch.ops.stm.triton_scan.default, (*tensors, list(BOTH), False))
    conv = there(conv_inputs(L=2, E=2, W=2))
    leaves = [conv[name].contiguous().requires_grad_() for name in ("x", "w", "b")]
    torch.library.opcheck(torch.ops.stm.triton_conv.default, (*leaves, list(BOTH), [1, 2]))
    x, h, weight = (torch.randn(*shape, device=DEVICE).requires_grad_() for shape in ((1, 2, 4), (1, 2, 4), (4,)))
    torch.library.opcheck(torch.ops.stm.triton_add_norm.default, (x, h, weight, 1e-5, torch.float32))
    torch.library.opcheck(torch.ops.stm.triton_add_norm.default, (x, None, weight, 1e-5, torch.bfloat16))


def test_a_model_computes_the_same() -> None:
    """Dense and with spans and step scales: the whole seam, the last block's cut walks included."""
    import stm

    model = ModelConfig(image_size=8, patch=2, stride=2, in_chans=3, d_model=4, depth=3, d_state=2, dt_rank=1)
    config = Config(model=model, num_classes=3, schedule=dense_schedule(model), preprocessing=Preprocess.official(8))
    expected = initialize(ViM(config), seed=0)
    images = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    chosen = Backend("triton", backend.conv_silu, backend.scan, backend.add_norm)
    for small in (expected, stm.compress(expected, stages=(1,))):
        ours = ViM(small.config, chosen)
        ours.load_state_dict(small.state_dict())
        with torch.inference_mode():
            check(ours.to(DEVICE)(images.to(DEVICE)), small(images).double())


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("dt", lambda v: v[:, :, 1:]),
        ("B", lambda v: v[..., :1]),
        ("z", lambda v: v[:, 1:]),
        ("A", lambda v: v[:1]),
        ("D", lambda v: v[:, 1:]),
    ],
)
def test_shapes_that_do_not_fit_are_refused(name: str, change: Callable[[Tensor], Tensor]) -> None:
    values = there(inputs(L=2, E=3, N=2))
    with pytest.raises(UsageError, match=rf"^{name} is \("):
        backend.scan(**values | {name: change(values[name])})


def test_convolutions_that_do_not_fit_are_refused() -> None:
    for sizes in ((1,) * 5, (0,) + (1,) * 5):
        with pytest.raises(UsageError, match="expected 6 sizes of at least 1"):
            backend.conv_silu(**there(conv_inputs(sizes=sizes)))
    with pytest.raises(UsageError, match=f"width {triton_conv.WIDEST + 1}, expected 1 to"):
        backend.conv_silu(**there(conv_inputs(W=triton_conv.WIDEST + 1)))


def test_nothing_is_nothing() -> None:
    assert backend.scan(**there(inputs(batch=0, L=3, E=4, N=2))).shape == (0, 3, 4)
    assert backend.conv_silu(**there(conv_inputs(L=0))).shape == (2, 2, 0, 5)
    empty = torch.zeros(0, 3, 4, device=DEVICE)
    assert backend.add_norm(empty, empty, torch.ones(4, device=DEVICE), 1e-5, torch.float32)[1].shape == (0, 3, 4)
