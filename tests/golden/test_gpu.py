"""The golden suite on a CUDA device, with every backend that there is for it, in float32 without TF32."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import stm
from stm import backends
from tests.golden.test_dense import BOUND, streams_and_logits
from tests.golden.test_peers import HERE, RMEETO, check_rmeeto, check_topvim
from tests.golden.test_stm import MINI, PATCHES, names, options

Error = Callable[[Tensor, Tensor], float]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")]


@pytest.fixture(params=["triton", "mamba_ssm", "blocked"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    available, reason = backends.status(request.param, "cuda")
    if not available:
        pytest.skip(f"backend {request.param}: {reason}")
    with torch.backends.cudnn.flags(allow_tf32=False):  # of the patch embedding
        yield request.param


def on_gpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cuda() for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("checkpoint", "golden"), [("vim_mini", "golden"), ("vim_mini_stride8", "golden_vim_mini_stride8")]
)
def test_every_block_equals_the_official_code(
    checkpoint: str, golden: str, backend: str, mini: Path, error: Error
) -> None:
    expected = on_gpu(load_file(mini / f"{golden}.safetensors"))
    model = stm.load_checkpoint(mini / f"{checkpoint}.pth", device="cuda", backend=backend)
    streams, full, logits = streams_and_logits(model, expected["inputs"])
    errors = {f"stream.{i}": error(stream, expected[f"stream.{i}"]) for i, stream in enumerate(streams)}
    errors |= {"logits": error(logits, expected["logits"]), "full": error(full, expected["logits_f64"])}
    worst = max(errors, key=errors.__getitem__)
    print(f"{checkpoint}, {backend}: largest error {errors[worst]:.2e} ({worst})")
    assert errors[worst] <= BOUND


@pytest.mark.parametrize("name", names())
def test_compressed_models(name: str, backend: str, mini: Path, error: Error) -> None:
    golden = on_gpu(load_file(MINI))
    dense = stm.load_checkpoint(mini / "vim_mini_stride8.pth", device="cuda", backend=backend)
    with torch.inference_mode():
        found = error(stm.compress(dense, **options(name, PATCHES["mini"]))(golden["inputs"]), golden[name])
    print(f"{name}, {backend}: error {found:.2e}")
    assert found <= BOUND


def test_full_size_vim_tiny(
    backend: str,
    shared: Callable[[str], Path],
    vim_ti_state: Callable[[], dict[str, Any]],
    tmp_path: Path,
    error: Error,
) -> None:
    images = load_file(shared("golden/inputs_224_seed7.safetensors"))["inputs"].cuda()
    torch.save(vim_ti_state(), tmp_path / "vim_midclstok.pth")
    dense = stm.load_checkpoint(tmp_path / "vim_midclstok.pth", device="cuda", backend=backend)
    expected = on_gpu(load_file(shared("golden/dense-full/golden_vim_ti.safetensors")))
    streams, _, logits = streams_and_logits(dense, images)
    assert error(torch.stack([stream[:, 98] for stream in streams], 1), expected["cls_stream"]) <= BOUND
    assert error(logits, expected["logits"]) <= BOUND
    for name, compressed in on_gpu(load_file(shared("golden/stm/golden_vim_ti.safetensors"))).items():
        with torch.inference_mode():
            found = error(stm.compress(dense, **options(name, PATCHES["vim_ti"]))(images), compressed)
        print(f"{name}, {backend}: error {found:.2e}")
        assert found <= BOUND


@pytest.mark.parametrize("name", RMEETO)
def test_rmeeto(name: str, backend: str, mini_model: Callable[..., stm.ViM], error: Error) -> None:
    images = load_file(HERE / "rmeeto/inputs_mini.safetensors")["inputs"].cuda()
    expected = on_gpu(load_file(HERE / f"rmeeto/golden_{name}.safetensors"))
    check_rmeeto(mini_model(depth=8, seed=13, backend=backend, device="cuda"), RMEETO[name], images, expected, error)


@pytest.mark.parametrize(("depth", "seed"), [(8, 14), (16, 15)])
def test_topvim(depth: int, seed: int, backend: str, mini_model: Callable[..., stm.ViM], error: Error) -> None:
    images = load_file(HERE / "topvim/inputs_mini.safetensors")["inputs"].cuda()
    expected = on_gpu(load_file(HERE / f"topvim/golden_mini{depth}.safetensors"))
    check_topvim(mini_model(depth=depth, seed=seed, backend=backend, device="cuda"), images, expected, error)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_agrees(dtype: str, backend: str, mini: Path, error: Error) -> None:
    images = load_file(mini / "golden.safetensors")["inputs"].cuda()
    half, whole = (
        stm.load_checkpoint(mini / "vim_mini.pth", device="cuda", dtype=d, backend=backend) for d in (dtype, "float32")
    )
    with torch.inference_mode():
        assert error(half(images), whole(images)) <= 5e-2


def test_it_can_be_compiled_and_exported_and_captured(backend: str, mini: Path, error: Error) -> None:
    """One node an operator for torch.compile and torch.export; a CUDA graph replays what was run."""
    if backend == "blocked":
        pytest.skip("tested on the CPU")
    images = load_file(mini / "golden.safetensors")["inputs"].cuda()
    small = stm.compress(
        stm.load_checkpoint(mini / "vim_mini.pth", device="cuda", backend=backend), saving=0.2, method="staged"
    )
    with torch.inference_mode():
        expected = small(images)
        assert error(torch.compile(small, fullgraph=True, backend="aot_eager")(images), expected) <= 1e-5
        assert error(torch.export.export(small, (images,)).module()(images), expected) <= 1e-5
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = small(images)
        graph.replay()
        assert error(captured, expected) <= 1e-5
    torch.compiler.reset()
