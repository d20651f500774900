"""The native backend: plain C through ctypes, for processors. Float32 inside; other dtypes are converted on the way.

The libraries are built by the package's own build (setup.py), one for each level of the processor. They are loaded
after torch, so that its OpenMP is shared, and run on as many threads as torch does; results do not depend on how many.
The operators hide them from torch.compile and torch.export, which see one node each.
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

from stm.backends.operators import operator
from stm.backends.reference import projected
from stm.errors import BackendError, UsageError

__all__ = ["add_norm", "conv_silu", "scan", "status"]

LEVELS = {
    4: ("-v4", "C with AVX-512"),
    3: ("-v3", "C with AVX2"),
    0: ("", "portable C"),
}  # stm_level() of native.c, best first
SPAN = 64  # channels that a thread takes at a time, as in native.h: there are E / SPAN partial sums of some gradients
WIDEST_VECTOR = 16  # floats, as LANES in native.h
WIDEST = 16  # taps of the convolution, as in native_conv.c


def status() -> tuple[bool, str]:
    """Whether the native backend can be used here, and the reason in words."""
    try:
        return True, _library()[1]
    except BackendError as error:
        return False, error.message


def conv_silu(
    x: Tensor, w: Tensor, b: Tensor, reverse: tuple[bool, ...], *, sizes: tuple[int, ...] | None = None
) -> Tensor:
    """As `stm.backends.reference.conv_silu`. A slice of a wider tensor's channels is not copied."""
    out: Tensor = _conv(x.float(), w.float(), b.float(), list(reverse), None if sizes is None else list(sizes))
    return out.to(x.dtype)


def scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    reverse: tuple[bool, ...],
    *,
    dt_weight: Tensor | None = None,
    dt_bias: Tensor | None = None,
    scale: Tensor | None = None,
    gap: Tensor | None = None,
    h0: Tensor | None = None,
    split: bool = False,
) -> Tensor:
    """As `stm.backends.reference.scan`. A slice of a wider tensor's channels is not copied; dt times its weight is
    never in memory."""
    optional = (None if v is None else v.float() for v in (None if split else z, dt_weight, dt_bias, scale, gap, h0))
    out: Tensor = _scan(
        u.float(), dt.float(), A.float(), B.float(), C.float(), D.float(), *optional, list(reverse), split
    )
    return out.to(u.dtype)


def add_norm(x: Tensor, h: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """As `stm.backends.reference.add_norm`."""
    *total, out = _add_norm(x.float(), None if h is None else h.float(), weight.float(), eps)
    return (total[0] if total else x), out.to(dtype)


# The operators.

_CONV = "Tensor x, Tensor w, Tensor b, bool[] reverse, int[]? sizes"
_SCAN = (
    "Tensor u, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor D, "
    "Tensor? z, Tensor? dt_weight, Tensor? dt_bias, Tensor? scale, Tensor? gap, Tensor? h0, bool[] reverse"
)
_NORM = "Tensor x, Tensor? h, Tensor weight, float eps"


def _conv_out(x: Tensor, w: Tensor, b: Tensor, reverse: Sequence[bool], sizes: Sequence[int] | None) -> Tensor:
    return x.new_empty(len(reverse), *x.shape)


def _scan_out(u: Tensor, *others: Any) -> Tensor:
    split = others[-1]
    return u.new_empty(u.shape if split else u.shape[1:])


def _gradients(grad: Tensor, *inputs: Any) -> list[Tensor]:
    return [v.new_empty(v.shape) for v in inputs if isinstance(v, Tensor)]


@operator(f"native_conv_backward(Tensor grad, {_CONV}) -> Tensor[]", fake=_gradients, device="CPU")
def _conv_backward(grad: Tensor, *inputs: Any) -> list[Tensor]:
    x, w, b, _, _ = inputs
    g_x = x.new_zeros(x.shape)
    g_w, g_b = (v.new_empty(x.shape[0], *v.shape) for v in (w, b))  # of each image
    _call("stm_conv_backward", _conv_args(*inputs), _pack((), (grad, g_x), (g_w, g_b)))
    return [g_x, g_w.sum(0), g_b.sum(0)]


@operator(f"native_conv({_CONV}) -> Tensor", fake=_conv_out, device="CPU", backward=_conv_backward)
def _conv(*inputs: Any) -> Tensor:
    out = _conv_out(*inputs)
    _call("stm_conv", _conv_args(*inputs, out=out))
    return out


@operator(f"native_scan_backward(Tensor grad, {_SCAN}) -> Tensor[]", fake=_gradients, device="CPU")
def _scan_backward(grad: Tensor, *inputs: Any) -> list[Tensor]:
    u, low, A, B, C, D, z, dt_weight, dt_bias, scale, gap, h0, reverse = inputs
    dt = projected(low, dt_weight)
    batch, spans = u.shape[1], -(-u.shape[3] // SPAN)
    g_u, g_dt, g_z, g_gap = (_empty(v) for v in (u, dt, z, gap))
    g_A, g_D, g_h0 = (_empty(v, batch) for v in (A, D, h0))
    g_B, g_C, g_scale = (_empty(v, spans) for v in (B, C, None if scale is None else u[..., 0]))
    grads = _pack((), (grad, g_u, g_dt, g_z, g_gap), (g_B, g_C, g_scale, g_A, g_D, g_h0))
    _call("stm_scan_backward", _scan_args(u, dt, A, B, C, D, z, None, dt_bias, scale, gap, h0, reverse), grads)
    if g_scale is not None:  # (spans, K, B, L)
        g_scale = g_scale.sum((0, 1) if scale.dim() == 2 else (0, 1, 2))
    g_A, g_B, g_C, g_D, g_h0 = (None if v is None else v.sum(0) for v in (g_A, g_B, g_C, g_D, g_h0))
    g_bias = None if dt_bias is None or g_dt is None else g_dt.sum((1, 2))
    g_weight = None
    if dt_weight is not None and g_dt is not None:
        rows = g_dt.flatten(1, 2)  # (K, B L, E)
        g_dt, g_weight = rows.bmm(dt_weight).view(low.shape), rows.mT.bmm(low.flatten(1, 2))
    return [v for v in (g_u, g_dt, g_A, g_B, g_C, g_D, g_z, g_weight, g_bias, g_scale, g_gap, g_h0) if v is not None]


@operator(
    f"native_scan({_SCAN}, bool split) -> Tensor", fake=_scan_out, device="CPU", backward=_scan_backward, constants=1
)
def _scan(*inputs: Any) -> Tensor:
    out = _scan_out(*inputs)
    _call("stm_scan", _scan_args(*inputs[:-1], out=out))
    return out


def _norm_out(x: Tensor, h: Tensor | None, weight: Tensor, eps: float) -> list[Tensor]:
    return [x.new_empty(x.shape) for given in (h, x) if given is not None]


@operator(f"native_add_norm_backward(Tensor[] grads, {_NORM}) -> Tensor[]", fake=_gradients, device="CPU")
def _add_norm_backward(grads: list[Tensor], x: Tensor, h: Tensor | None, weight: Tensor, eps: float) -> list[Tensor]:
    """Of y = s r w with s = x + h and r = (mean(s^2) + eps)^-1/2: ds = r (w dy - s r mean(w dy s r))."""
    *g_total, g_out = grads
    stream = x if h is None else x + h
    r = (stream.square().mean(-1, keepdim=True) + eps).rsqrt()  # (B, L, 1)
    unit, flow = stream * r, g_out * weight  # (B, L, D)
    g_x = torch.addcmul(flow, unit, (flow * unit).mean(-1, keepdim=True), value=-1) * r
    g_x = g_x + g_total[0] if g_total else g_x
    return [v for v in (g_x, None if h is None else g_x.clone(), (g_out * unit).sum((0, 1))) if v is not None]


@operator(f"native_add_norm({_NORM}) -> Tensor[]", fake=_norm_out, device="CPU", backward=_add_norm_backward)
def _add_norm(x: Tensor, h: Tensor | None, weight: Tensor, eps: float) -> list[Tensor]:
    out = _norm_out(x, h, weight, eps)
    _call("stm_add_norm", _norm_args(x, h, weight, eps, None if h is None else out[0], out[-1]))
    return out


def _empty(like: Tensor | None, *leading: int) -> Tensor | None:
    return None if like is None else like.new_empty(*leading, *like.shape)


# The C side: the structures of native_conv.c and native_scan.c, which are words of 64 bits throughout, and the library.


_VIEW = 4  # words of a `view` in native.h: its data and the strides of K, B and L
_ABSENT = (0,) * _VIEW


class Layout(NamedTuple):
    """The fields of a C structure by name, in its order. A test holds them to the C source."""

    integers: tuple[str, ...]
    views: tuple[str, ...]
    pointers: tuple[str, ...]

    def data(self, *views: str) -> dict[str, int]:
        """Return the index of the word that points to the data of each of `views`."""
        return {name: len(self.integers) + _VIEW * self.views.index(name) for name in views}


NORM = Layout(("batch", "L", "D"), ("x", "h", "total", "out"), ("weight", "eps"))
CONV = Layout(("K", "batch", "L", "E", "W"), ("x", "out"), ("reverse", "sizes", "w", "b"))
SCAN = Layout(
    ("K", "batch", "L", "E", "N", "R"),
    ("u", "dt", "B", "C", "z", "gap", "scale", "out"),
    ("reverse", "A", "D", "h0", "weight", "bias"),
)


class _Words(NamedTuple):
    """A C structure, and the objects that own the memory behind its pointers."""

    words: "array[int]"
    keep: dict[int, Any]  # by the index of the word that points into it


def _pack(integers: tuple[int, ...], views: tuple[Tensor | None, ...], pointers: tuple[Any, ...]) -> _Words:
    """A C structure: integers, then tensors with their strides, then tensors and arrays. Absent ones are null.

    A tensor is copied where it is not laid out as C reads it. This runs a few times a block, so it does nothing twice.
    """
    words, keep = [*integers], {}
    for v in views:  # (K, B, L, channels) or (B, L, channels): `view` in native.h
        if v is None:
            words += _ABSENT
            continue
        strides = v.stride()
        if strides[-1] != 1:
            v = v.contiguous()
            strides = v.stride()
        keep[len(words)] = v
        words.append(v.data_ptr())
        words += strides[:3] if len(strides) == 4 else (0, *strides[:2])
    for v in pointers:
        if v is None:
            words.append(0)
            continue
        if isinstance(v, Tensor):
            v = v.contiguous()
        keep[len(words)] = v
        words.append(v.data_ptr() if isinstance(v, Tensor) else v.buffer_info()[0])
    return _Words(array("q", words), keep)


def _norm_args(x: Tensor, h: Tensor | None, weight: Tensor, eps: float, total: Tensor | None, out: Tensor) -> _Words:
    _check("h", h, x.shape)
    _check("weight", weight, x.shape[-1:])
    return _pack(tuple(x.shape), (x, h, total, out), (weight, _array("d", (eps,))))


def _conv_args(
    x: Tensor, w: Tensor, b: Tensor, reverse: Sequence[bool], sizes: Sequence[int] | None, *, out: Tensor | None = None
) -> _Words:
    batch, length, channels = x.shape
    directions, _, width = w.shape
    _check("w", w, (len(reverse), channels, width))
    _check("b", b, (directions, channels))
    if not 1 <= width <= WIDEST:
        raise UsageError(f"a convolution of width {width}, expected 1 to {WIDEST}")
    if sizes is not None and (len(sizes) != length or min(sizes, default=1) < 1):
        raise UsageError(f"expected {length} sizes of at least 1, got {list(sizes)}")
    repeats = None if sizes is None else _array("q", tuple(sizes))
    return _pack((directions, batch, length, channels, width), (x, out), (_array("B", tuple(reverse)), repeats, w, b))


def _scan_args(
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
    h0: Tensor | None,
    reverse: Sequence[bool],
    *,
    out: Tensor | None = None,
) -> _Words:
    directions, batch, length, channels = u.shape
    states, rank = A.shape[-1], 0 if dt_weight is None else dt_weight.shape[-1]
    _check("u", u, (len(reverse), batch, length, channels))
    _check("dt", dt, u.shape if dt_weight is None else (*u.shape[:-1], rank))
    _check("dt_weight", dt_weight, (directions, channels, rank))
    _check("A", A, (directions, channels, states))
    _check("B", B, (directions, batch, length, states))
    _check("C", C, B.shape)
    _check("D", D, (directions, channels))
    _check("z", z, u.shape[1:])
    _check("dt_bias", dt_bias, D.shape)
    _check("gap", gap, u.shape)
    _check("h0", h0, A.shape)
    if scale is not None:
        _check("scale", scale, (batch, length)[-scale.dim() :])
        scale = scale.expand(batch, length)[..., None]
    return _pack(
        (directions, batch, length, channels, states, rank),
        (u, dt, B, C, z, gap, scale, out),
        (_array("B", tuple(reverse)), A, D, h0, dt_weight, dt_bias),
    )


def _check(name: str, v: Tensor | None, shape: Sequence[int]) -> None:
    """C would read past the end."""
    if v is not None and (v.shape != tuple(shape) or v.dtype != torch.float32):
        raise UsageError(f"{name} is {tuple(v.shape)} {v.dtype}, expected {tuple(shape)} torch.float32")


@lru_cache(maxsize=256)
def _array(kind: str, values: tuple[float, ...]) -> Any:
    return array(kind, values)


@cache
def _library() -> tuple[ctypes.CDLL, str]:
    """The best library that is here and that the processor can run, and what it is.

    Raises:
        BackendError: there is none.
    """
    folder = Path(__file__).parent
    try:
        level = ctypes.CDLL(str(folder / "libstm.so")).stm_level()
        name, description = next(
            LEVELS[n] for n in LEVELS if n <= level and (folder / f"libstm{LEVELS[n][0]}.so").exists()
        )
        return ctypes.CDLL(str(folder / f"libstm{name}.so")), description
    except OSError as error:
        raise BackendError(
            f"the native library cannot be loaded: {error}",
            "install stm again where there is a C compiler (gcc or clang)",
        ) from None


@lru_cache
def _function(library: ctypes.CDLL, name: str, structures: int) -> Callable[..., int]:
    function = getattr(library, name)
    function.argtypes = [ctypes.c_void_p] * structures + [ctypes.c_int]
    return cast("Callable[..., int]", function)


class Prepared:
    """An operation whose arguments are laid out once and run often: microseconds where the operators above take tens.

    Its tensors stay where they are; `point` moves one of them. Nothing is checked again.

    Args:
        name: of the C function.
        arguments: its structure.
        moving: the names of the tensors that may move, and the words that point to them.
    """

    def __init__(self, name: str, arguments: _Words, moving: Mapping[str, int] = MappingProxyType({})) -> None:
        self._function = _function(_library()[0], name, 1)
        self._words, self._address, self._moving = arguments.words, arguments.words.buffer_info()[0], moving
        # Detached: a parameter changes its memory when its model is moved or cast. What moves is here for its strides
        # only.
        fixed = (v for word, v in arguments.keep.items() if word not in moving.values())
        self._alive = [v.detach() if isinstance(v, Tensor) else v for v in fixed]

    @classmethod
    def add_norm(cls, *tensors: Any) -> "Prepared":
        """Of x, h, weight, eps, total and out: `add_norm`. x and h may move."""
        return cls("stm_add_norm", _norm_args(*tensors), NORM.data("x", "h"))

    @classmethod
    def conv_silu(cls, *tensors: Any, out: Tensor) -> "Prepared":
        """`conv_silu`. x may move."""
        return cls("stm_conv", _conv_args(*tensors, out=out), CONV.data("x"))

    @classmethod
    def scan(cls, *tensors: Any, out: Tensor) -> "Prepared":
        """`scan`, all arguments in the operator's order. z and scale may move."""
        return cls("stm_scan", _scan_args(*tensors, out=out), SCAN.data("z", "scale"))

    @classmethod
    def product(cls, x: Tensor, weight: Tensor, out: Tensor) -> "Prepared":
        """x (K, rows, E) by a weight of `for_product`; out (K, rows, width), all of them contiguous."""
        (K, rows, E), width = x.shape, weight.shape[-1]
        for name, v, shape in (("x", x, x.shape), ("weight", weight, (K, E, width)), ("out", out, (K, rows, width))):
            _check(name, v, shape)
            if not v.is_contiguous() or width % WIDEST_VECTOR:
                raise UsageError(
                    f"{name} has strides {v.stride()}, expected it contiguous and the width {width} a multiple of"
                    f" {WIDEST_VECTOR}"
                )
        return cls("stm_product", _pack((K, rows, E, width), (), (x, weight, out)))

    def point(self, name: str, to: Tensor, offset: int = 0) -> None:
        """Use another tensor of the same shape and strides, which begins so many bytes after `to`, and has to live
        until the run."""
        self._words[self._moving[name]] = to.data_ptr() + offset

    def __call__(self) -> None:
        if self._function(self._address, torch.get_num_threads()):
            raise MemoryError("no memory for the scratch of the native library")


def for_product(weight: Tensor) -> Tensor:
    """A weight (K, columns, E) as `Prepared.product` takes it: (K, E, width), zeros beyond the columns, the width some
    whole vectors."""
    return F.pad(weight.mT, (0, -weight.shape[1] % WIDEST_VECTOR)).contiguous()


def _call(name: str, *structures: _Words) -> None:
    function = _function(_library()[0], name, len(structures))
    if function(*(s.words.buffer_info()[0] for s in structures), torch.get_num_threads()):
        raise MemoryError("no memory for the scratch of the native library")
