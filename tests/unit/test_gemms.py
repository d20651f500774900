"""The matrix products alone, against those that the forward really runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import stm
from stm.bench.gemms import LIBRARIES, alone, gemms_of, libraries

MINI = Path(__file__).resolve().parents[1] / "golden" / "dense-mini" / "vim_mini_stride8.pth"


class Products(TorchDispatchMode):
    """Sums up the multiply-accumulates of every matrix product and of the patches' convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        if name in ("mm", "bmm"):
            self.total += out.numel() * args[0].shape[-1]
        elif name == "addmm":
            self.total += out.numel() * args[1].shape[-1]
        elif name == "convolution":
            self.total += out.numel() * args[1][0].numel()
        return out


@pytest.mark.parametrize("rate", [0, 0.4])
def test_they_are_those_of_the_forward(rate: float) -> None:
    dense = stm.load_checkpoint(
        MINI, device="cpu", backend="reference"
    )  # the native one has Delta's product inside its scan
    vim = stm.compress(dense, rate=rate, method="staged")
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), Products() as run:
        vim(images)
    with torch.no_grad(), Products() as alone_run:
        alone(vim, 2)()
    assert run.total == alone_run.total == 2 * sum(gemm.rows * gemm.weight.numel() for gemm in gemms_of(vim))


@pytest.mark.parametrize("library", libraries())
def test_every_library_computes_the_same_products(library: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*size, generator=generator) for size in ((5, 48), (32, 48)))
    torch.testing.assert_close(LIBRARIES[library](weight, 5)(x), x @ weight.mT)
    alone(stm.load_checkpoint(MINI, device="cpu"), 2, library)()


def test_a_library_that_this_torch_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(weight: torch.Tensor, rows: int) -> Any:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setitem(LIBRARIES, "oneDNN", absent)
    assert "oneDNN" not in libraries() and "F.linear" in libraries()
