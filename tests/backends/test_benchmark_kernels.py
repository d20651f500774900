"""What the native scan is measured against computes the same thing: benchmarks/kernels.c against the reference."""

import importlib.util
import shutil
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest
import torch

from stm.backends import native, reference

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "kernels.py"


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    if not native.status()[0]:
        pytest.skip("the native library is not built")
    if shutil.which(str(sysconfig.get_config_var("CC") or "cc").split()[0]) is None:
        pytest.skip("there is no C compiler")
    spec = importlib.util.spec_from_file_location("kernels", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_materialising_design_is_the_same_scan(kernels: ModuleType) -> None:
    g = torch.Generator().manual_seed(0)
    u, dt = (torch.randn(2, 3, 7, 5, generator=g) for _ in range(2))
    A, D = -torch.rand(2, 5, 16, generator=g), torch.zeros(2, 5)
    B, C = (torch.randn(2, 3, 7, 16, generator=g) for _ in range(2))
    expected = reference.scan(u, dt, A, B, C, D, None, (False, True), split=True)
    found = kernels.materialising(u, reference.step_sizes(dt, None), A, B, C)()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
