"""Compiles every Triton kernel for an NVIDIA architecture, without a GPU: a program of its own, run by
test_triton_compile.py.

    python tests/backends/compile_kernels.py 90 bfloat16

The operators are called as a model calls them, on CPU tensors, under a driver that names the architecture and launches
nothing: what is compiled is what a GPU would be given, specialisations included. Prints a line of JSON a kernel, with
ptxas's registers and spills.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from stm.backends import triton as backend

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Driver:
    """What Triton asks of a driver until a kernel would run."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 2**16}

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        return lambda *args: None

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[object, object, int, int, int]:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(kernel)
            file.flush()
            text = subprocess.run(
                [CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True
            ).stdout
        found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", text)}
        line = {
            "kernel": name,
            "registers": found["REG"],
            "spilled": found["STACK"] + found["LOCAL"],
            "shared": found["SHARED"],
        }
        print(json.dumps(line), flush=True)
        return object(), object(), found["REG"], 0, 1024


def main(architecture: int, dtype: torch.dtype) -> None:
    triton.runtime.driver.set_active(Driver(architecture))
    K, B, L, E, N, D = 2, 64, 33, 768, 16, 384  # ViM-S, of fewer tokens
    x = torch.zeros(B, L, 2 * E, dtype=dtype)[..., :E].requires_grad_()  # half of what in_proj gives, as z
    w, b = torch.zeros(K, E, 4, requires_grad=True), torch.zeros(K, E, requires_grad=True)
    both = (False, True)
    with torch.no_grad():  # what a dense model runs
        u = backend.conv_silu(x, w, b, both)
    backend.conv_silu(x, w, b, both, sizes=(2,) * L).sum().backward()
    dt = torch.zeros(K, B, L, E, dtype=dtype)
    _, B_t, C_t = torch.zeros(K, B, L, 24 + 2 * N, dtype=dtype).split([24, N, N], -1)
    A, skip = -torch.ones(K, E, N), torch.zeros(K, E)
    backend.scan(u, dt, A, B_t, C_t, skip, x.detach(), both, dt_bias=skip)
    one = u[:, :1]  # of a single image: fewer channels a program
    backend.scan(one, dt[:, :1], A, B_t[:, :1], C_t[:, :1], skip, None, both, dt_bias=skip, split=True)
    extras = {"scale": torch.ones(L), "gap": torch.zeros(K, B, L, E)}
    backend.scan(
        u.requires_grad_(), dt, A, B_t, C_t, skip, None, both, split=True, dt_bias=skip, **extras
    ).sum().backward()
    residual, weight = torch.zeros(B, L, D, requires_grad=True), torch.ones(D)
    with torch.no_grad():
        backend.add_norm(residual, None, weight, 1e-5, dtype)
    total, out = backend.add_norm(residual, torch.zeros(B, L, D, dtype=dtype), weight, 1e-5, dtype)
    (total.sum() + out.sum()).backward()


if __name__ == "__main__":
    main(int(sys.argv[1]), getattr(torch, sys.argv[2]))
