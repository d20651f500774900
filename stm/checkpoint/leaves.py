"""The two kinds of tensors in a document: torch's, and a `Header`, which has a shape and a dtype and needs no torch.

Whatever asks which model a file holds works on both. Only who computes with the numbers needs torch's. Importing numpy
takes a tenth of a second, so a header imports it only for numbers that its bytes leave in doubt.
"""

import math
import sys
from collections.abc import Callable, Sequence
from mmap import mmap
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeGuard

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Leaf: TypeAlias = "Tensor | Header"


class Kind(NamedTuple):
    """How a dtype lies in a file.

    Args:
        itemsize: the bytes of one number.
        code: as what numpy reads them: it has no bfloat16.
        finite: the values of a number's last byte (sign, and the upper bits of the exponent) that no NaN, no infinity
            and no number beyond float32 has; None if only numpy tells.
    """

    itemsize: int
    code: str
    finite: bytes | None


def _below(first: int) -> bytes:
    """Return the bytes whose lower seven bits are less than `first`."""
    return bytes(each for each in range(256) if each & 0x7F < first)


_WHOLE = bytes(range(256))
DTYPES = {
    "float32": Kind(4, "<f4", _below(0x7F)),
    "float16": Kind(2, "<f2", _below(0x7C)),
    "bfloat16": Kind(2, "<u2", _below(0x7F)),
    "float64": Kind(8, "<f8", _below(0x47)),
    "bool": Kind(1, "?", _WHOLE),
    "uint8": Kind(1, "u1", _WHOLE),
    **{f"int{8 * size}": Kind(size, f"<i{size}", _WHOLE) for size in (1, 2, 4, 8)},
    **{f"complex{8 * size}": Kind(size, f"<c{size}", None) for size in (8, 16)},
}
_BFLOAT16_EXPONENT = 0x7F80  # all of its bits are set in infinity and NaN


class Header:
    """A strided tensor in a file, by its shape and dtype. Its numbers are read only if somebody asks for them.

    Args:
        shape, dtype: the dtype by torch's name, `float32`.
        read: returns the numbers in this shape, as a view of the mapped file.
        last: returns the last byte of every number, and perhaps of others beside them.
    """

    __slots__ = ("_last", "_read", "dtype", "shape")
    layout, device, is_nested = "strided", "cpu", False

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: str,
        read: "Callable[[], np.ndarray[Any, Any]]",
        last: Callable[[], bytes],
    ) -> None:
        self.shape, self.dtype, self._read, self._last = shape, dtype, read, last

    @property
    def ndim(self) -> int:
        """Return the number of dimensions."""
        return len(self.shape)

    def tolist(self) -> Any:
        """Return the numbers in lists, or one number, as `torch.Tensor.tolist`; not of bfloat16."""
        return self._read().tolist()

    def is_finite(self) -> bool:
        """Return whether no number is NaN or infinite in float32."""
        finite = DTYPES[self.dtype].finite
        if finite is not None and not self._last().translate(None, finite):
            return True
        import numpy as np  # for the very large number that is not infinite, and for what lies between the strides

        numbers = self._read()
        if self.dtype == "bfloat16":
            return not bool(((numbers & _BFLOAT16_EXPONENT) == _BFLOAT16_EXPONENT).any())
        with np.errstate(over="ignore", invalid="ignore"):
            return bool(np.isfinite(numbers.astype(np.float32, copy=False)).all())

    def new_zeros(self, *size: int | Sequence[int]) -> "Header":
        """Return zeros of the same dtype, which no file holds."""
        return self._filled(size, "zeros")

    def new_ones(self, *size: int | Sequence[int]) -> "Header":
        """Return ones of the same dtype, which no file holds."""
        return self._filled(size, "ones")

    def _filled(self, size: Any, fill: str) -> "Header":
        shape = tuple(size[0]) if isinstance(size[0], tuple) else size

        def read() -> "np.ndarray[Any, Any]":
            import numpy as np

            filled: np.ndarray[Any, Any] = getattr(np, fill)(shape, np.uint8)
            return filled

        return Header(shape, self.dtype, read, bytes)


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
    data: mmap | bytes, at: int, end: int, dtype: str, shape: Sequence[int], strides: Sequence[int] | None = None
) -> Header:
    """Return the header of a tensor in the bytes of a mapped file.

    Args:
        at: the tensor's first byte.
        end: the byte behind its storage.
        strides: in numbers; None if the tensor is contiguous.

    Raises:
        ValueError: the tensor reaches beyond the bytes.
    """
    kind, shape = DTYPES[dtype], tuple(shape)
    steps = _contiguous(shape) if strides is None else tuple(strides)
    if len(steps) != len(shape) or min((*shape, *steps, at), default=0) < 0:
        raise ValueError("sizes that no tensor has")
    last = sum((side - 1) * step for side, step in zip(shape, steps, strict=True)) if all(shape) else -1
    stop = at + (last + 1) * kind.itemsize
    if stop > min(end, len(data)):
        raise ValueError("a tensor that reaches beyond its file")

    def read() -> "np.ndarray[Any, Any]":
        import numpy as np

        if steps == _contiguous(shape) or not all(shape):
            count = math.prod(shape)
            return np.frombuffer(data, kind.code, count, at).reshape(shape) if count else np.empty(shape, kind.code)
        numbers = np.frombuffer(data, kind.code, last + 1, at)
        return np.lib.stride_tricks.as_strided(
            numbers, shape, tuple(step * kind.itemsize for step in steps), writeable=False
        )

    return Header(shape, dtype, read, lambda: data[at + kind.itemsize - 1 : stop : kind.itemsize])


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
