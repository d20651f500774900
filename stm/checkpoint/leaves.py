"""The two kinds of tensors in a document: torch's, and a `Header`, which has a shape and a dtype and needs no torch.

Whatever asks which model a file holds works on both. Only who computes with the numbers needs torch's.
"""

import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Leaf: TypeAlias = "Tensor | Header"

# The bytes of one number, and as what numpy reads them: it has no bfloat16.
DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "float64": np.dtype("<f8"),
    **{name: np.dtype(name).newbyteorder("<") for name in ("int64", "int32", "int16", "int8", "uint8", "bool")},
    **{name: np.dtype(name).newbyteorder("<") for name in ("complex64", "complex128")},
}
_BFLOAT16_EXPONENT = np.uint16(0x7F80)  # all of its bits are set in infinity and NaN


class Header:
    """A strided tensor in a file, by its shape and dtype. Its numbers are read only if somebody asks for them.

    Args:
        shape, dtype: the dtype by torch's name, `float32`.
        read: returns the numbers in this shape, as a view of the mapped file.
    """

    __slots__ = ("_read", "dtype", "shape")
    layout, device, is_nested = "strided", "cpu", False

    def __init__(self, shape: tuple[int, ...], dtype: str, read: Callable[[], np.ndarray[Any, Any]]) -> None:
        self.shape, self.dtype, self._read = shape, dtype, read

    @property
    def ndim(self) -> int:
        """Return the number of dimensions."""
        return len(self.shape)

    def tolist(self) -> Any:
        """Return the numbers in lists, or one number, as `torch.Tensor.tolist`; not of bfloat16."""
        return self._read().tolist()

    def is_finite(self) -> bool:
        """Return whether no number is NaN or infinite in float32."""
        numbers = self._read()
        if self.dtype == "bfloat16":
            return not bool(((numbers & _BFLOAT16_EXPONENT) == _BFLOAT16_EXPONENT).any())
        with np.errstate(over="ignore"):
            return bool(np.isfinite(numbers.astype(np.float32, copy=False)).all())

    def new_zeros(self, *size: int | Sequence[int]) -> "Header":
        """Return zeros of the same dtype, which no file holds."""
        return self._filled(size, np.zeros)

    def new_ones(self, *size: int | Sequence[int]) -> "Header":
        """Return ones of the same dtype, which no file holds."""
        return self._filled(size, np.ones)

    def _filled(self, size: Any, fill: Any) -> "Header":
        shape = tuple(size[0]) if isinstance(size[0], tuple) else size
        return Header(shape, self.dtype, lambda: fill(shape, np.uint8))


def is_tensor(value: Any) -> TypeGuard[Leaf]:
    """Return whether a value of a document is a tensor of either kind."""
    # Before somebody imports torch, no value can be of its type.
    return isinstance(value, (Header, getattr(sys.modules.get("torch"), "Tensor", Header)))


def kind_of(leaf: Leaf) -> str:
    """Return a tensor's kind in words: `float32 strided on cpu`."""
    return f"{leaf.dtype} {leaf.layout} on {leaf.device}".replace("torch.", "")


def dtype_of(leaf: Leaf) -> str:
    """Return the name of a tensor's dtype, such as `float32`."""
    return str(leaf.dtype).removeprefix("torch.")


def header(
    data: np.ndarray[Any, Any], at: int, dtype: str, shape: Sequence[int], strides: Sequence[int] | None = None
) -> Header:
    """Return the header of a tensor in the bytes of a mapped file.

    Args:
        data: (bytes,) of the file.
        at: the first byte of its storage.
        strides: in numbers; None if the tensor is contiguous.

    Raises:
        ValueError: the tensor reaches beyond the bytes.
    """
    kind, shape = DTYPES[dtype], tuple(shape)
    steps = _contiguous(shape) if strides is None else tuple(strides)
    if len(steps) != len(shape) or min((*shape, *steps, at), default=0) < 0:
        raise ValueError("sizes that no tensor has")
    last = sum((side - 1) * step for side, step in zip(shape, steps, strict=True)) if all(shape) else -1
    if at + (last + 1) * kind.itemsize > data.size:
        raise ValueError("a tensor that reaches beyond its file")

    def read() -> np.ndarray[Any, Any]:
        if steps == _contiguous(shape) or not all(shape):
            count = math.prod(shape)
            return np.frombuffer(data, kind, count, at).reshape(shape) if count else np.empty(shape, kind)
        numbers = np.frombuffer(data, kind, last + 1, at)
        return np.lib.stride_tricks.as_strided(
            numbers, shape, tuple(step * kind.itemsize for step in steps), writeable=False
        )

    return Header(shape, dtype, read)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
