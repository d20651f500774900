"""VideoMamba's image models against the official code's own outputs (OpenGVLab/VideoMamba@f3427e4, image_sm, run on a
CPU): logits, the stream after every block, and the position table of another resolution.

Weights and images are drawn by seed, so the files hold outputs alone. The bound is max|a - b| / max|b| <= 1e-4 in
float32.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import stm
from stm import backends
from tests.golden.test_dense import BOUND, check_every_block

Error = Callable[[Tensor, Tensor], float]
Tell = Callable[[str, float, str], None]
State = dict[str, Tensor]
GOLDEN = Path(__file__).parent / "videomamba"


def images_of(side: int, seed: int) -> Tensor:
    """Two images, drawn in float64 as the weights are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, side, side, generator=generator, dtype=torch.float64).float()


@pytest.fixture(scope="module")
def mini_file(golden_state: Callable[..., State], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 x 64 pixels, patch 8, 65 tokens, 10 classes. Its name alone tells which model it is."""
    path = tmp_path_factory.mktemp("videomamba") / "videomamba_t8_res64.pth"
    torch.save({"model": golden_state(D=32, depth=6, tokens=65, classes=10, patch=8, seed=31)}, path)
    return path


@pytest.mark.parametrize("backend", ["reference", "blocked", "native"])
def test_every_block_equals_the_official_code(backend: str, mini_file: Path, error: Error, tell: Tell) -> None:
    available, reason = backends.status(backend)
    if not available:
        pytest.skip(f"backend {backend}: {reason}")
    expected = load_file(GOLDEN / "golden_mini.safetensors")
    model, images = stm.load_checkpoint(mini_file, device="cpu", backend=backend), images_of(64, seed=32)
    check_every_block(model, images, expected, f"VideoMamba mini, {backend}", error, tell)


def test_full_size_videomamba_tiny_equals_the_official_code(
    golden_state: Callable[..., State], tmp_path: Path, error: Error, tell: Tell
) -> None:
    expected = load_file(GOLDEN / "golden_ti.safetensors")
    path = tmp_path / "videomamba_t16_in1k_res224.pth"
    torch.save({"model": golden_state(D=192, depth=24, tokens=197, classes=1000, patch=16, seed=33)}, path)
    model = stm.load_checkpoint(path, device="cpu")
    with torch.inference_mode():
        logits = model(images_of(224, seed=34))
    errors = {name: error(logits, expected[name]) for name in ("logits", "logits_f64")}
    worst = max(errors, key=errors.__getitem__)
    tell(f"VideoMamba-Ti, {model.backend.name}", errors[worst], worst)
    assert errors[worst] <= BOUND


def test_the_table_of_another_size_is_the_one_that_the_official_code_trains_on_with(
    mini_file: Path, error: Error, tell: Tell
) -> None:
    """image_sm/main.py interpolates from 8 x 8 to 12 x 12 patches; its own model then runs at 96 pixels."""
    expected = load_file(GOLDEN / "golden_mini.safetensors")
    model = stm.load_checkpoint(mini_file, device="cpu", image_size=96)
    with torch.inference_mode():
        errors = {
            "pos_embed_12": error(model.pos_embed, expected["pos_embed_12"]),
            "logits_12": error(model(images_of(96, seed=33)), expected["logits_12"]),
        }
    worst = max(errors, key=errors.__getitem__)
    tell("VideoMamba mini at 96 pixels", errors[worst], worst)
    assert errors[worst] <= BOUND


@pytest.mark.parametrize("method", ["stm", "staged", "paper"])
def test_compressing_merges_on_the_one_side_that_there_is(method: str, mini_file: Path) -> None:
    dense, images = stm.load_checkpoint(mini_file, device="cpu"), images_of(64, seed=35)
    small = stm.compress(dense, method=method, rate=0.4, **({"fit_on": images} if method == "stm" else {}))
    assert small.schedule.cls_per_block(6) == (0,) * 6, "nothing is before the class token, and it never merges"
    assert small.schedule.tokens_per_block(6)[-1] < 65
    with torch.inference_mode():
        assert small(images).isfinite().all() and small.features(images).shape == (2, 32, 8, 8)
        assert (small.optimize(batch_size=2)(images) - small(images)).abs().max() < 1e-4
