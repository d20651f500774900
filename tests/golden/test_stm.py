"""Compressed models against an independent float64 reference of the method (golden/stm), every rule that it holds.

A name says what was done: `{order}[_left]_r{r}_k{K}_{weights}_p{p}[_span]`, or `staged_b{stages}_...`.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import stm
from stm import backends

Error = Callable[[Tensor, Tensor], float]
Tell = Callable[[str, float, str], None]
MINI = Path(__file__).parent / "stm" / "golden_mini.safetensors"
BOUND = 1e-4
PATCHES = {"mini": 49, "vim_ti": 196}


def names() -> list[str]:
    with safe_open(MINI, "pt") as file:
        return sorted(set(file.keys()) - {"inputs"})


def options(name: str, patches: int) -> dict[str, Any]:
    """What `stm.compress` is asked for; a rate that gives exactly K steps."""
    found = re.fullmatch(
        r"(?P<order>border|sweep|even|outward)(?P<left>_left)?_r(?P<r>\d)_k(?P<k>\d+)_(?P<rest>.*)|staged_b(?P<stages>[\d,]+)_(?P<staged>.*)",
        name,
    )
    assert found is not None, name
    rest = re.fullmatch(r"(prune|sum|mean|size|hsp)(-normalized)?_p([\d.]+)(_span)?", found["rest"] or found["staged"])
    assert rest is not None, name
    weights, normalized, p, span = rest.groups()
    wish: dict[str, Any] = {
        "weights": weights,
        "normalize": bool(normalized),
        "step_scale": float(p),
        "span_conv": bool(span),
    }
    if found["stages"]:
        return wish | {"stages": tuple(map(int, found["stages"].split(",")))}
    r, k, sides = int(found["r"]), int(found["k"]), "left" if found["left"] else "both"
    rate = k * r * (1 if sides == "left" else 2) / patches
    return wish | {"schedule": found["order"], "sides": sides, "tokens_per_side": r, "rate": rate}


@pytest.mark.parametrize("name", names())
def test_mini(name: str, mini: Path, error: Error, tell: Tell) -> None:
    golden = load_file(MINI)
    for backend in backends.ORDER:
        if not backends.status(backend)[0]:
            continue
        dense = stm.load_checkpoint(mini / "vim_mini_stride8.pth", device="cpu", backend=backend)
        small = stm.compress(dense, **options(name, PATCHES["mini"]))
        if "_k" in name:
            assert len(small.schedule.steps) == int(re.findall(r"_k(\d+)", name)[0])
        with torch.inference_mode():
            found = error(small(golden["inputs"]), golden[name])
        tell(f"merged vim_mini_stride8, {backend}", found, name)
        assert found <= BOUND


def test_full_size_vim_tiny(shared: Callable[[str], Path], vim_ti: stm.ViM, error: Error, tell: Tell) -> None:
    golden = load_file(shared("golden/stm/golden_vim_ti.safetensors"))
    images = load_file(shared("golden/inputs_224_seed7.safetensors"))["inputs"]
    assert golden
    for name, expected in golden.items():
        small = stm.compress(vim_ti, **options(name, PATCHES["vim_ti"]))
        with torch.inference_mode():
            found = error(small(images), expected)
        tell(f"merged vim_ti, {small.backend.name}", found, name)
        assert found <= BOUND
