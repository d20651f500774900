"""The golden models, and how near is near: max|a - b| / max|b|."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import stm


@pytest.fixture(scope="session")
def error() -> Callable[[Tensor, Tensor], float]:
    def relative(found: Tensor, expected: Tensor) -> float:
        return ((found.double() - expected.double()).abs().max() / expected.double().abs().max()).item()

    return relative


@pytest.fixture(scope="session")
def vim_ti(vim_ti_state: Callable[[], dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory) -> stm.ViM:
    """Full-size ViM-Ti with the golden script's weights (seed 1)."""
    path = tmp_path_factory.mktemp("vim_ti") / "weights.pth"
    torch.save(vim_ti_state(), path)
    return stm.load_checkpoint(path, device="cpu")


@pytest.fixture(scope="session")
def mini() -> Path:
    """The mini models of the official code, trainers' pickles."""
    return Path(__file__).parent / "dense-mini"
