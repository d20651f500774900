"""What the Triton kernels share: their functions of one number, and how tensors are laid out for them."""

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
    """max(x, 0) + log1p(exp(-|x|)), to the last digits also where exp is small: log1p(y) = 2 artanh(y / (2 + y)) for y
    in [0, 1]."""
    y = tl.exp(-tl.abs(x))
    s = y / (2.0 + y)  # at most 1/3: the next term of the series would be s^14 / 15 < 2e-8
    q = s * s
    series = 1.0 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13))))))
    return tl.maximum(x, 0.0) + 2.0 * s * series


def rows(v: Tensor) -> tuple[Tensor, int]:
    """A tensor (.., channels) whose leading dimensions are one run of rows, with the distance of two rows; copied where
    it must be.

    A slice of a wider tensor's channels is not.
    """
    distance = v.stride(-2)
    expected = distance
    for size, stride in zip(reversed(v.shape[:-1]), reversed(v.stride()[:-1]), strict=True):
        if size != 1 and stride != expected:
            return v.contiguous(), v.shape[-1]
        expected *= size
    return (v, distance) if v.stride(-1) == 1 or v.shape[-1] == 1 else (v.contiguous(), v.shape[-1])


def bits(reverse: Sequence[bool]) -> int:
    """For kernels: bit k says that direction k walks from the last token to the first."""
    return sum(back << k for k, back in enumerate(reverse))


def check(name: str, v: Tensor | None, shape: Sequence[int]) -> None:
    """A kernel would read past the end."""
    if v is not None and v.shape != torch.Size(shape):
        raise UsageError(f"{name} is {tuple(v.shape)}, expected {tuple(shape)}")


def blocks(length: int, block: int) -> int:
    """How many blocks cover a length. (triton.cdiv, made for kernels too, takes a hundred times as long.)"""
    return -(-length // block)


def power_of_two(length: int) -> int:
    """The smallest that is not less."""
    return 1 << max(0, length - 1).bit_length()
