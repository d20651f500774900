"""`optimize` of half precision: blocks without conversions where the processor has it, and float32 where it has not."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import stm
from stm.model import products
from stm.model.prepared import PreparedBlock

MINI = Path(__file__).resolve().parents[1] / "golden" / "dense-mini" / "vim_mini_stride8.pth"


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(11, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def profiled(model: nn.Module, images: Tensor) -> tuple[Tensor, int]:
    """The logits, and how often a tensor was converted on the way."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        logits = model(images)
    return logits, sum(event.count for event in profile.key_averages() if event.key == "aten::_to_copy")


@pytest.mark.parametrize("method", [None, "staged", "paper"])
def test_blocks_of_bfloat16_are_prepared_where_the_processor_has_it(
    images: Tensor, method: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As near to float32 as the model that is not served, and nothing is converted between the products."""
    monkeypatch.setattr(products, "in_hardware", lambda dtype: True)
    exact = stm.load_checkpoint(MINI, device="cpu")
    exact = exact if method is None else stm.compress(exact, rate=0.4, method=method)
    model = copy.deepcopy(exact).cast("bfloat16")
    served = model.optimize(batch_size=4)
    with torch.inference_mode():
        expected = exact(images)
        served(images[:4])  # lays the calls out
        plain, conversions_of_plain = profiled(model, images[:4])
        logits, conversions = profiled(served, images[:4])
    assert all(isinstance(block, PreparedBlock) for block in served.model.layers)
    assert float((logits - expected[:4]).norm()) < 2 * float((plain - expected[:4]).norm())
    if method != "paper":  # whose weights are computed from the running input
        assert 4 * conversions < conversions_of_plain


def test_half_precision_runs_in_float32_where_the_processor_lacks_it(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "in_hardware", lambda dtype: False)
    model = stm.load_checkpoint(MINI, device="cpu", dtype="bfloat16")
    served = model.optimize(batch_size=4)
    assert served.notes[0] == "this processor has no instructions for bfloat16: its weights run in float32"
    assert model.config.dtype == "bfloat16" and model.blocks[0].mixer.in_proj.weight.dtype == torch.bfloat16
    with torch.inference_mode():
        expected = copy.deepcopy(model).cast("float32")(images)
    torch.testing.assert_close(served(images), expected, rtol=1e-4, atol=1e-5)
