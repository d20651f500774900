"""Inputs of a scan, and how near a backend has to come to the definition."""

from typing import Any

import pytest
import torch
from torch import Tensor

BOTH = (False, True)

# torch 2.14's checks of an operator read the gradient of what is no leaf, and hide the warning only if it is no error.
torch_checks = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


def inputs(K: int = 2, batch: int = 2, L: int = 19, E: int = 24, N: int = 16, **optional: bool) -> dict[str, Any]:
    """Random inputs of a scan, of the sizes that a model's have."""
    g = torch.Generator().manual_seed(L * E + N)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    made = {
        "u": normal(K, batch, L, E),
        "dt": normal(K, batch, L, E) - 2,
        "A": -torch.arange(1, N + 1).float() * torch.exp(0.3 * normal(K, E, N)),
        "B": normal(K, batch, L, N),
        "C": normal(K, batch, L, N),
        "D": normal(K, E),
        "z": normal(batch, L, E),
        "reverse": BOTH[:K],
    }
    if optional.get("dt_weight"):
        made |= {"dt": normal(K, batch, L, 3), "dt_weight": normal(K, E, 3)}
    if optional.get("dt_bias"):
        made["dt_bias"] = normal(K, E)
    if optional.get("scale"):
        made["scale"] = 1 + torch.rand(L, generator=g)
    if optional.get("gap"):
        made["gap"] = torch.rand(K, batch, L, E, generator=g)
    return made


def double(values: dict[str, Any]) -> dict[str, Any]:
    return {name: v.double() if isinstance(v, Tensor) else v for name, v in values.items()}


def check(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """max |a - b| / max |b|, as every parity of the project is measured."""
    assert got.shape == expected.shape
    assert torch.isfinite(got).all()
    error = (got.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
    assert error <= tolerance, f"relative error {error:.2e}"


def gradients(function: Any, values: dict[str, Any]) -> dict[str, Tensor]:
    """Of a fixed random projection of the output, with respect to every tensor."""
    leaves = {name: v.clone().requires_grad_() for name, v in values.items() if isinstance(v, Tensor)}
    out = function(**values | leaves)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(out.dtype)
    return dict(zip(leaves, torch.autograd.grad((out * weights).sum(), list(leaves.values())), strict=True))
