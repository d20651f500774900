"""mamba-ssm's and causal-conv1d's CUDA kernels: a second opinion, and the choice for machines without Triton.

These kernels walk forward only, with tokens innermost in memory. So both directions become one call: the backward
direction is flipped, the directions lie side by side as channels, and B and C form two groups. Every other backend
needs neither flips nor copies.

Only `selective_scan_cuda` and causal-conv1d are imported, never mamba_ssm itself, which imports transformers. The same
kernels also come from the Hub, built by Hugging Face's `kernels`. That is code from the network, so the user asks for
it, by a commit.

Sources: state-spaces/mamba, csrc/selective_scan/selective_scan.cpp; Dao-AILab/causal-conv1d,
causal_conv1d/cpp_functions.py; huggingface/kernels-community, mamba-ssm/torch-ext.
"""

import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stm.backends import AddNorm, ConvSilu, Scan, conv
from stm.backends.operators import operator
from stm.backends.reference import add_norm, gated, projected, step_sizes
from stm.errors import BackendError, said

__all__ = ["add_norm", "conv_silu", "from_hub", "hub_status", "scan", "status"]

INSTALL = 'MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation "mamba-ssm>=2.3.2.post1" "causal-conv1d>=1.5"'
REPO = "kernels-community/mamba-ssm"
INSTALL_HUB = "pip install kernels einops transformers"  # the Hub's package imports the last two


def status() -> tuple[bool, str]:
    """Return whether the installed kernels can be used, and the reason in words."""
    try:
        _kernels("")
    except BackendError as error:
        return False, f"{error.message}: {error.hint}"
    return True, "mamba-ssm's and causal-conv1d's CUDA kernels"


def hub_status(revision: str) -> tuple[bool, str]:
    """Return whether kernels of the Hub could be fetched, and the reason in words. Nothing is fetched."""
    if not re.fullmatch("[0-9a-f]{40}", revision):
        return False, f"it is asked for by the commit of {REPO} to fetch and run: kernels@ and its 40 hex digits"
    missing = [name for name in INSTALL_HUB.split()[2:] if find_spec(name) is None]
    if missing:
        return False, f"{', '.join(missing)} not installed: {INSTALL_HUB}"
    return True, f"{REPO} of the Hub at {revision}"


def from_hub(revision: str) -> tuple[ConvSilu, Scan, AddNorm]:
    """Fetch the Hub's kernels of a commit now, and return `conv_silu`, `scan` and `add_norm` that run them.

    Raises:
        BackendError: the kernels cannot be fetched or loaded.
    """
    _kernels(revision)
    return partial(conv_silu, source=revision), partial(scan, source=revision), add_norm


def conv_silu(
    x: Tensor,
    w: Tensor,
    b: Tensor,
    reverse: tuple[bool, ...],
    *,
    sizes: tuple[int, ...] | None = None,
    source: str = "",
) -> Tensor:
    """Return what `stm.backends.reference.conv_silu` returns. The span form, unknown to causal-conv1d, runs in torch.

    Args:
        source: the commit of the Hub's kernels; "" for the installed ones.
    """
    if sizes is not None:
        return conv.conv_silu(x, w, b, reverse, sizes=sizes)
    out: Tensor = _conv(_side_by_side([x] * len(reverse), reverse), w.flatten(0, 1), b.flatten(), source)
    return _apart(out, reverse)


def scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    reverse: tuple[bool, ...],
    *,
    dt_weight: Tensor | None = None,
    dt_bias: Tensor | None = None,
    scale: Tensor | None = None,
    gap: Tensor | None = None,
    split: bool = False,
    source: str = "",
) -> Tensor:
    """Return what `stm.backends.reference.scan` returns.

    The kernel has no gap: it decays and injects by one Delta. With a gap it gets all of the elapsed time as Delta, and
    the input u Delta / elapsed, so that the product Delta u is the right one. Its D u would then be wrong, so D u is
    added here.

    Args:
        source: the commit of the Hub's kernels; "" for the installed ones.
    """
    dt = projected(dt, dt_weight)
    # The kernel has a softplus of its own, and nothing can act between that and its walk, as scale and gap must.
    softplus = scale is None and gap is None
    delta, x = dt if softplus else step_sizes(dt, scale, dt_bias), u  # (K, B, L, E)
    if gap is not None:
        elapsed = delta + gap
        x, delta = u * (delta / elapsed.clamp_min(1e-30)), elapsed
    y: Tensor = _scan(
        *(_side_by_side(v.to(u.dtype), reverse) for v in (x, delta)),
        A.float().flatten(0, 1),
        *(_side_by_side(v.to(u.dtype), reverse).unflatten(1, (len(reverse), -1)) for v in (B, C)),
        None if gap is not None else D.float().flatten(),
        dt_bias.float().flatten() if softplus and dt_bias is not None else None,
        softplus,
        source,
    )
    y = _apart(y, reverse)  # (K, B, L, E)
    if gap is not None:
        y = y + D[:, None, None] * u
    return (y if split else gated(y, z)).to(u.dtype)


def _side_by_side(v: Tensor | Sequence[Tensor], reverse: Sequence[bool]) -> Tensor:
    """Return the directions (K, B, L, X) as channels (B, K X, L), each in walking order."""
    return torch.cat([(v[k].flip(1) if back else v[k]).mT for k, back in enumerate(reverse)], 1).contiguous()


def _apart(v: Tensor, reverse: Sequence[bool]) -> Tensor:
    """Return channels (B, K X, L) as directions (K, B, L, X): inverts `_side_by_side`."""
    parts = v.chunk(len(reverse), 1)
    return torch.stack([part.mT.flip(1) if back else part.mT for part, back in zip(parts, reverse, strict=True)])


# The operators, on tensors as mamba-ssm takes them: tokens innermost, in walking order.

_SCAN = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? bias, bool softplus, str source"
_CONV = "Tensor x, Tensor w, Tensor b, str source"


def _like_first(first: Tensor, *others: Any) -> Tensor:
    return first.new_empty(first.shape)


def _gradients(grad: Tensor, *inputs: Any) -> list[Tensor]:
    return [v.new_empty(v.shape) for v in inputs if isinstance(v, Tensor)]


@operator(f"mamba_scan_backward(Tensor grad, {_SCAN}) -> Tensor[]", fake=_gradients)
def _scan_backward(grad: Tensor, *inputs: Any) -> list[Tensor]:
    u, delta, A, B, C, D, bias, softplus, source = inputs
    kernels = _kernels(source)
    # The operator keeps its inputs only, so the states are computed again.
    _, states, *_ = kernels.scan(u, delta, A, B, C, D, None, bias, softplus)
    grads = kernels.scan_backward(
        u, delta, A, B, C, D, None, bias, grad.contiguous(), states, None, None, softplus, False
    )
    return [g for g, v in zip(grads[:7], inputs[:7], strict=True) if v is not None]


@operator(f"mamba_scan({_SCAN}) -> Tensor", fake=_like_first, backward=_scan_backward)
def _scan(*inputs: Any) -> Tensor:
    u, delta, A, B, C, D, bias, softplus, source = inputs
    out: Tensor = _kernels(source).scan(u, delta, A, B, C, D, None, bias, softplus)[0]
    return out


@operator(f"mamba_conv_backward(Tensor grad, {_CONV}) -> Tensor[]", fake=_gradients)
def _conv_backward(grad: Tensor, x: Tensor, w: Tensor, b: Tensor, source: str) -> list[Tensor]:
    return list(_kernels(source).conv_backward(x, w, b, grad.contiguous(), None, None, None, None, False, True)[:3])


@operator(f"mamba_conv({_CONV}) -> Tensor", fake=_like_first, backward=_conv_backward)
def _conv(x: Tensor, w: Tensor, b: Tensor, source: str) -> Tensor:
    out: Tensor = _kernels(source).conv(x, w, b, None, None, None, True)
    return out


class _Kernels(NamedTuple):
    """The functions that compute: `fwd` and `bwd` of selective_scan_cuda, and those of causal_conv1d.cpp_functions."""

    scan: Callable[..., Any]
    scan_backward: Callable[..., Any]
    conv: Callable[..., Any]
    conv_backward: Callable[..., Any]


@cache
def _kernels(source: str) -> _Kernels:
    """Return the installed kernels, or those of a commit of the Hub.

    Raises:
        BackendError: the kernels are missing, or do not fit this torch.
    """
    if source:
        return _fetch(source)
    try:
        import selective_scan_cuda
        from causal_conv1d import cpp_functions
    except ModuleNotFoundError as error:
        raise BackendError(f"{error.name} is not installed", INSTALL) from error
    except (ImportError, OSError) as error:  # built for another torch
        raise BackendError(f"mamba-ssm cannot be loaded ({said(error)})", INSTALL) from error
    conv_functions = cpp_functions.causal_conv1d_fwd_function, cpp_functions.causal_conv1d_bwd_function
    return _Kernels(selective_scan_cuda.fwd, selective_scan_cuda.bwd, *conv_functions)


def _fetch(revision: str) -> _Kernels:
    """Fetch and import the Hub's kernels of a commit.

    Raises:
        BackendError: any step failed.
    """
    try:
        from kernels import get_kernel

        module = get_kernel(REPO, revision=revision)
        ops, convolution = module._ops.ops, module._causal_conv1d.cpp_functions
        conv_functions = convolution.causal_conv1d_fwd_function, convolution.causal_conv1d_bwd_function
        return _Kernels(ops.selective_scan_fwd, ops.selective_scan_bwd, *conv_functions)
    except Exception as error:  # from the network, the cache, the loader or the fetched code, so of any type
        raise BackendError(
            f"{REPO} at {revision} cannot be used: {said(error)}", "see the commits that hold a build for your torch"
        ) from error
