"""Backends: who computes the convolution, the scan and the norm. Frozen values with one signature, chosen once a model.

`reference` is the definition, `blocked` torch alone. Each says whether it can be used here and why; `auto` takes the
first that can, and what it passed over is reported as a fallback. `kernels@COMMIT` runs code of the Hub: only where
asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, cast

from stm.errors import BackendError, UsageError

ORDER = (
    "triton",
    "mamba_ssm",
    "native",
    "blocked",
    "reference",
)  # `auto` takes the first that is available; reference is never needed
MADE_FOR = {
    "triton": "cuda",
    "mamba_ssm": "cuda",
    "kernels": "cuda",
    "native": "cpu",
}  # types of device; the others run on any
NAMES = (*ORDER, "kernels")
PLURAL = {"cuda": "CUDA devices", "cpu": "processors"}


@dataclass(frozen=True)
class Backend:
    """The three operations; their signatures and meaning are those of stm/backends/reference.py."""

    name: str
    conv_silu: Callable[..., Any]
    scan: Callable[..., Any]
    add_norm: Callable[..., Any]
    fallbacks: tuple[str, ...] = ()


def status(name: str, device: str = "cpu") -> tuple[bool, str]:
    """Whether a backend can be used here, on a type of device, and the reason in words."""
    family, _, revision = name.partition("@")
    place = MADE_FOR.get(family, device)
    if place != device:
        return False, f"it is for {PLURAL[place]}, not for {device}"
    if family == "kernels":
        return cast("tuple[bool, str]", _module("mamba_ssm").hub_status(revision))
    if family in MADE_FOR:
        try:
            return cast("tuple[bool, str]", _module(name).status())
        except ModuleNotFoundError as error:
            return False, f"{error.name} is not installed: pip install {error.name}"
    return True, {"blocked": "torch alone", "reference": "the definition, slow"}[name]


def choose(name: str = "auto", device: str = "cpu") -> Backend:
    """The backend of that name, or the best that is available on a type of device.

    Raises:
        UsageError: there is no such backend.
        BackendError: it is not available here; the reason is given.
    """
    if name not in ("auto", *ORDER) and name.partition("@")[0] != "kernels":
        raise UsageError(
            f"unknown backend {name!r}, expected auto, {', '.join(ORDER)} or kernels@COMMIT", "see: stm env"
        )
    fallbacks: list[str] = []
    for candidate in [each for each in ORDER if MADE_FOR.get(each, device) == device] if name == "auto" else [name]:
        available, reason = status(candidate, device)
        if available:
            return Backend(candidate, *_operations(candidate), tuple(fallbacks))
        fallbacks.append(f"{candidate} is not available: {reason}")
    raise BackendError(f"backend {fallbacks[0]}", "use --backend auto, and see: stm env")


def _operations(name: str) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    family, _, revision = name.partition("@")
    if family == "kernels":
        return cast(
            "tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]", _module("mamba_ssm").from_hub(revision)
        )
    module = _module(name)
    return module.conv_silu, module.scan, module.add_norm


def _module(name: str) -> ModuleType:
    return import_module("stm.backends.reference" if name == "reference" else f"stm.backends.{name}")
