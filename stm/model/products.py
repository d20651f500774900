"""Choose who computes the matrix products of a loaded model on a processor: torch's `F.linear`, or oneDNN.

On x86 `F.linear` goes to MKL. MKL does not use AVX-512 on processors of AMD, and oneDNN does: 250 against 100 to 110
GFLOP/s per core of a Zen 5 at ViM-S's shapes. With AVX2 alone MKL is the faster one: 91 against 74 to 89 GFLOP/s per
core of an EPYC. So oneDNN is chosen for AMD with AVX-512, and `F.linear` otherwise. The choice follows from the
processor and never from a clock, because the libraries round differently, and two runs must give the same bits.

`torch.ops.mkldnn` is private to torch, and nothing but `onednn` and `packed` calls it. It is compared with `F.linear`
once before it is used, and a torch that lacks it, or computes something else, keeps `F.linear` and says why
(`library`). What oneDNN cannot do also stays with
`F.linear`: gradients, tracing, other dtypes. The weights are used as they are: nothing is packed or kept.

A processor without instructions for bfloat16 or float16 takes their products in float32 and rounds the results.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stm.errors import said

# What a torch raises that lacks the private operators, or lacks them for this processor.
LACKING = (AttributeError, RuntimeError, NotImplementedError)


class Library(NamedTuple):
    """Who computes products.

    Args:
        name: "oneDNN" or "F.linear".
        reason: why, in words.
    """

    name: str
    reason: str


@cache
def library() -> Library:
    """Return the library of float32 products without a gradient on this processor."""
    if _vendor() != "AuthenticAMD" or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return Library("F.linear", "oneDNN is known to be faster on AMD's processors with AVX-512 alone")
    x, weight = torch.linspace(-1, 1, 96).view(2, 48), torch.linspace(1, -1, 1536).view(32, 48)
    try:
        product = onednn(x, weight)
    except LACKING as error:
        return Library("F.linear", f"this torch has no oneDNN operator for it: {said(error)}")
    if not torch.allclose(product, F.linear(x, weight), rtol=1e-5, atol=1e-5):
        return Library("F.linear", "this torch's oneDNN operator gives another result")
    return Library("oneDNN", "MKL, behind F.linear, does not use AVX-512 on AMD's processors")


def linear(x: Tensor, weight: Tensor, share: float = 1.0) -> Tensor:
    """Return share (x weight^T), (..., out), of x (..., in) and weight (out, in)."""
    # As rows of one matrix: of three axes F.linear makes one product or many, by layout and by who wants a gradient,
    # and the two round differently.
    rows = x.flatten(0, -2)
    if _is_emulated(x, weight):
        out = linear(rows.float(), weight.float(), share).to(x.dtype)
    elif _takes_onednn(x, weight):
        out = onednn(rows, weight)
        out = out if share == 1.0 else out.mul_(share)
    elif share == 1.0:
        out = F.linear(rows, weight)
    else:
        # beta=0 makes addmm ignore its first argument: alpha is all that is wanted of it.
        out = torch.addmm(x.new_empty(()), rows, weight.mT, beta=0, alpha=share)
    return out.unflatten(0, x.shape[:-1])


def linears(x: Tensor, weight: Tensor) -> Tensor:
    """Return one product per direction, (K, rows, out), of x (K, rows, in) with weight (K, out, in)."""
    if _is_emulated(x, weight):
        return linears(x.float(), weight.float()).to(x.dtype)
    if _takes_onednn(x, weight):
        return torch.stack([onednn(*pair) for pair in zip(x, weight, strict=True)])
    return torch.bmm(x, weight.mT)


@cache
def in_hardware(dtype: torch.dtype) -> bool:
    """Return whether this processor multiplies matrices of a half precision itself."""
    name = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}[dtype]
    try:
        return bool(getattr(torch.ops.mkldnn, name)())
    except LACKING:  # a torch without the question answers every product itself
        return True


def _is_emulated(x: Tensor, weight: Tensor) -> bool:
    """Return whether a product of half precision is faster as one of float32, whose result is rounded afterwards.

    Without instructions of its own, F.linear of bfloat16 takes 19 times as long as that of float32 (AVX2).
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype != weight.dtype:
        return False
    return x.dtype in (torch.bfloat16, torch.float16) and not in_hardware(x.dtype)


def _takes_onednn(x: Tensor, weight: Tensor) -> bool:
    # First, because a compiler follows what comes after: a compiled or exported program holds public operators only.
    if torch.compiler.is_compiling() or x.device.type != "cpu" or not x.dtype == weight.dtype == torch.float32:
        return False
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return False
    return library().name == "oneDNN" and not torch.is_autocast_enabled("cpu")  # which knows torch's own products only


def onednn(x: Tensor, weight: Tensor) -> Tensor:
    """Return x weight^T by oneDNN, for a plain weight (out, in) or one that is `packed`."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return out


def packed(weight: Tensor, rows: int) -> Tensor:
    """Return a copy of a weight in oneDNN's own layout, chosen for so many rows of x; others work, too."""
    out: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
    return out


def _vendor(path: Path = Path("/proc/cpuinfo")) -> str | None:
    """Return the maker of an x86 processor as it names itself, or None where nobody tells."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), None)
