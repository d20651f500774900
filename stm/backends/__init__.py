"""Backends: who computes the convolution, the scan and the norm. Frozen values with one signature, chosen once a model.

`reference` is the definition, `blocked` torch alone. Each says whether it can be used here and why; `auto` takes the
first that can, and what it passed over is reported as a fallback.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, cast

from stm.errors import BackendError, UsageError

ORDER = ("native", "blocked", "reference")  # `auto` takes the first that is available; reference is never needed


@dataclass(frozen=True)
class Backend:
    """The three operations; their signatures and meaning are those of stm/scan.py."""

    name: str
    conv_silu: Callable[..., Any]
    scan: Callable[..., Any]
    add_norm: Callable[..., Any]
    fallbacks: tuple[str, ...] = ()


def status(name: str, device: str = "cpu") -> tuple[bool, str]:
    """Whether a backend can be used here, on a type of device, and the reason in words."""
    if name == "native":
        if device != "cpu":
            return False, f"it is for processors, not for {device}"
        return cast("tuple[bool, str]", _module(name).status())
    return True, {"blocked": "torch alone", "reference": "the definition, slow"}[name]


def choose(name: str = "auto", device: str = "cpu") -> Backend:
    """The backend of that name, or the best that is available on a type of device.

    Raises:
        UsageError: there is no such backend.
        BackendError: it is not available here; the reason is given.
    """
    if name != "auto" and name not in ORDER:
        raise UsageError(f"unknown backend {name!r}, expected auto, {', '.join(ORDER)}", "see: stm env")
    fallbacks: list[str] = []
    for candidate in ORDER if name == "auto" else (name,):
        available, reason = status(candidate, device)
        if available:
            module = _module(candidate)
            return Backend(candidate, module.conv_silu, module.scan, module.add_norm, tuple(fallbacks))
        fallbacks.append(f"{candidate} is not available: {reason}")
    raise BackendError(f"backend {fallbacks[0]}", "use --backend auto, and see: stm env")


def _module(name: str) -> ModuleType:
    return import_module("stm.scan" if name == "reference" else f"stm.backends.{name}")
