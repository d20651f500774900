"""The C side of the native backend: its library, the structures that C reads, and calls that are laid out once.

All fields of the structures are words of 64 bits, so an array of words is a structure. (A ctypes.Structure would do as
well, but sets one field at a time: microseconds per call.)
"""

import ctypes
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from stm.backends.reference import projected
from stm.errors import BackendError, UsageError, said

# By the results of stm_level() in native.c, best first: the suffix of the library, and its name for people.
LEVELS = {
    5: ("-v4-vnni", "C with AVX-512 and VNNI"),
    4: ("-v4", "C with AVX-512"),
    3: ("-v3", "C with AVX2"),
    0: ("", "portable C"),
}
# These two repeat constants of the C source.
WIDEST_VECTOR = 16  # native.h: the most floats of a vector (LANES)
WIDEST = 16  # native_conv.c: the most taps of the convolution
_VIEW = 4  # words of a `view` in native.h: its data and the strides of K, B and L
_ABSENT = (0,) * _VIEW
_FLOAT = 4  # bytes: a tensor of a mapped file may begin between two floats, where C may not read


class Layout(NamedTuple):
    """The fields of a C structure by name, in its order. A test holds them to the C source."""

    integers: tuple[str, ...]
    views: tuple[str, ...]
    pointers: tuple[str, ...]

    def data(self, *views: str) -> dict[str, int]:
        """Return the index of the word that points to the data of each of `views`."""
        return {name: len(self.integers) + _VIEW * self.views.index(name) for name in views}

    def places(self, *pointers: str) -> dict[str, int]:
        """Return the index of the word of each of `pointers`."""
        before = len(self.integers) + _VIEW * len(self.views)
        return {name: before + self.pointers.index(name) for name in pointers}


NORM = Layout(("batch", "L", "D"), ("x", "h", "total", "out"), ("weight", "eps"))
CONV = Layout(("K", "batch", "L", "E", "W"), ("x", "out"), ("reverse", "sizes", "w", "b"))
SCAN = Layout(
    ("K", "batch", "L", "E", "N", "R"),
    ("u", "dt", "B", "C", "z", "gap", "scale", "out", "gated"),
    ("reverse", "A", "D", "weight", "bias"),
)

INT8 = Layout(("K", "rows", "E", "width"), (), ("x", "equalizer", "weight", "scale", "out"))


class Words(NamedTuple):
    """A C structure, and the objects that own the memory behind its pointers."""

    words: "array[int]"
    keep: dict[int, Any]  # by the index of the word that points into it


def pack(integers: tuple[int, ...], views: tuple[Tensor | None, ...], pointers: tuple[Any, ...]) -> Words:
    """Return a C structure: integers, then tensors with their strides, then tensors and arrays.

    Absent tensors are null pointers. A tensor is copied if it is not laid out as C reads it. This function runs a few
    times per block, so it asks each tensor for its strides once.

    Args:
        views: (K, B, L, channels) or (B, L, channels), as `view` in native.h; channels are neighbours in memory.
        pointers: tensors and arrays without gaps.
    """
    words, keep = [*integers], {}
    for v in views:
        if v is None:
            words += _ABSENT
            continue
        strides = v.stride()
        if strides[-1] != 1 or v.data_ptr() % _FLOAT:
            v = v.clone(memory_format=torch.contiguous_format)
            strides = v.stride()
        keep[len(words)] = v
        words.append(v.data_ptr())
        words += strides[:3] if len(strides) == 4 else (0, *strides[:2])  # 0: all directions read the same rows
    for v in pointers:
        if v is None:
            words.append(0)
            continue
        if isinstance(v, Tensor):
            v = v.clone(memory_format=torch.contiguous_format) if v.data_ptr() % _FLOAT else v.contiguous()
        keep[len(words)] = v
        words.append(v.data_ptr() if isinstance(v, Tensor) else v.buffer_info()[0])
    return Words(array("q", words), keep)


def norm_args(x: Tensor, h: Tensor | None, weight: Tensor, eps: float, total: Tensor | None, out: Tensor) -> Words:
    """Return `norm_args` of native_norm.c; without h there is no total either. h and out may be bfloat16, both."""
    _check("h", h, x.shape, out.dtype)
    _check("weight", weight, x.shape[-1:])
    return pack(tuple(x.shape), (x, h, total, out), (weight, _array("d", (eps,))))


def conv_args(
    x: Tensor, w: Tensor, b: Tensor, reverse: Sequence[bool], sizes: Sequence[int] | None, *, out: Tensor | None = None
) -> Words:
    """Return `conv_args` of native_conv.c, checked. Backward passes have no `out`.

    Raises:
        UsageError: another shape or dtype, or a size below 1.
    """
    batch, length, channels = x.shape
    directions, _, width = w.shape
    _check("w", w, (len(reverse), channels, width))
    _check("b", b, (directions, channels))
    if not 1 <= width <= WIDEST:
        raise UsageError(f"a convolution of width {width}, expected 1 to {WIDEST}")
    if sizes is not None and (len(sizes) != length or min(sizes, default=1) < 1):
        raise UsageError(f"expected {length} sizes of at least 1, got {list(sizes)}")
    repeats = None if sizes is None else _array("q", tuple(sizes))
    return pack((directions, batch, length, channels, width), (x, out), (_array("B", tuple(reverse)), repeats, w, b))


def scan_args(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    dt_weight: Tensor | None,
    dt_bias: Tensor | None,
    scale: Tensor | None,
    gap: Tensor | None,
    reverse: Sequence[bool],
    *,
    out: Tensor | None = None,
    gated: Tensor | None = None,
) -> Words:
    """Return `scan_args` of native_scan.h, checked. Backward passes have no `out`.

    Args:
        gated: where the gated sum goes, (B, L, E), in the dtype of z, which may then be bfloat16; None: to `out`.

    Raises:
        UsageError: another shape or dtype.
    """
    directions, batch, length, channels = u.shape
    states, rank = A.shape[-1], 0 if dt_weight is None else dt_weight.shape[-1]
    _check("u", u, (len(reverse), batch, length, channels))
    _check("dt", dt, u.shape if dt_weight is None else (*u.shape[:-1], rank))
    _check("dt_weight", dt_weight, (directions, channels, rank))
    _check("A", A, (directions, channels, states))
    _check("B", B, (directions, batch, length, states))
    _check("C", C, B.shape)
    _check("D", D, (directions, channels))
    _check("gated", gated, u.shape[1:], torch.float32 if z is None else z.dtype)
    _check("z", z, u.shape[1:], torch.float32 if gated is None else gated.dtype)
    _check("dt_bias", dt_bias, D.shape)
    _check("gap", gap, u.shape)
    if scale is not None:
        _check("scale", scale, (batch, length)[-scale.dim() :])
        scale = scale.expand(batch, length)[..., None]
    if dt_weight is not None and not rank:  # to C, a weight without elements would be no weight
        dt, dt_weight = projected(dt, dt_weight), None
    return pack(
        (directions, batch, length, channels, states, rank),
        (u, dt, B, C, z, gap, scale, out, out if gated is None and z is not None else gated),
        (_array("B", tuple(reverse)), A, D, dt_weight, dt_bias),
    )


def _check(name: str, v: Tensor | None, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> None:
    """Raise UsageError for another shape or dtype: C would read past the end."""
    if v is not None and (v.shape != tuple(shape) or v.dtype != dtype):
        raise UsageError(f"{name} is {tuple(v.shape)} {v.dtype}, expected {tuple(shape)} {dtype}")


@lru_cache(maxsize=256)
def _array(kind: str, values: tuple[float, ...]) -> Any:
    """Return an array of C values. Kept: a model passes the same few at every call."""
    return array(kind, values)


def status() -> tuple[bool, str]:
    """Return whether the native backend can be used on this machine, and the reason in words."""
    try:
        return True, _library()[1]
    except BackendError as error:
        return False, error.message


def has_vnni() -> bool:
    """Return whether the library multiplies bytes, by AVX-512 VNNI."""
    return bool(_library()[0].stm_int8_layout() >> 20)


@cache
def _library() -> tuple[ctypes.CDLL, str]:
    """Return the best library that was built and that the processor can run, and its name for people.

    Raises:
        BackendError: no library was built, or none can be loaded.
    """
    folder = Path(__file__).parent
    try:
        level = ctypes.CDLL(str(folder / "libstm.so")).stm_level()  # the portable build runs on every processor
        name, description = next(
            LEVELS[n] for n in LEVELS if n <= level and (folder / f"libstm{LEVELS[n][0]}.so").exists()
        )
        return ctypes.CDLL(str(folder / f"libstm{name}.so")), description
    except OSError as error:
        raise BackendError(
            f"the native library cannot be loaded: {said(error)}",
            "install stm again where there is a C compiler (gcc or clang)",
        ) from None


@lru_cache
def _function(library: ctypes.CDLL, name: str, structures: int) -> Callable[..., int]:
    """Return a C function of so many structures and the number of threads. It returns 0, or 1 if it failed."""
    function = getattr(library, name)
    function.argtypes = [ctypes.c_void_p] * structures + [ctypes.c_int]
    return cast("Callable[..., int]", function)


class Prepared:
    """An operation whose arguments are laid out once and that runs often: microseconds per call instead of tens.

    Its tensors stay at their addresses; `point` moves one of them. Shapes are checked when the call is made, never when
    it runs.

    Args:
        name: the C function.
        arguments: the structure that it reads.
        moving: the names of the tensors that may move, and the words that point to them.
    """

    def __init__(self, name: str, arguments: Words, moving: Mapping[str, int] = MappingProxyType({})) -> None:
        self._function = _function(_library()[0], name, 1)
        self._words, self._address, self._moving = arguments.words, arguments.words.buffer_info()[0], moving
        # Detached, because a parameter changes its memory when its model is moved or cast. A tensor that moves was
        # given for its strides only, and need not live on.
        fixed = (v for word, v in arguments.keep.items() if word not in moving.values())
        self._alive = [v.detach() if isinstance(v, Tensor) else v for v in fixed]

    @classmethod
    def add_norm(cls, *tensors: Any) -> "Prepared":
        """Prepare `add_norm` of x, h, weight, eps, total and out. x and h may move. h and out may be bfloat16, both."""
        return cls(_named("stm_add_norm", tensors[-1].dtype), norm_args(*tensors), NORM.data("x", "h"))

    @classmethod
    def conv_silu(cls, *tensors: Any, out: Tensor) -> "Prepared":
        """Prepare `conv_silu`, with the operator's arguments in its order. x may move, and be bfloat16."""
        return cls(_named("stm_conv", tensors[0].dtype), conv_args(*tensors, out=out), CONV.data("x"))

    @classmethod
    def scan(cls, *tensors: Any, out: Tensor, gated: Tensor | None = None, coarse: bool = False) -> "Prepared":
        """Prepare `scan`, with the operator's arguments in its order. z and scale may move.

        Args:
            gated: where the gated sum goes; see `scan_args`. None: to `out`.
            coarse: with a relative error of 1e-4 in exponentials, for models whose products are rounded anyway.
        """
        name = "stm_scan" if gated is None else _named("stm_scan", gated.dtype)
        arguments = scan_args(*tensors, out=out, gated=gated)
        return cls("stm_scan_coarse" if coarse and name == "stm_scan" else name, arguments, SCAN.data("z", "scale"))

    @classmethod
    def product(cls, x: Tensor, weight: Tensor, out: Tensor) -> "Prepared":
        """Prepare the product of x (K, rows, E) and a weight of `for_product`, into out (K, rows, width).

        Raises:
            UsageError: another shape or dtype, or a tensor that is not contiguous.
        """
        (K, rows, E), width = x.shape, weight.shape[-1]
        for name, v, shape in (("x", x, x.shape), ("weight", weight, (K, E, width)), ("out", out, (K, rows, width))):
            _check(name, v, shape)
            if not v.is_contiguous() or width % WIDEST_VECTOR:
                raise UsageError(
                    f"{name} has strides {v.stride()}, expected it contiguous and the width {width} a multiple of"
                    f" {WIDEST_VECTOR}"
                )
        return cls("stm_product", pack((K, rows, E, width), (), (x, weight, out)))

    @classmethod
    def int8_product(cls, x: Tensor, weight: "PackedInt8", out: Tensor, *moving: str) -> "Prepared":
        """Prepare the product of x (K, rows, E) with int8 weights, into out (K, rows, width).

        Args:
            moving: x, out, or both, if they may move.

        Raises:
            UsageError: another shape or dtype, or a tensor that is not contiguous.
        """
        K, E, width = weight.shape
        rows = x.shape[1]
        for name, v, shape in (("x", x, (K, rows, E)), ("out", out, (K, rows, width))):
            _check(name, v, shape)
            if not v.is_contiguous():
                raise UsageError(f"{name} has strides {v.stride()}, expected it contiguous")
        words = pack((K, rows, E, width), (), (x, weight.equalizer, weight.bytes, weight.scale, out))
        return cls("stm_int8_product", words, INT8.places(*moving))

    def point(self, name: str, to: Tensor, offset: int = 0) -> None:
        """Use another tensor of the same shape and strides, which the caller keeps alive until the run.

        Args:
            name: the tensor that moves.
            offset: bytes from the start of `to` to the new tensor.
        """
        self._words[self._moving[name]] = to.data_ptr() + offset

    def __call__(self) -> None:
        """Run the C function on as many threads as torch uses."""
        if self._function(self._address, torch.get_num_threads()):
            raise MemoryError("no memory for the scratch of the native library")


def _named(function: str, dtype: torch.dtype) -> str:
    """Return the C function for the dtype that matrix products write and read."""
    return f"{function}_bf16" if dtype == torch.bfloat16 else function


def for_product(weight: Tensor) -> Tensor:
    """Return a weight (K, columns, E) as `Prepared.product` takes it: (K, E, width).

    The width is the next multiple of the widest vector, so that the C code has no incomplete vectors; the columns
    beyond are zeros.
    """
    return F.pad(weight.mT, (0, -weight.shape[1] % WIDEST_VECTOR)).contiguous()


class PackedInt8(NamedTuple):
    """An int8 weight as `Prepared.int8_product` takes it.

    Args:
        shape: K, E and width.
        bytes: (K, panels, E / group, columns, group), the layout that the library's vectors have.
        scale: (K, panels * columns).
        equalizer: (K, E).
    """

    shape: tuple[int, int, int]
    bytes: Tensor
    scale: Tensor
    equalizer: Tensor

    @classmethod
    def of(cls, weight: Tensor, scale: Tensor, equalizer: Tensor) -> "PackedInt8":
        """Pack a weight (K, width, E) with scales (K, width) and an equalizer (K, E)."""
        K, width, E = weight.shape
        layout = _library()[0].stm_int8_layout()
        group, columns, offset = (layout >> bits & 1023 for bits in (0, 10, 20))
        filled = F.pad(weight, (0, -E % group, 0, -width % columns))
        panels = filled.view(K, -1, columns, filled.shape[-1] // group, group).transpose(2, 3).contiguous()
        # With an offset the bytes are those of numbers from 0 to 255.
        packed = panels.to(torch.int16).add_(offset).to(torch.uint8) if offset else panels
        return cls((K, E, width), packed, F.pad(scale, (0, -width % columns)).contiguous(), equalizer.contiguous())


def call(name: str, *structures: Words) -> None:
    """Run a C function once. The structures' tensors live until it returns, since `structures` holds them."""
    function = _function(_library()[0], name, len(structures))
    if function(*(s.words.buffer_info()[0] for s in structures), torch.get_num_threads()):
        raise MemoryError("no memory for the scratch of the native library")
