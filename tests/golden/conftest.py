"""The golden models, and how near is near: max|a - b| / max|b|. The largest error of every file is shown when all tests
have run."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import stm
from tests.conftest import PARITY


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str, float, str], None]:
    """`tell("vim_mini, native", 3e-7, "logits")`: an error against a golden file, and where in it; tests/conftest.py
    shows it."""

    def keep(file: str, error: float, where: str) -> None:
        request.node.user_properties.append((PARITY, (file, error, where)))

    return keep


@pytest.fixture(scope="session")
def error() -> Callable[[Tensor, Tensor], float]:
    def relative(found: Tensor, expected: Tensor) -> float:
        return ((found.double() - expected.double()).abs().max() / expected.double().abs().max()).item()

    return relative


@pytest.fixture(scope="session")
def vim_ti(vim_ti_state: Callable[[], dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory) -> stm.ViM:
    """Full-size ViM-Ti with the golden script's weights (seed 1)."""
    path = tmp_path_factory.mktemp("vim_ti") / "vim_midclstok.pth"
    torch.save(vim_ti_state(), path)
    return stm.load_checkpoint(path, device="cpu")


@pytest.fixture(scope="session")
def mini() -> Path:
    """The mini models of the official code, trainers' pickles."""
    return Path(__file__).parent / "dense-mini"


@pytest.fixture(scope="session")
def golden_state() -> Callable[..., dict[str, Tensor]]:
    """Draws a state dict in the official names: `state_dict` of weights.py."""
    spec = importlib.util.spec_from_file_location("golden_weights", Path(__file__).parent / "weights.py")
    assert spec is not None and spec.loader is not None
    weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(weights)
    made: Callable[..., dict[str, Tensor]] = weights.state_dict
    return made


@pytest.fixture(scope="session")
def mini_model(
    golden_state: Callable[..., dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., stm.ViM]:
    """Makes the golden mini models: 64 x 64 pixels, patch 8, 65 tokens, 10 classes."""

    def make(depth: int, seed: int, backend: str = "auto", device: str = "cpu") -> stm.ViM:
        path = tmp_path_factory.mktemp("mini") / "vim_midclstok.pth"
        torch.save(golden_state(D=32, depth=depth, tokens=65, classes=10, patch=8, seed=seed), path)
        return stm.load_checkpoint(path, device=device, image_size=64, backend=backend)

    return make
