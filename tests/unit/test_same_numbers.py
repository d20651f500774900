"""A model's numbers, plain and served: an image alone or in a batch, on any threads, in this process or another."""

import copy
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import stm
from tests.unit.test_serving import MINI

DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
SERVED = pytest.mark.parametrize("served", [False, True])


def images() -> Tensor:
    return torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def compressed() -> stm.ViM:
    return stm.compress(stm.load_checkpoint(MINI, device="cpu"), rate=0.4, method="staged")


def as_asked(compressed: stm.ViM, dtype: str, served: bool) -> nn.Module:
    model = copy.deepcopy(compressed).cast(dtype)
    return model.optimize(batch_size=4) if served else model


@DTYPES
@SERVED
def test_neither_company_nor_threads_move_an_image_s_logits(compressed: stm.ViM, dtype: str, served: bool) -> None:
    """Beyond the last digits: libraries of products sum in an order that depends on both. Again is the same."""
    model, batch = as_asked(compressed, dtype, served), images()
    before = torch.get_num_threads()
    with torch.inference_mode():
        expected = model(batch)
        assert model(batch).equal(expected)
        outcomes = {"alone": torch.cat([model(image[None]) for image in batch])}
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                outcomes[f"{threads} threads"] = model(batch)
        finally:
            torch.set_num_threads(before)
    worst = {name: float((one - expected).abs().max() / expected.abs().max()) for name, one in outcomes.items()}
    assert max(worst.values()) <= 2e-6, worst


PROGRAM = """
import hashlib, sys, torch
from tests.unit.test_same_numbers import as_asked, images
import stm

torch.set_num_threads(int(sys.argv[1]))
compressed = stm.load(sys.argv[2], device="cpu")
for dtype, served in (("float32", False), ("int8", True)):
    with torch.inference_mode():
        print(hashlib.sha256(as_asked(compressed, dtype, served)(images()).numpy().tobytes()).hexdigest())
"""


def test_another_process_gives_the_same_bytes(compressed: stm.ViM, tmp_path: Path) -> None:
    compressed.save_pretrained(tmp_path / "model")
    here = []
    for dtype, served in (("float32", False), ("int8", True)):
        with torch.inference_mode():
            logits = as_asked(compressed, dtype, served)(images())
        here.append(hashlib.sha256(logits.numpy().tobytes()).hexdigest())
    command = [sys.executable, "-c", PROGRAM, str(torch.get_num_threads()), str(tmp_path / "model")]
    there = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert there.stdout.split() == here


def test_what_half_precision_cannot_hold_is_no_number(compressed: stm.ViM) -> None:
    """Tokens of 1e6: float16 ends at 65,504, bfloat16 goes as far as float32. `stm eval` refuses what is no number."""
    model = copy.deepcopy(compressed)
    with torch.no_grad():
        model.patch_embed.weight.mul_(1e6)
    with torch.inference_mode():
        expected = model(images())
        for served in (False, True):
            assert not as_asked(model, "float16", served)(images()).isfinite().all()
        wide = copy.deepcopy(model).cast("bfloat16")(images())
    assert expected.isfinite().all()
    torch.testing.assert_close(wide, expected, rtol=0, atol=0.05 * float(expected.abs().max()))
