"""Which backend is chosen where, and the reasons that are given."""

import inspect
from importlib import import_module
from typing import Any

import pytest
import torch

from stm import backends
from stm.backends import mamba_ssm
from stm.errors import BackendError, UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def statuses(monkeypatch: pytest.MonkeyPatch, **available: bool) -> None:
    """Pretends that these backends can be used, or not."""
    real = backends.status

    def status(name: str, device: str = "cpu") -> tuple[bool, str]:
        return (available[name], f"{name}'s reason") if name in available else real(name, device)

    monkeypatch.setattr(backends, "status", status)


def test_auto_takes_the_first_that_is_for_the_device_and_says_what_it_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    statuses(monkeypatch, triton=False, mamba_ssm=True, native=True)
    chosen = backends.choose(device="cuda")
    assert (chosen.name, chosen.scan) == ("mamba_ssm", mamba_ssm.scan)
    assert chosen.fallbacks == ("triton is not available: triton's reason",)
    statuses(monkeypatch, triton=False, mamba_ssm=False)
    assert backends.choose(device="cuda").name == "blocked"
    assert len(backends.choose(device="cuda").fallbacks) == 2
    assert backends.choose(device="mps").fallbacks == ()  # nothing was made for it


def test_a_backend_for_another_device_is_refused_with_the_reason() -> None:
    reason = r"^backend native is not available: it is for processors, not for cuda(\n|$)"
    with pytest.raises(BackendError, match=reason):
        backends.choose("native", device="cuda")
    for name in ("triton", "mamba_ssm", f"kernels@{COMMIT}"):
        with pytest.raises(BackendError, match="it is for CUDA devices, not for cpu"):
            backends.choose(name)
    with pytest.raises(UsageError, match="unknown backend 'tritan', expected auto, triton, mamba_ssm"):
        backends.choose("tritan")


@pytest.mark.parametrize("name", ["reference", "blocked", "native", "mamba_ssm", "triton"])
@pytest.mark.parametrize(
    ("operation", "protocol"),
    [("conv_silu", backends.ConvSilu), ("scan", backends.Scan), ("add_norm", backends.AddNorm)],
)
def test_every_backend_takes_what_the_protocol_says(name: str, operation: str, protocol: Any) -> None:
    """As mypy checks it, also where nobody runs mypy. A backend may have options of its own behind those."""
    if name == "triton":
        pytest.importorskip("triton")

    def shape(function: Any) -> list[tuple[str, Any, Any]]:
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]

    expected = shape(protocol.__call__)[1:]  # without self
    found = shape(getattr(import_module(f"stm.backends.{name}"), operation))
    assert found[: len(expected)] == expected
    assert all(default is not inspect.Parameter.empty for _, _, default in found[len(expected) :])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_what_is_missing_is_named_with_the_line_that_installs_it() -> None:
    for name in ("triton", "mamba_ssm"):
        available, reason = backends.status(name, "cuda")
        assert not available
        assert "pip install" in reason or reason == "torch sees no CUDA device"
    assert "MAMBA_KEEP_CUDA_BUILD=TRUE pip install" in backends.status("mamba_ssm", "cuda")[1]


def test_without_triton_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name="triton")

    monkeypatch.setattr(backends, "_module", missing)
    assert backends.status("triton", "cuda") == (False, "triton is not installed: pip install triton")


def test_code_of_the_hub_is_pinned_by_its_whole_commit() -> None:
    for name in ("kernels", "kernels@main", f"kernels@{COMMIT[:-1]}"):
        available, reason = backends.status(name, "cuda")
        assert not available
        assert "asked for by the commit of kernels-community/mamba-ssm" in reason
