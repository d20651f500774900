"""The grouping and layouts of the mamba-ssm backend, with stand-ins for its kernels (mamba_stand_in.py)."""

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from stm import backends
from stm.backends import mamba_ssm, reference
from stm.errors import BackendError
from tests.backends.cases import BOTH, check, double, gradients, inputs, torch_checks
from tests.backends.mamba_stand_in import CONV, backward, forward

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules of the names that are imported."""
    for name, members in (
        ("selective_scan_cuda", {"fwd": forward, "bwd": backward}),
        ("causal_conv1d", {"cpp_functions": CONV}),
    ):
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    mamba_ssm._kernels.cache_clear()
    yield
    mamba_ssm._kernels.cache_clear()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("reverse", [BOTH, (True, False), (False,), (True,)])
@pytest.mark.parametrize(
    "optional",
    [set(), {"dt_bias"}, {"scale"}, {"gap"}, {"dt_weight", "dt_bias", "scale", "gap"}],
    ids=lambda names: "+".join(sorted(names)),
)
def test_scan(optional: set[str], reverse: tuple[bool, ...]) -> None:
    values = inputs(K=len(reverse), L=6, E=5, N=3, **dict.fromkeys(optional, True)) | {"reverse": reverse}
    check(mamba_ssm.scan(**values), reference.scan(**double(values)))
    check(mamba_ssm.scan(**values, split=True), reference.scan(**double(values), split=True))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    "optional", [set(), {"dt_bias"}, {"dt_weight", "dt_bias", "scale", "gap"}], ids=["plain", "bias", "all"]
)
def test_gradients_of_the_scan(optional: set[str]) -> None:
    values = inputs(L=4, E=5, N=3, **dict.fromkeys(optional, True))
    found, expected = gradients(mamba_ssm.scan, values), gradients(reference.scan, double(values))
    for name in expected:
        check(found[name], expected[name])


@pytest.mark.usefixtures("installed")
def test_half_precision_is_given_as_one_dtype() -> None:
    values = {name: v.bfloat16() if name in ("u", "B", "C", "z") else v for name, v in inputs(L=5, E=8, N=4).items()}
    found = mamba_ssm.scan(**values)
    assert found.dtype == torch.bfloat16
    check(found, reference.scan(**double(values)), 2e-2)  # Delta is rounded to bfloat16, too


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("sizes", [None, (1, 2, 4, 7, 1, 3)], ids=["plain", "span"])
def test_convolution_and_its_gradients(sizes: tuple[int, ...] | None) -> None:
    g = torch.Generator().manual_seed(0)
    values: dict[str, Any] = {"x": torch.randn(2, 6, 5, generator=g), "w": torch.randn(2, 5, 4, generator=g)}
    values |= {"b": torch.randn(2, 5, generator=g), "reverse": BOTH, "sizes": sizes}
    check(mamba_ssm.conv_silu(**values), reference.conv_silu(**double(values)))
    found, expected = gradients(mamba_ssm.conv_silu, values), gradients(reference.conv_silu, double(values))
    for name in expected:
        check(found[name], expected[name])


@pytest.mark.usefixtures("installed")
@torch_checks
def test_the_operators_hold_what_torch_asks_of_them() -> None:
    g = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g).requires_grad_()

    scan = (leaf(2, 6, 4), leaf(2, 6, 4), leaf(6, 3), leaf(2, 2, 3, 4), leaf(2, 2, 3, 4))
    for D in (leaf(6), None):
        torch.library.opcheck(torch.ops.stm.mamba_scan.default, (*scan, D, D, True, ""))
    torch.library.opcheck(torch.ops.stm.mamba_conv.default, (leaf(2, 6, 4), leaf(6, 3), leaf(6), ""))


@pytest.mark.usefixtures("installed")
def test_it_is_available_where_the_kernels_import() -> None:
    assert backends.status("mamba_ssm", "cuda") == (True, "mamba-ssm's and causal-conv1d's CUDA kernels")


def test_kernels_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for Hugging Face's `kernels`: what is fetched, at which revision, and what is taken of it."""
    ops = SimpleNamespace(ops=SimpleNamespace(selective_scan_fwd=forward, selective_scan_bwd=backward))
    asked: list[Any] = []

    def get_kernel(repo: str, *, revision: str) -> Any:
        asked.append((repo, revision))
        return SimpleNamespace(_ops=ops, _causal_conv1d=SimpleNamespace(cpp_functions=CONV))

    # stands in for a module
    monkeypatch.setitem(sys.modules, "kernels", SimpleNamespace(get_kernel=get_kernel))  # type: ignore[misc]
    monkeypatch.setattr(mamba_ssm, "find_spec", lambda name: object())
    mamba_ssm._kernels.cache_clear()
    assert backends.status(f"kernels@{COMMIT}", "cuda") == (True, f"kernels-community/mamba-ssm of the Hub at {COMMIT}")
    assert asked == []  # the status fetches nothing
    chosen = backends.choose(f"kernels@{COMMIT}", "cuda")
    assert asked == [("kernels-community/mamba-ssm", COMMIT)]
    values = inputs(L=4, E=5, N=3)
    check(chosen.scan(**values), reference.scan(**double(values)))
    assert len(asked) == 1
    mamba_ssm._kernels.cache_clear()

    def fails(repo: str, *, revision: str) -> Any:
        raise FileNotFoundError("no build for this torch")

    monkeypatch.setitem(sys.modules, "kernels", SimpleNamespace(get_kernel=fails))  # type: ignore[misc]
    with pytest.raises(
        BackendError, match=rf"kernels-community/mamba-ssm at {COMMIT} cannot be used: no build for this torch"
    ):
        backends.choose(f"kernels@{COMMIT}", "cuda")
