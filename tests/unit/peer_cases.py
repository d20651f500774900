"""A small dense model and images, on which the tests of peers run."""

import pytest
import torch
from torch import Tensor

from stm.config import Config, ModelConfig, Preprocess, dense_schedule
from stm.model.initialize import initialize
from stm.model.vim import ViM

MODEL = ModelConfig(
    image_size=12, patch=2, stride=2, d_model=8, depth=8, d_state=4, dt_rank=1
)  # 6 x 6 patches, class token at 18 of 37


@pytest.fixture(scope="module")
def vim() -> ViM:
    model = ViM(
        Config(
            model=MODEL,
            num_classes=5,
            schedule=dense_schedule(MODEL),
            preprocessing=Preprocess.official(MODEL.image_size),
        )
    )
    initialize(model, seed=0)
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(1))
