"""The Triton backend: our own kernels, for CUDA devices. Float32 inside; what is read and written keeps its dtype."""

import torch
import triton

from stm.backends.triton_conv import conv_silu
from stm.backends.triton_norm import add_norm
from stm.backends.triton_scan import scan

__all__ = ["add_norm", "conv_silu", "scan", "status"]

OLDEST = (8, 0)  # compute capability: what Triton supports


def status() -> tuple[bool, str]:
    """Whether the Triton backend can be used here, and the reason in words."""
    if not torch.cuda.is_available():
        return False, "torch sees no CUDA device"
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST:
        return (
            False,
            f"{torch.cuda.get_device_name()} has compute capability {'.'.join(map(str, capability))}, 8.0 is needed",
        )
    return True, f"Triton {triton.__version__}"
