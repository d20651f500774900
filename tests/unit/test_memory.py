"""What a forward holds: counted allocations, against sums by hand; and what must never be built."""

import os
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

import stm
from stm.bench.memory import allocations, peak_bytes

MINI = Path(__file__).resolve().parents[1] / "golden" / "dense-mini" / "vim_mini_stride8.pth"
CPU = torch.device("cpu")
BACKENDS = ["native", "blocked"]


def test_allocations_in_order_and_their_peak() -> None:
    def call() -> None:
        a = torch.zeros(1000)
        b = torch.zeros(500)
        del a
        torch.zeros(100)
        del b

    assert allocations(call) == [4000, 2000, -4000, 400, -400, -2000]
    assert peak_bytes(call, CPU) == 6000


def test_the_profiler_s_lines_do_not_reach_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    allocations(lambda: torch.zeros(10))
    os.write(2, b"ours\n")
    assert capfd.readouterr() == ("", "ours\n")


def model(backend: str) -> stm.ViM:
    """50 tokens, 6 blocks."""
    try:
        return stm.load_checkpoint(MINI, device="cpu", backend=backend)
    except stm.StmError as error:
        pytest.skip(error.message)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def peak(vim: stm.ViM, images: Tensor) -> int:
    with torch.inference_mode():
        vim(images)  # what is made once
        found = peak_bytes(lambda: vim(images), CPU)
    assert found is not None
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", [None, "staged", "paper"])
def test_nothing_of_a_state_for_each_token_is_built(backend: str, method: str | None) -> None:
    """(B, L, E, N): the recurrence's states, which a materialising scan holds for all tokens at once. Less than half of
    it: the largest are the images and, of `blocked`, a buffer of 2 MB whatever the batch."""
    vim = model(backend)
    shape, batch = vim.config.model, 32
    states = 4 * batch * shape.tokens * shape.d_inner * shape.d_state
    vim = vim if method is None else stm.compress(vim, rate=0.4, method=method)
    with torch.inference_mode():
        assert max(allocations(lambda: vim(torch.zeros(batch, 3, 64, 64)))) < states / 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_that_merges_early_holds_less(backend: str, images: Tensor) -> None:
    """One block's tensors are the peak, so that it falls with the tokens of the block that has most of them beside a
    residual."""
    dense = model(backend)
    assert peak(stm.compress(dense, stages=[1]), images) < peak(dense, images)
    assert peak(stm.compress(dense, schedule="sweep", rate=0.4), images) < peak(dense, images)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_that_merges_late_holds_no_more(backend: str, images: Tensor) -> None:
    """The blocks before the first stage are the dense model's, and so is their peak."""
    dense = model(backend)
    assert peak(stm.compress(dense, rate=0.2, method="staged"), images) <= peak(dense, images)


def test_so_it_is_with_the_buffers_that_optimize_keeps(images: Tensor) -> None:
    """Counted in a first run, which takes them: all lengths share them, and images pass through the scan one after the
    other."""
    dense = model("auto")

    def first(vim: stm.ViM) -> int:
        found = peak_bytes(partial(vim.optimize(batch_size=8), images), CPU)
        assert found is not None
        return found

    assert first(stm.compress(dense, stages=[1])) < first(dense)
    assert first(stm.compress(dense, rate=0.2, method="staged")) <= first(dense)
    if dense.backend.name == "native":
        assert first(dense) < peak(dense, images)


@pytest.mark.parametrize("stage", [1, 3])
def test_training_a_compressed_model_holds_less(stage: int, images: Tensor) -> None:
    """Autograd keeps every block's tensors, so that all that is merged counts."""
    dense = model("auto")

    def step(vim: stm.ViM) -> int:
        for parameter in vim.parameters():
            parameter.requires_grad_(True)
        vim(images).sum().backward()  # the gradients are made once
        found = peak_bytes(lambda: vim(images).sum().backward(), CPU)
        assert found is not None
        return found

    assert step(stm.compress(dense, stages=[stage])) < 0.95 * step(dense)
