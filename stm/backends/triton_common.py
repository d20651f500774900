"""Helpers of the Triton kernels: elementary functions, and the layout of tensors for them."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from stm.errors import UsageError


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def softplus(x):
    """Return max(x, 0) + log1p(exp(-|x|)), to the last digits.

    log(1 + y) would lose a small y, and Triton's language has no log1p. So log1p(y) = 2 artanh(y / (2 + y)), a series
    that converges quickly for y in [0, 1].
    """
    y = tl.exp(-tl.abs(x))
    s = y / (2.0 + y)  # at most 1/3: the next term of the series would be s^14 / 15 < 2e-8
    q = s * s
    series = 1.0 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13))))))
    return tl.maximum(x, 0.0) + 2.0 * s * series


def rows(v: Tensor) -> tuple[Tensor, int]:
    """Return a tensor (.., channels) as rows at equal distances, and the distance in elements.

    A slice of a wider tensor's channels has such rows already. Any other layout is copied.
    """
    distance = v.stride(-2)
    expected = distance
    for size, stride in zip(reversed(v.shape[:-1]), reversed(v.stride()[:-1]), strict=True):
        if size != 1 and stride != expected:
            return v.contiguous(), v.shape[-1]
        expected *= size
    return (v, distance) if v.stride(-1) == 1 or v.shape[-1] == 1 else (v.contiguous(), v.shape[-1])


def bits(reverse: Sequence[bool]) -> int:
    """Return the directions as an integer: bit k is set if direction k walks from the last token to the first."""
    return sum(back << k for k, back in enumerate(reverse))


def check(name: str, v: Tensor | None, shape: Sequence[int]) -> None:
    """Raise UsageError for another shape: a kernel would read past the end."""
    if v is not None and v.shape != torch.Size(shape):
        raise UsageError(f"{name} is {tuple(v.shape)}, expected {tuple(shape)}")


def blocks(length: int, block: int) -> int:
    """Return how many blocks cover a length. (triton.cdiv serves kernels too, and takes a hundred times as long.)"""
    return -(-length // block)


def power_of_two(length: int) -> int:
    """Return the smallest power of two that is not less than a length."""
    return 1 << max(0, length - 1).bit_length()
