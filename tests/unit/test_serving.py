"""`optimize`: the same logits as the model's; what it packs or records, and what it says where it cannot."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stm
from stm import serving
from stm.errors import UsageError
from stm.serving import PackedLinear, Served

MINI = Path(__file__).resolve().parents[1] / "golden" / "dense-mini" / "vim_mini_stride8.pth"


@pytest.fixture(scope="module")
def dense() -> stm.ViM:
    return stm.load_checkpoint(MINI, device="cpu")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(11, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def packed_layers(served: Served) -> list[nn.Module]:
    return [module for module in served.modules() if isinstance(module, PackedLinear)]


@pytest.mark.parametrize("method", [None, "stm", "paper"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_logits_are_the_model_s(dense: stm.ViM, images: Tensor, method: str | None, dtype: str) -> None:
    model = stm.load_checkpoint(MINI, device="cpu", dtype=dtype)
    model = model if method is None else stm.compress(model, rate=0.4, method=method)
    served = model.optimize(batch_size=4)
    with torch.inference_mode():
        expected = model(images)
    tolerance = {"float32": 1e-5, "bfloat16": 3e-2}[dtype]
    torch.testing.assert_close(served(images), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
    assert served(images).dtype == torch.float32


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_torch_s_private_operators_are_still_a_linear_layer(share: float) -> None:
    """The parity that guards them: x W^T for rows of any number, whatever the hint was."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 40, generator=g)
    layer = PackedLinear(weight, share, 6)
    for rows in (1, 6, 17):
        x = torch.randn(rows, 3, 40, generator=g)
        torch.testing.assert_close(layer(x), share * (x @ weight.T), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_all_blocks_but_the_last_are_packed_and_the_model_is_untouched(dense: stm.ViM) -> None:
    served = dense.optimize(batch_size=2)
    assert len(packed_layers(served)) == 2 * (dense.config.model.depth - 1)
    assert not any(isinstance(module, PackedLinear) for module in dense.modules())
    assert served.notes == ()
    shared = {parameter.data_ptr() for parameter in dense.parameters()}
    assert {parameter.data_ptr() for parameter in served.model.parameters()} == shared


def test_batches_of_any_size_in_any_portions(dense: stm.ViM, images: Tensor) -> None:
    with torch.inference_mode():
        expected = dense(images)
    for batch_size in (1, 4, 64):
        for count in (1, 5, 11):
            torch.testing.assert_close(dense.optimize(batch_size=batch_size)(images[:count]), expected[:count], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("problem", ["missing", "wrong"])
def test_without_the_private_operators_it_says_so(dense: stm.ViM, images: Tensor, monkeypatch: pytest.MonkeyPatch, problem: str) -> None:
    def broken(self: PackedLinear, x: Tensor) -> Tensor:
        if problem == "missing":
            raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")
        return x @ self.weight.T * 1.01

    monkeypatch.setattr(PackedLinear, "forward", broken)
    served = dense.optimize(batch_size=4)
    assert packed_layers(served) == []
    assert served.notes[0].startswith("weights are not packed: ")
    assert ("cannot be used here" if problem == "missing" else "another result") in served.notes[0]
    with torch.inference_mode():
        assert torch.equal(served(images[:4]), dense(images[:4]))


class FakeGraph:
    """Records the calls of `torch.cuda` that a recording makes; a replay runs what was recorded."""

    def __init__(self, model: stm.ViM) -> None:
        self.model, self.events = model, list[str]()

    def Stream(self) -> "FakeGraph":
        return self

    CUDAGraph = Stream

    def current_stream(self) -> "FakeGraph":
        return self

    def wait_stream(self, other: Any) -> None:
        self.events.append("wait")

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.events.append("warm up")
        yield

    @contextmanager
    def graph(self, graph: Any) -> Iterator[None]:
        forward = self.model.forward

        def keep(images: Tensor) -> Tensor:
            self.static, self.out = images, forward(images)
            return self.out

        self.model.forward = keep  # type: ignore[method-assign]
        self.events.append("record")
        yield
        del self.model.forward

    def replay(self) -> None:
        self.events.append("replay")
        self.out.copy_(self.model(self.static))


def test_a_recorded_forward_replays_on_what_is_copied_in(dense: stm.ViM, images: Tensor) -> None:
    """The order of what CUDA graphs ask for, and that a small portion is filled up: all but the device itself."""
    model = stm.compress(dense, rate=0.4)
    with torch.inference_mode():
        expected = model(images)
    cuda = FakeGraph(model)
    run = serving._recorded(model, 4, cuda)
    assert cuda.events == ["wait", "warm up", "wait", "record"]
    served = Served(model, run, 4, exact=True)
    torch.testing.assert_close(served(images), expected, rtol=1e-5, atol=1e-5)
    assert cuda.events[4:] == ["replay"] * 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_graph_gives_the_model_s_logits(images: Tensor) -> None:
    model = stm.compress(stm.load_checkpoint(MINI, device="cuda"), rate=0.4)
    with torch.inference_mode():
        expected = model(images.cuda())
    torch.testing.assert_close(model.optimize(batch_size=4)(images.cuda()), expected, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_is_refused(dense: stm.ViM) -> None:
    with pytest.raises(UsageError, match="batch size is 0"):
        dense.optimize(batch_size=0)
    served = dense.optimize(batch_size=1)
    for shape in ((3, 64, 64), (1, 3, 64, 32), (0, 3, 64, 64)):
        with pytest.raises(UsageError, match="expected \\(B, 3, 64, 64\\)"):
            served(torch.zeros(shape))
