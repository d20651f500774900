"""`optimize`: the same logits as the model's; what it packs or records, and what it says where it cannot."""

import copy
import io
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stm
from stm import backends
from stm.backends.native_calls import Prepared
from stm.errors import UsageError
from stm.model import serving
from stm.model.prepared import PreparedBlock
from stm.model.serving import PackedLinear, Served
from stm.peers import PEERS

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
    tolerance = {"float32": 1e-5, "bfloat16": 6e-2}[dtype]
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
            torch.testing.assert_close(
                dense.optimize(batch_size=batch_size)(images[:count]), expected[:count], rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize("problem", ["missing", "wrong"])
def test_without_the_private_operators_it_says_so(
    dense: stm.ViM, images: Tensor, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
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
        torch.testing.assert_close(served(images[:4]), dense(images[:4]), rtol=1e-5, atol=1e-5)


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
    model = stm.compress(dense, rate=0.4, method="staged")
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
    model = stm.compress(stm.load_checkpoint(MINI, device="cuda"), rate=0.4, method="staged")
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


@pytest.mark.parametrize("method", [None, "stm", "paper"])
def test_a_served_model_is_for_inference_and_says_so(dense: stm.ViM, images: Tensor, method: str | None) -> None:
    model = copy.deepcopy(dense) if method is None else stm.compress(dense, rate=0.4, method=method)
    model.train()
    served = model.optimize(batch_size=2)
    assert not served.training and model.head.training, "serving leaves the original's mode alone"
    assert served.eval() is served and not served(images).requires_grad
    for ask in (served.train, served.requires_grad_, lambda: served(images.clone().requires_grad_())):
        with pytest.raises(
            UsageError, match="what optimize returns is for inference alone: its logits have no gradient"
        ) as caught:
            ask()
        assert caught.value.hint == "train the model that optimize was called on, then optimize it again"
    with pytest.raises(UsageError, match="keeps the weights that it was made with"):
        served.load_state_dict(model.state_dict())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("method", [None, "stm", "paper"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_autocast_changes_nothing_in_a_served_model(images: Tensor, method: str | None, dtype: str) -> None:
    model = stm.load_checkpoint(MINI, device="cpu", dtype=dtype)
    model = model if method is None else stm.compress(model, rate=0.4, method=method)
    served = model.optimize(batch_size=4)
    expected = served(images)
    for cast in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=cast):
            assert torch.equal(served(images), expected)
            made_inside = model.optimize(batch_size=4)
            assert made_inside.notes == served.notes
            assert torch.equal(made_inside(images), expected)


@pytest.mark.parametrize(
    "again", [copy.deepcopy, copy.copy, lambda served: pickle.loads(pickle.dumps(served)), "torch.save"]
)
def test_a_copy_or_a_pickle_is_served_anew(dense: stm.ViM, images: Tensor, again: Any) -> None:
    served = stm.compress(dense, rate=0.4, method="staged").optimize(batch_size=3)
    if again == "torch.save":
        file = io.BytesIO()
        torch.save(served, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = again(served)
    assert other is not served and other.portion == served.portion
    assert torch.equal(other(images), served(images))


IMAGES = torch.zeros(2, 3, 64, 64)
WRONG = {
    "uint8": (IMAGES.to(torch.uint8), "images are uint8, expected floating numbers that are normalised"),
    "int64": (IMAGES.long(), "images are int64, expected floating"),
    "bool": (IMAGES > 0, "images are bool, expected floating"),
    "complex": (IMAGES.to(torch.complex64), "images are complex64, expected floating"),
    "size": (torch.zeros(2, 3, 32, 32), r"images are \(2, 3, 32, 32\), expected \(B, 3, 64, 64\)"),
    "channels": (torch.zeros(2, 1, 64, 64), r"images are \(2, 1, 64, 64\), expected \(B, 3, 64, 64\)"),
    "channels last": (torch.zeros(2, 64, 64, 3), r"images are \(2, 64, 64, 3\), expected \(B, 3, 64, 64\)"),
    "rank": (IMAGES[0], r"images are \(3, 64, 64\), expected \(B, 3, 64, 64\)"),
    "array": (IMAGES.numpy(), r"images are of type ndarray, expected a dense tensor \(B, 3, 64, 64\)"),
    "nothing": (None, "images are of type NoneType, expected a dense tensor"),
    "sparse": (IMAGES.to_sparse(), "images are a tensor of layout torch.sparse_coo, expected a dense tensor"),
    "device": (IMAGES.to("meta"), "images are on meta, expected cpu, where the model is"),
}


@pytest.mark.parametrize("problem", WRONG)
def test_images_that_no_model_takes(dense: stm.ViM, problem: str) -> None:
    wrong, said = WRONG[problem]
    model: Any = stm.compress(dense, rate=0.4, method="staged")
    for take in (model, model.features, dense, model.optimize(batch_size=2)):
        with pytest.raises(UsageError, match=said) as caught:
            take(wrong)
        assert "\n" not in caught.value.message


def test_images_of_any_floating_dtype(dense: stm.ViM, images: Tensor) -> None:
    served = dense.optimize(batch_size=4)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        expected = dense(images.to(dtype).float())
        for found in (dense(images.to(dtype)), served(images.to(dtype))):
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# What `optimize` prepares for the native backend (stm/model/prepared.py) is the packed model's forward.
native = pytest.mark.skipif(not backends.status("native")[0], reason="needs the native backend")


def plain(served: Served) -> stm.ViM:
    """The same packed model with its own blocks."""
    other = served.model.with_plan(served.model.plan, served.model.config)
    other._modules["layers"] = nn.ModuleList(
        layer.block for layer in served.model.layers if isinstance(layer, PreparedBlock)
    )
    assert len(other.layers) == other.config.model.depth
    return other


def methods(dense: stm.ViM) -> dict[str, stm.ViM]:
    """Plans with spans and step scales, and peers that look at data, want taps or leave gaps."""
    baked = {method: stm.compress(dense, rate=0.4, method=method) for method in ("stm", "paper")}
    hsp = stm.compress(dense, rate=0.4, method="paper", weights="hsp", hsp="static")
    shape = dense.config.model
    peers = {}
    for name in ("rmeeto", "hsa", "evit", "mtr", "random"):
        method = PEERS[name]
        budgets = list(method.kind.budgets(shape, method.places(shape.depth)))
        peers[name] = dense.with_plan(method.make(shape, budgets[len(budgets) // 2], 0), dense.config)
    return {"dense": dense, **baked, "hsp": hsp, **peers}


@native
def test_prepared_blocks_are_the_plain_ones(dense: stm.ViM, images: Tensor) -> None:
    for name, model in methods(dense).items():
        served = model.optimize(batch_size=4)
        expected = plain(served)
        for count in (4, 1, 3, 4):  # shapes take turns
            for part in (images[:count], images[-count:]):
                with torch.inference_mode():
                    want = expected(part)
                error = (served(part) - want).abs().max() / want.abs().max()
                assert error <= 1e-5, f"{name}: relative error {error:.1e}"


@native
def test_prepared_blocks_leave_what_they_are_given_alone(dense: stm.ViM, images: Tensor) -> None:
    model = dense.optimize(batch_size=4).model
    with torch.inference_mode():
        state = model.embed(images[:4])
        before = state.x.clone()
        first = model.classify(model.run(state))
        assert torch.equal(state.x, before)
        assert torch.equal(model.classify(model.run(state)), first)
        full, expected = model.run(state, full=True), dense.run(state, full=True)
        torch.testing.assert_close(full.stream, expected.stream, rtol=1e-4, atol=1e-4)


@native
def test_threads_have_buffers_of_their_own(images: Tensor) -> None:
    served = stm.compress(stm.load("vim-digits"), rate=0.4).optimize(batch_size=2)
    shape = served.model.config.model
    g = torch.Generator().manual_seed(0)
    batches = list(torch.randn(8, 2, shape.in_chans, shape.image_size, shape.image_size, generator=g))
    expected = [served(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for found, alone in zip(pool.map(served, batches), expected, strict=True):
                assert torch.equal(found, alone)


@native
def test_only_shapes_are_kept(dense: stm.ViM, images: Tensor) -> None:
    """A plan that places the class token anew for each image must not leave something behind for each."""
    for name, model in methods(dense).items():
        served = model.optimize(batch_size=2)
        served(images[:2])
        prepared = [layer for layer in served.model.layers if isinstance(layer, PreparedBlock)]
        kept = [len(layer._thread.kept) for layer in prepared]
        for n in range(5):
            served(images[n : n + 2])
        assert [len(layer._thread.kept) for layer in prepared] == kept, name


def test_what_is_served_stays_where_it_is(images: Tensor) -> None:
    """It cannot follow a move or a cast; and where the model that it was made of is cast, its own memory stays."""
    model = stm.load_checkpoint(MINI, device="cpu")
    served = model.optimize(batch_size=2)
    expected = served(images[:2])
    assert served.model.backend == model.backend
    with pytest.raises(UsageError, match="stays where and as it is"):
        served.to(torch.float64)
    assert torch.equal(served(images[:2]), expected)


@native
def test_what_was_laid_out_outlives_the_parameters(dense: stm.ViM) -> None:
    block = copy.deepcopy(dense.blocks[0])
    x = torch.randn(1, 5, dense.config.model.d_model)
    out = torch.empty_like(x)
    norm = Prepared.add_norm(x, None, block.norm.weight, 1e-5, None, out)
    norm()
    expected = out.clone()
    block.to(torch.float64)  # its float32 memory is free now, but for what was kept
    junk = [torch.full_like(x[0, 0], torch.nan) for _ in range(100)]
    norm()
    assert torch.equal(out, expected) and len(junk) == 100
