"""What chooses among candidates: KL by hand, of models whose logits are known."""

import math
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from stm.backends import choose
from stm.config import Config, ModelConfig, Preprocess, dense_schedule
from stm.data.fit_images import as_set, in_memory
from stm.errors import DataError
from stm.measure.judge import divergences
from stm.model.vim import ViM
from stm.progress import Progress
from tests.pictures import picture

SHAPE = ModelConfig(image_size=2, patch=1, stride=1, in_chans=1, d_model=4, depth=2, d_state=2, dt_rank=1)
PREP = Preprocess(resize=2, crop=2, interpolation="nearest", mean=(0.0,), std=(1.0,))
CONFIG = Config(model=SHAPE, num_classes=4, schedule=dense_schedule(SHAPE), preprocessing=PREP)


class Echo(nn.Module):
    """Logits (B, 4) are the image's pixels in order, times `scale`, plus `shift` for every class."""

    def __init__(self, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.config, self.backend, self.shift = CONFIG, choose("blocked"), shift
        self.cls_token = nn.Parameter(torch.tensor(scale))

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training and not torch.is_grad_enabled()
        return images.flatten(1) * self.cls_token + self.shift


def echo(scale: float = 1.0, shift: float = 0.0) -> ViM:
    return cast("ViM", Echo(scale, shift))


def kl(p: list[float], q: list[float]) -> float:
    """Sum of P log(P / Q), from logits."""
    P, Q = ([math.exp(x) / sum(map(math.exp, row)) for x in row] for row in (p, q))
    return sum(a * math.log(a / b) for a, b in zip(P, Q, strict=True))


def test_kl_by_hand_of_each_model_on_each_image() -> None:
    rows = [[0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0], [5.0, -5.0, 0.0, 2.0]]
    samples = in_memory("mine", torch.tensor(rows).view(3, 1, 2, 2))
    found = divergences(echo(), [echo(0.5), echo(), echo(1.0, 7.0)], samples)
    assert found.shape == (3, 3) and found.dtype == torch.float64
    expected = [kl(row, [x / 2 for x in row]) for row in rows]
    assert found[0].tolist() == pytest.approx(expected, rel=1e-6)
    assert found[1].tolist() == [0, 0, 0]
    assert found[2].abs().max() < 1e-6  # what all classes share is no difference
    assert (found >= 0).all()


def test_every_model_sees_every_image_once_and_in_order() -> None:
    images = torch.randn(37, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    seen: list[Progress] = []
    found = divergences(echo(), [echo(0.5)], in_memory("mine", images), seen.append)
    expected = [kl(row, [x / 2 for x in row]) for row in images.flatten(1).tolist()]
    assert found[0].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert [step.done for step in seen] == [0, 8, 16, 24, 32, 34, 37], "half of a batch: one of two models"
    assert {step.total for step in seen} == {37}


def test_broken_images_are_passed_over_and_all_broken_is_refused(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / "mine" / f"{number}.png", number)
    (tmp_path / "mine" / "1.png").write_text("no image")
    samples = as_set(tmp_path / "mine", CONFIG)
    assert divergences(echo(), [echo(0.5)], samples).shape == (1, 2)
    for path in (tmp_path / "mine").iterdir():
        path.write_text("no image")
    with pytest.raises(DataError, match="mine: none of the 3 images could be read"):
        divergences(echo(), [echo(0.5)], samples)


def test_modes_are_given_back() -> None:
    dense, small = echo(), echo(0.5)
    dense.train()
    divergences(dense, [small], in_memory("mine", torch.randn(2, 1, 2, 2)))
    assert dense.training and small.training
