"""The Vim-B of FastVim's authors, with a LayerNorm on its scans, against their code's own outputs.

The model class of insitro/FastVim (models/vim.py, and its Mamba with `use_norm_after_ssm`) ran as it is, on a CPU in
float64, with torch equations in the place of its CUDA kernels: 64 x 64 pixels, patch 8, D=32, 6 blocks.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import stm
from stm import backends
from stm.checkpoint.official import read, to_official
from stm.errors import CheckpointError
from stm.measure import flops
from tests.golden.weights import state_dict

GOLDEN = Path(__file__).parent / "scan-norm" / "golden.safetensors"


def drawn() -> tuple[dict[str, Tensor], Tensor]:
    """The weights and the images, in the order in which they were drawn."""
    state = state_dict(D=32, depth=6, tokens=65, classes=10, patch=8, seed=51)
    g = torch.Generator().manual_seed(52)
    for block in range(6):
        for kind, first in (("weight", 1.0), ("bias", 0.0)):
            state[f"layers.{block}.mixer.layernorm.{kind}"] = (
                first + 0.2 * torch.randn(64, generator=g, dtype=torch.float64).float()
            )
    return state, torch.randn(2, 3, 64, 64, generator=g, dtype=torch.float64).float()


def saved(folder: Path, state: dict[str, Tensor]) -> Path:
    """As Lightning writes it."""
    whole = {f"{holder}.{name}": value for holder in ("backbone", "ema.module") for name, value in state.items()}
    torch.save({"state_dict": whole, "epoch": 299}, folder / "Vim_base_withlayernorm_midclstok.ckpt")
    return folder / "Vim_base_withlayernorm_midclstok.ckpt"


@pytest.mark.parametrize("backend", ["reference", "blocked", "native"])
def test_logits_equal_the_official_code(backend: str, tmp_path: Path, error: Callable[[Tensor, Tensor], float]) -> None:
    if not backends.status(backend)[0]:
        pytest.skip(f"backend {backend}: {backends.status(backend)[1]}")
    state, images = drawn()
    model = stm.load(saved(tmp_path, state), image_size=64, device="cpu", backend=backend)
    expected = load_file(GOLDEN)["logits"]
    with torch.inference_mode():
        full = model.classify(model.run(model.embed(images), full=True))
        served = model.optimize(batch_size=2)(images)
        assert max(error(logits, expected) for logits in (model(images), full, served)) <= 1e-4
    assert model.config.model.scan_norm
    assert flops.parameters(model.config.model, 10) == sum(p.numel() for p in model.parameters())
    back = to_official(model.state_dict())
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    small = stm.compress(model, rate=0.3, method="paper")
    small.save_pretrained(tmp_path / "out")
    with torch.inference_mode():
        assert torch.equal(stm.load(tmp_path / "out", device="cpu", backend=backend)(images), small(images))


def test_a_fastvim_is_named(tmp_path: Path) -> None:
    """It has the same norm, and no class token."""
    state, _ = drawn()
    state["pos_embed"] = state["pos_embed"][:, 1:].clone()
    del state["cls_token"]
    for backbone in (False, True):
        with pytest.raises(CheckpointError, match="a FastVim, by its norm and without a class token"):
            read(saved(tmp_path, state), backbone=backbone)
