"""Training a loaded model: gradients without further ado, in autocast too, on every backend, dense and compressed."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import stm
from stm import backends
from tests.blocks import cut

MINI = Path(__file__).parents[1] / "golden" / "dense-mini" / "vim_mini_stride8.pth"
NAMES = [name for name in ("native", "blocked", "reference") if backends.status(name)[0]]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first three blocks of the mini model: a block trains as the others do."""
    return cut(MINI, 3, tmp_path_factory.mktemp("three") / "three.pth")


def made(checkpoint: Path, backend: str, method: str | None, dtype: str | None = None) -> stm.ViM:
    dense = stm.load_checkpoint(checkpoint, image_size=64, device="cpu", backend=backend, dtype=dtype or "float32")
    return dense if method is None else stm.compress(dense, rate=0.4, method=method)


def gradients(model: stm.ViM, images: Tensor) -> Tensor:
    model.zero_grad(set_to_none=True)
    model(images).float().square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    return torch.cat(
        [parameter.grad.float().flatten() for parameter in model.parameters() if parameter.grad is not None]
    )


def test_what_is_loaded_is_in_evaluation_mode_and_requires_a_gradient(three: Path, tmp_path: Path) -> None:
    small = made(three, "auto", "stm")
    small.save_pretrained(tmp_path / "small")
    for model in (
        small,
        stm.load(tmp_path / "small", device="cpu"),
        stm.load("vim-digits", device="cpu"),
        made(three, "auto", None, "bfloat16"),
    ):
        assert not model.training
        assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())
    assert not any(
        parameter.requires_grad for parameter in small.requires_grad_(False).cast("bfloat16").parameters()
    ), "a cast keeps it"


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("method", [None, "stm", "paper"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_runs_and_trains(
    three: Path, images: Tensor, backend: str, method: str | None, dtype: torch.dtype
) -> None:
    """Its logits and gradients are those without it, as closely as the dtype allows."""
    model = made(three, backend, method)
    expected, flow = model(images).detach(), gradients(model, images)
    tolerance = {torch.bfloat16: 0.06, torch.float16: 0.01}[dtype]
    with torch.autocast("cpu", dtype=dtype):
        with torch.inference_mode():
            found, features = model(images), model.features(images)
        cast_flow = gradients(model, images)
    assert found.isfinite().all() and features.isfinite().all()
    assert float((found.float() - expected).abs().max()) <= tolerance * float(expected.abs().max())
    assert float(torch.nn.functional.cosine_similarity(flow, cast_flow, dim=0)) > 1 - tolerance


@pytest.mark.parametrize("method", [None, "stm"])
def test_a_step_of_an_optimizer_lowers_the_loss_of_a_loaded_folder(
    images: Tensor, tmp_path: Path, method: str | None
) -> None:
    made(MINI, "auto", method).save_pretrained(tmp_path / "model")
    model = stm.load(tmp_path / "model", device="cpu").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    labels, losses = torch.tensor([1, 2]), []
    for _ in range(3):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[2] < losses[1] < losses[0]
