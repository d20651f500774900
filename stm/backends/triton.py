"""The Triton backend: our own kernels, for CUDA devices. They compute in float32, and read and write any dtype."""

import torch
import triton

from stm.backends.triton_conv import conv_silu
from stm.backends.triton_norm import add_norm
from stm.backends.triton_scan import scan

__all__ = ["add_norm", "conv_silu", "scan", "status"]

OLDEST = (8, 0)  # the lowest compute capability that Triton supports


def status() -> tuple[bool, str]:
    """Return whether the Triton backend can be used on this machine, and the reason in words."""
    if not torch.cuda.is_available():
        return False, "torch sees no CUDA device"
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST:
        return (
            False,
            f"{torch.cuda.get_device_name()} has compute capability {'.'.join(map(str, capability))}, 8.0 is needed",
        )
    return True, f"Triton {triton.__version__}"
