"""An official-format pickle of full-size ViM-Ti, optimizer state included, through the whole job on real JPEGs."""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import stm
from stm.commands import compress
from stm.options import EvalOptions, MergeOptions, ModelOptions

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "memory.py"


@pytest.fixture(scope="module")
def checkpoint(vim_ti_state: Callable[[], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = vim_ti_state()
    parameters = [torch.nn.Parameter(value.clone()) for value in state.values()]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    args = argparse.Namespace(
        model="vim_tiny_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2", input_size=224
    )
    path = tmp_path_factory.mktemp("official") / "vim_t.pth"
    torch.save(
        {
            "model": state,
            "optimizer": optimizer.state_dict(),
            "lr_scheduler": {},
            "epoch": 299,
            "scaler": {},
            "args": args,
        },
        path,
    )
    return path


@pytest.mark.slow
def test_end_to_end(checkpoint: Path, shared: Callable[[str], Path], tmp_path: Path) -> None:
    """JPEGs, schedule, folder, reload: the logits are bitwise those of the model before it was saved."""
    out = tmp_path / "out"
    report = compress.compress(
        str(checkpoint),
        ModelOptions(device="cpu"),
        MergeOptions(method="staged"),
        EvalOptions(data=shared("data/imagenet-val-300"), limit=8, workers=0),
        out=out,
    )
    assert report.eval is not None
    assert (report.eval.n, report.eval.failed) == (8, 0)

    images: Tensor = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    small = stm.compress(stm.load_checkpoint(checkpoint, device="cpu"), rate=0.4, method="staged")
    loaded = stm.load(out, device="cpu")
    with torch.inference_mode():
        assert torch.equal(loaded(images), small(images))
    assert loaded.schedule.tokens_per_block(24) == (197,) * 13 + (99,) * 11


@pytest.mark.slow(seconds=60)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc for peak memory")
def test_peak_memory(checkpoint: Path, shared: Callable[[str], Path], tmp_path: Path) -> None:
    """At most the bare import's, 2.5 times the weights, and what one dense forward of the same batch adds.

    Of so few images none is for the fit: no candidates run, which would take a minute and no more memory.
    """
    images = sorted(shared("data/imagenet-val-300").glob("*.JPEG"))
    for image in images[:32]:
        (tmp_path / image.name).symlink_to(image)
    words = [
        sys.executable,
        str(BENCHMARK),
        str(checkpoint),
        str(tmp_path),
        "32",
        "32",
        "--rounds",
        "1",
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
