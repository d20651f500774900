"""Who computes a loaded model's products: the same model by either library, and `F.linear` wherever oneDNN cannot."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import stm
from stm.model import products
from stm.model.products import Library

MINI = Path(__file__).resolve().parents[1] / "golden" / "dense-mini" / "vim_mini_stride8.pth"


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    products.library.cache_clear()
    yield
    products.library.cache_clear()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The weights that oneDNN multiplies with, on a processor for which it is chosen."""
    seen: list[torch.Size] = []
    onednn = products.onednn

    def counted(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        seen.append(weight.shape)
        return onednn(x, weight)

    monkeypatch.setattr(products, "library", lambda: Library("oneDNN", "this test chooses it"))
    monkeypatch.setattr(products, "onednn", counted)
    return seen


def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backend", ["native", "blocked"])
def test_both_libraries_give_the_same_logits(calls: list[torch.Size], backend: str) -> None:
    dense = stm.load_checkpoint(MINI, device="cpu", backend=backend)
    for model in (dense, stm.compress(dense, rate=0.4, method="staged")):
        with torch.inference_mode():
            ours = model(images())
            taken = len(calls)
            # in_proj, out_proj and two of x_proj in every block; of the last one in_proj's halves apart.
            assert taken == 6 * 4 + 1
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(products, "library", lambda: Library("F.linear", "this test chooses it"))
                torch.testing.assert_close(ours, model(images()), rtol=1e-4, atol=1e-5)
            assert len(calls) == taken
            calls.clear()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_processor_without_a_half_precision_takes_its_products_in_float32(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit: float32 products of the same numbers, rounded once. A gradient goes the same way."""
    g = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*shape, generator=g).to(dtype) for shape in ((2, 5, 48), (32, 48)))
    monkeypatch.setattr(products, "in_hardware", lambda asked: False)
    expected = (x.float() @ weight.float().mT).to(dtype)
    assert torch.equal(products.linear(x, weight), expected)
    assert torch.equal(products.linears(x, weight.expand(2, 32, 48)), expected)
    weight.requires_grad_()
    products.linear(x, weight).sum().backward()
    assert weight.grad is not None and weight.grad.dtype == dtype
    monkeypatch.setattr(products, "in_hardware", lambda asked: True)
    torch.testing.assert_close(products.linear(x, weight), expected, rtol=2e-2, atol=2e-2)


def test_a_torch_that_cannot_be_asked_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lacking:
        def __getattr__(self, name: str) -> None:
            raise AttributeError(name)

    products.in_hardware.cache_clear()
    monkeypatch.setattr(torch.ops, "mkldnn", Lacking())
    assert products.in_hardware(torch.bfloat16)
    products.in_hardware.cache_clear()


def test_what_needs_torch_s_own_operators_keeps_them(calls: list[torch.Size], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "in_hardware", lambda dtype: True)  # else bfloat16 runs in float32
    model = stm.load_checkpoint(MINI, device="cpu", backend="blocked")
    model(images()).sum().backward()
    assert model.layers[0].mixer.in_proj.weight.grad is not None
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        model(images())
    with torch.inference_mode():
        stm.load_checkpoint(MINI, device="cpu", dtype="bfloat16")(images())
    with torch.no_grad():
        torch.export.export(model, (images(),))
    assert not calls


@pytest.mark.parametrize(
    ("vendor", "capability", "name"),
    [
        ("AuthenticAMD", "AVX512", "oneDNN"),
        ("AuthenticAMD", "AVX2", "F.linear"),
        ("GenuineIntel", "AVX512", "F.linear"),
        (None, "DEFAULT", "F.linear"),
    ],
)
def test_the_processor_decides(monkeypatch: pytest.MonkeyPatch, vendor: str | None, capability: str, name: str) -> None:
    monkeypatch.setattr(products, "_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert products.library().name == name


def test_a_torch_without_the_operator_or_with_another_one_falls_back_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(products, "_vendor", lambda: "AuthenticAMD")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")

    def absent(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setattr(products, "onednn", absent)
    assert products.library().name == "F.linear" and "no attribute '_linear_pointwise'" in products.library().reason
    products.library.cache_clear()
    monkeypatch.setattr(products, "onednn", lambda x, weight: 1.01 * x @ weight.mT)
    assert products.library() == Library("F.linear", "this torch's oneDNN operator gives another result")


@pytest.mark.parametrize("schema", [None, "(Tensor x, Tensor weight) -> Tensor", "(Tensor x, *, int layout) -> Tensor"])
def test_an_unknown_torch_falls_back_and_says_so(monkeypatch: pytest.MonkeyPatch, schema: str | None) -> None:
    """A torch whose private operators are gone, or take other arguments: as it multiplies, and as it packs."""
    dense, x = stm.load_checkpoint(MINI, device="cpu"), images()
    with torch.inference_mode():
        expected = dense(x)
    with torch.library._scoped_library("another_mkldnn", "DEF") as library:
        for name in ("_linear_pointwise", "_reorder_linear_weight") if schema else ():
            library.define(name + str(schema))
        monkeypatch.setattr(torch.ops, "mkldnn", torch.ops.another_mkldnn)
        monkeypatch.setattr(products, "_vendor", lambda: "AuthenticAMD")
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
        products.library.cache_clear()
        assert products.library().name == "F.linear"
        assert products.library().reason.startswith("this torch has no oneDNN operator for it: ")
        served = dense.optimize(batch_size=2)
        assert served.notes[0].startswith("weights are not packed: torch's operators for it cannot be used here: ")
        with torch.inference_mode():
            torch.testing.assert_close(served(x), expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(dense(x), expected, rtol=1e-5, atol=1e-5)


def test_the_maker_of_a_processor(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\n")
    assert products._vendor(tmp_path / "cpuinfo") == "AuthenticAMD"
    assert products._vendor(tmp_path / "absent") is None
