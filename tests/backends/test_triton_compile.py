"""Every Triton kernel compiles without a GPU for NVIDIA's architectures, down to machine code, and keeps its values in
registers."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hang import HANG

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux" or platform.machine() != "x86_64", reason="Triton's compiler is for Linux on x86"
    ),
]
KERNELS = {
    "conv_forward",
    "conv_backward",
    "scan_forward",
    "gate_forward",
    "scan_backward",
    "norm_forward",
    "norm_backward",
}


@pytest.mark.parametrize(("architecture", "dtype"), [(80, "float32"), (90, "bfloat16")])
def test_every_kernel_compiles(architecture: int, dtype: str, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, ROOT / "tests/backends/compile_kernels.py", str(architecture), dtype],
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    compiled = [json.loads(line) for line in run.stdout.splitlines()]
    assert {each["kernel"] for each in compiled} == KERNELS
    assert (
        len(compiled) == 12
    )  # with and without spans, scale, gap, kept states, pending output, and for a single image
    for each in compiled:
        assert each["spilled"] == 0, each
        assert each["kernel"] != "scan_forward" or each["shared"] == 0, each  # no thread waits for another's states
        print(f"sm_{architecture}, {dtype}: {each}")
