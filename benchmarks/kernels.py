"""Build kernels.c with the flags of the native backend, at the level that this processor runs it at, and call it."""

import ctypes
import runpy
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from stm.backends import native, native_calls

ROOT = Path(__file__).resolve().parents[1]


@cache
def library() -> ctypes.CDLL:
    """Return the compiled kernels. `setup.py` is read for its flags and installs nothing."""
    with patch("setuptools.setup"):
        flags = runpy.run_path(str(ROOT / "setup.py"))
    level = next(name for name, description in native_calls.LEVELS.values() if description == native.status()[1])
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "kernels.so"
        words = [
            *flags["FLAGS"],
            *flags["OPENMP"],
            *flags["LEVELS"][level],
            "-I",
            str(ROOT / "stm" / "backends"),
            "-fPIC",
            "-shared",
        ]
        source = str(ROOT / "benchmarks" / "kernels.c")
        subprocess.run([*sysconfig.get_config_var("CC").split(), *words, source, "-o", str(out)], check=True)
        kernels = ctypes.CDLL(str(out))  # the file may go once it is loaded
    kernels.limit.restype, kernels.limit_width.restype = ctypes.c_float, ctypes.c_int64
    return kernels


def limit(updates: int) -> Callable[[], None]:
    """Return a call with the arithmetic of so many state updates on one thread, without any memory.

    One update is one state of one channel at one token.
    """
    count = ctypes.c_int64(-(-updates // library().limit_width()))
    return lambda: library().limit(count)


def materialising(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Callable[[], Tensor]:
    """Return a call that runs both directions of a scan in the design that materialises, without skip and gate.

    The inputs are laid out for it beforehand, so that only the design itself is timed.

    Args:
        u: (2, B, L, E); delta the same, after its softplus. A (2, E, N), B and C (2, B, L, N), as in
            `stm.backends.reference.scan`.

    Returns:
        A call that returns (2, B, L, E).
    """

    def walking(v: Tensor) -> Tensor:
        return torch.stack([v[0], v[1].flip(1)])  # (2, B, L, X) in walking order

    inputs = [walking(v).permute(1, 3, 2, 0).contiguous() for v in (u, delta)]  # (B, E, L, 2)
    rows = [walking(v).permute(1, 2, 0, 3).contiguous() for v in (B, C)]  # (B, L, 2, N)
    _, batch, length, channels = u.shape
    y = torch.empty_like(inputs[0])
    expanded = [torch.zeros(batch, channels, length, 2 * A.shape[-1]) for _ in range(2)]
    tensors = [*inputs, A.transpose(0, 1).contiguous(), *rows, y, *expanded]
    sizes = [ctypes.c_int64(n) for n in (batch, channels, length, A.shape[-1])]

    def run() -> Tensor:
        pointers = [ctypes.c_void_p(v.data_ptr()) for v in tensors]
        library().materialising(*pointers, *sizes, torch.get_num_threads())
        forward, backward = y.permute(3, 0, 2, 1)
        return torch.stack([forward, backward.flip(1)])

    return run
