"""Backends: who computes the convolution, the scan and the norm of every block.

A `Backend` is a frozen value of three functions, chosen once per model. Their signatures are the protocols below; what
they compute is defined in stm/backends/reference.py, in plain torch. `blocked` needs torch alone, the others need a
compiled library.

Each backend tells whether it can be used, and why. `auto` takes the first usable one for the device and records those
that it passed over in `fallbacks`. `kernels@COMMIT` runs code from the Hub, so only an explicit request selects it.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from stm.errors import BackendError, UsageError

if TYPE_CHECKING:  # choosing a backend by name needs no torch
    import torch
    from torch import Tensor

# `auto` takes the first available one. It never reaches `reference`, since `blocked` runs wherever torch does.
ORDER = ("triton", "mamba_ssm", "native", "blocked", "reference")
# Types of device. The backends that are absent here run on any.
MADE_FOR = {"triton": "cuda", "mamba_ssm": "cuda", "kernels": "cuda", "native": "cpu"}
NAMES = (*ORDER, "kernels")
PLURAL = {"cuda": "CUDA devices", "cpu": "processors"}


class ConvSilu(Protocol):
    """SiLU of the causal convolution: see `stm.backends.reference.conv_silu`."""

    def __call__(
        self,
        x: "Tensor",
        w: "Tensor",
        b: "Tensor",
        reverse: tuple[bool, ...],
        *,
        sizes: tuple[int, ...] | None = None,
    ) -> "Tensor": ...


class Scan(Protocol):
    """The selective scan: see `stm.backends.reference.scan`."""

    def __call__(
        self,
        u: "Tensor",
        dt: "Tensor",
        A: "Tensor",
        B: "Tensor",
        C: "Tensor",
        D: "Tensor",
        z: "Tensor | None",
        reverse: tuple[bool, ...],
        *,
        dt_weight: "Tensor | None" = None,
        dt_bias: "Tensor | None" = None,
        scale: "Tensor | None" = None,
        gap: "Tensor | None" = None,
        split: bool = False,
    ) -> "Tensor": ...


class AddNorm(Protocol):
    """The residual sum and its RMSNorm: see `stm.backends.reference.add_norm`."""

    def __call__(
        self, x: "Tensor", h: "Tensor | None", weight: "Tensor", eps: float, dtype: "torch.dtype"
    ) -> "tuple[Tensor, Tensor]": ...


class Operations(Protocol):
    """What each module of a backend offers. Properties, because nobody may replace a function of a chosen backend."""

    @property
    def conv_silu(self) -> ConvSilu: ...
    @property
    def scan(self) -> Scan: ...
    @property
    def add_norm(self) -> AddNorm: ...


if TYPE_CHECKING:
    from stm.backends import blocked, mamba_ssm, native, reference, triton

    # Modules are imported by name at run time, which hides them from mypy. These lines have it check each one.
    _checked: Operations = triton
    _checked = mamba_ssm
    _checked = native
    _checked = blocked
    _checked = reference


@dataclass(frozen=True)
class Backend:
    """The three operations of one backend.

    Args:
        name: one of `NAMES`; `kernels` with its commit.
        fallbacks: why `auto` passed over the backends before this one, one sentence per backend.
    """

    name: str
    conv_silu: ConvSilu
    scan: Scan
    add_norm: AddNorm
    fallbacks: tuple[str, ...] = ()


def status(name: str, device: str = "cpu") -> tuple[bool, str]:
    """Return whether a backend can be used on a type of device, and the reason in words."""
    family, _, revision = name.partition("@")
    made_for = MADE_FOR.get(family, device)
    if made_for != device:
        return False, f"it is for {PLURAL[made_for]}, not for {device}"
    if family == "kernels":
        return cast("tuple[bool, str]", _module("mamba_ssm").hub_status(revision))
    if family in MADE_FOR:
        try:
            return cast("tuple[bool, str]", _module(name).status())
        except ModuleNotFoundError as error:
            return False, f"{error.name} is not installed: pip install {error.name}"
    return True, {"blocked": "torch alone", "reference": "the definition, slow"}[name]


def choose(name: str = "auto", device: str = "cpu") -> Backend:
    """Return the backend of that name; `auto` returns the best available one for a type of device.

    Raises:
        UsageError: no backend has this name.
        BackendError: the backend is not available on this machine; the message gives the reason.
    """
    if name not in ("auto", *ORDER) and name.partition("@")[0] != "kernels":
        raise UsageError(
            f"unknown backend {name!r}, expected auto, {', '.join(ORDER)} or kernels@COMMIT", "see: stm env"
        )
    fallbacks: list[str] = []
    # A backend for another type of device is no fallback: nobody on a laptop wants to read that Triton was passed over.
    candidates = [known for known in ORDER if MADE_FOR.get(known, device) == device] if name == "auto" else [name]
    for candidate in candidates:
        available, reason = status(candidate, device)
        if available:
            return Backend(candidate, *_operations(candidate), tuple(fallbacks))
        fallbacks.append(f"{candidate} is not available: {reason}")
    raise BackendError(f"backend {fallbacks[0]}", "use --backend auto, and see: stm env")


def _operations(name: str) -> tuple[ConvSilu, Scan, AddNorm]:
    family, _, revision = name.partition("@")
    if family == "kernels":
        return cast("tuple[ConvSilu, Scan, AddNorm]", _module("mamba_ssm").from_hub(revision))
    module: Operations = _module(name)
    return module.conv_silu, module.scan, module.add_norm


def _module(name: str) -> Any:
    return import_module(f"stm.backends.{name}")
