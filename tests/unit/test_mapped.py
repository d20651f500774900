"""A folder that is replaced while a model of it is loaded: the weights are mapped from its file, and stay what they
were (safetensors' issue 764)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import stm
from stm.commands import compress
from stm.options import MergeOptions, ModelOptions
from tests.hang import HANG

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "tests" / "golden" / "dense-mini" / "vim_mini_stride8.pth"
HOLDER = """
import sys, stm, torch
model = stm.load("out", device="cpu", backend="reference")
images = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
for line in sys.stdin:
    print(*model(images)[0].tolist(), flush=True)
"""


def compressed(rate: float) -> None:
    merge, source = MergeOptions(method="staged", rate=rate), ModelOptions(image_size=64, device="cpu")
    compress.compress(str(MINI), source, merge, eval=False, out="out", force=True)


def images() -> torch.Tensor:
    return torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)


def test_a_model_that_is_loaded_keeps_its_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the process that replaces its folder, and in another. The new folder is what the next load gets."""
    monkeypatch.chdir(tmp_path)
    compressed(0.4)
    here = stm.load("out", device="cpu")
    state = {name: tensor.clone() for name, tensor in here.state_dict().items()}
    before = here(images())
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command, environment = [sys.executable, "-c", HOLDER], os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, **pipes) as holder:

        def there() -> str:
            holder.stdin.write("\n")
            holder.stdin.flush()
            return holder.stdout.readline()

        first = there()
        assert first
        for rate in (0.2, 0.0):
            compressed(rate)
            assert all(torch.equal(tensor, state[name]) for name, tensor in here.state_dict().items())
            assert torch.equal(here(images()), before)
            assert there() == first
        assert not torch.equal(stm.load("out", device="cpu")(images()), before)
        here.save_pretrained("out", force=True)
        assert torch.equal(stm.load("out", device="cpu")(images()), before) and there() == first
        holder.communicate(timeout=HANG)
        assert holder.returncode == 0
