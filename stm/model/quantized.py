"""int8: the matrix products of a block as products of whole numbers. Everything else stays float32.

in_proj, x_proj and out_proj have int8 weights with one scale per output channel. Their inputs become int8 when the
model runs, with one scale per token: a scale for all tokens costs 75 times the KL, because a class token and a patch of
sky differ by more than 8 bits. Sums are exact, in whole numbers, so every way to compute them gives the same bits.

A few channels of an input may be far larger than the others, which then share what is left of the 8 bits. So each
product has an equalizer: a power of two per input channel, by which the input is multiplied and the weight divided.
Nothing is rounded by that. The powers are chosen as SmoothQuant has them (Xiao et al. 2023, equation 4), with the
exponent that gives the smallest error on pictures, as AWQ does (Lin et al. 2024).

This file is the definition, in torch's own operations, for every device. On processors a model that is served runs C
with the same bits (`Int8Product` in stm/model/prepared.py).
"""

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from stm.backends import Backend
from stm.config import ModelConfig
from stm.errors import UsageError
from stm.merging.plan import State
from stm.model import products
from stm.model.layers import REVERSE, Block, Mixer

PEAK = 127  # the largest whole number: -128 has no opposite
LEAST = 1e-30  # the least peak of a row: PEAK divided by it is still a float
EXACT = 2**24 // PEAK**2  # so many products add up to a whole number that float32 holds exactly
STRENGTHS = (0.25, 0.5, 0.75, 1.0)  # SmoothQuant's alpha
# An equalizer is taken if the squared error falls below this share. Without outliers it falls by a tenth on the
# pictures, and KL on photographs rises from .00014 to .00016.
WORTH = 0.5
ROWS = 256  # of an input, on which the strengths of a product are compared


def narrowed(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows (..., n, E) as whole numbers from -127 to 127, float32, and the scale of each row, (..., n, 1).

    Halves go to the even number. A row with NaN has the scale NaN, so that its products are NaN, too.
    """
    peak = x.abs().amax(-1, keepdim=True).clamp_min(LEAST)
    # Spelled out: a division by a number is a product on some devices, and rounds differently.
    return (x * (peak.reciprocal() * PEAK)).round(), peak * (1 / PEAK)


def product(x: Tensor, weight: Tensor, scale: Tensor, equalizer: Tensor) -> Tensor:
    """Return (..., rows, out), float32, of x (..., rows, in) and the buffers of an `Int8`."""
    with torch.autocast(x.device.type, enabled=False):  # which would round the sums
        whole, of_row = narrowed(x.float() * equalizer[..., None, :])
        out = _sums(whole, weight.float()) * of_row * scale[..., None, :]
    if out.requires_grad and not torch.compiler.is_compiling():
        out.register_hook(_refuse)
    return out


def _refuse(gradient: Tensor) -> None:
    """Raise UsageError. Rounding has the gradient 0, which would pass for one."""
    raise UsageError("an int8 model has no gradient", "take it in float32: dtype='float32'")


_Kind = TypeVar("_Kind", bound=Mixer)


class Int8(nn.Module):
    """x weight^T with int8 weights, for rows x that become int8 on the way.

    Buffers: `weight` (..., out, in), int8; `scale` (..., out), of the weights; `equalizer` (..., in), powers of two by
    which x is multiplied first. Leading axes, if any, are those of the directions. They start uninitialised.

    Args:
        shape: of the weight.
    """

    weight: Tensor
    scale: Tensor
    equalizer: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(shape, dtype=torch.int8))
        self.register_buffer("scale", torch.empty(shape[:-1]))
        self.register_buffer("equalizer", torch.empty((*shape[:-2], shape[-1])))

    @classmethod
    def of(cls, weight: Tensor, equalizer: Tensor, share: float = 1.0) -> "Int8":
        """Return the product of share times a weight (..., out, in), equalized by (..., in)."""
        out = cls(*weight.shape).to(weight.device)
        whole, scale = narrowed(weight.detach().float() / equalizer[..., None, :])
        out.weight, out.scale, out.equalizer = whole.to(torch.int8), scale[..., 0] * share, equalizer
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., rows, out), float32, of x (..., rows, in), whose leading axes are those of the weight."""
        return product(x, self.weight, self.scale, self.equalizer)

    def floats(self, share: float = 1.0) -> Tensor:
        """Return the weight (..., out, in) that this stands for, in float32, without a share."""
        return self.weight.float() * (self.scale / share)[..., None] * self.equalizer[..., None, :]


class Int8Mixer(Mixer):
    """A mixer whose in_proj, x_proj and out_proj are `Int8`. It is for inference alone: rounding has no gradient."""

    in_proj: Int8  # type: ignore[assignment]
    x_proj: Int8
    out_proj: Int8  # type: ignore[assignment]

    def __init__(self, model: ModelConfig, backend: Backend) -> None:
        super().__init__(model, backend)
        del self.x_proj_weight
        K, D, E = len(REVERSE), model.d_model, model.d_inner
        self.in_proj, self.x_proj, self.out_proj = Int8(2 * E, D), Int8(K, sum(self.splits), E), Int8(D, E)

    @property
    def input_dtype(self) -> torch.dtype:
        return torch.float32

    def cast(self, dtype: torch.dtype) -> None:
        raise AssertionError("ViM.cast makes a mixer of floats first")

    def in_half(self, u: Tensor, half: int) -> Tensor:
        weight, scale = self.in_proj.weight.chunk(2)[half], self.in_proj.scale.chunk(2)[half]
        return product(u, weight, scale, self.in_proj.equalizer)

    def selected(self, x: Tensor, k: slice) -> Tensor:
        return product(x, self.x_proj.weight[k], self.x_proj.scale[k], self.x_proj.equalizer[k])


def quantized(mixer: Mixer, model: ModelConfig, equalizers: Sequence[Tensor]) -> Int8Mixer:
    """Return a mixer of floats in int8, with the equalizers of in_proj, x_proj and out_proj."""
    other = Int8Mixer(model, mixer.backend)
    weights = (mixer.in_proj.weight, mixer.x_proj_weight, mixer.out_proj.weight)
    shares = (1.0, 1.0, mixer.share)
    other.in_proj, other.x_proj, other.out_proj = map(Int8.of, weights, equalizers, shares)
    return _with_others(other, mixer)


def restored(mixer: Int8Mixer, model: ModelConfig) -> Mixer:
    """Return an int8 mixer with the float32 weights that its whole numbers stand for."""
    other = Mixer(model, mixer.backend)
    other.in_proj.weight = nn.Parameter(mixer.in_proj.floats())
    other.x_proj_weight = nn.Parameter(mixer.x_proj.floats())
    other.out_proj.weight = nn.Parameter(mixer.out_proj.floats(mixer.share))
    other = other.to(mixer.D.device)
    return _with_others(other, mixer)


def _with_others(to: _Kind, of: Mixer) -> _Kind:
    """Return `to` with what `of` has beside its products."""
    for name in ("conv1d_weight", "conv1d_bias", "dt_proj_weight", "dt_proj_bias", "A_log", "D", "scan_norm"):
        setattr(to, name, getattr(of, name))
    return to


def with_mixer(block: Block, mixer: Mixer) -> Block:
    """Return a copy of a block with another mixer. The norm is shared, and the block itself does not change."""
    other = copy.copy(block)
    other._modules = {**block._modules, "mixer": mixer.train(block.training)}
    return other


def equalizers(block: Block, state: State) -> list[Tensor]:
    """Return the equalizers of a block's in_proj, x_proj and out_proj for the inputs that a state gives them."""
    mixer = block.mixer
    u = block.add_norm(state)[1]  # (B, L, D)
    _, taps = mixer(u, state, ("u", "y", "z"))
    assert taps.u is not None and taps.y is not None and taps.z is not None  # they were wanted
    x, y = taps.u.flatten(1, 2), mixer.gate(taps.y, taps.z)  # (K, B L, E), (B, L, E)
    per_direction = [_equalizer(rows, weight) for rows, weight in zip(x, mixer.x_proj_weight, strict=True)]
    return [
        _equalizer(u.flatten(0, 1), mixer.in_proj.weight),
        torch.stack(per_direction),
        _equalizer(y.flatten(0, 1), mixer.out_proj.weight),
    ]


def _equalizer(x: Tensor, weight: Tensor) -> Tensor:
    """Return the best equalizer (in,) of x (rows, in) and a weight (out, in)."""
    some = x[:: max(len(x) // ROWS, 1)]
    exact = products.linear(some, weight)

    def error(equalizer: Tensor) -> float:
        return float((Int8.of(weight, equalizer)(some) - exact).square().sum())

    none = torch.ones_like(x[0])
    best = min((_powers(x, weight, strength) for strength in STRENGTHS), key=error)
    return best if error(best) < WORTH * error(none) else none


def _powers(x: Tensor, weight: Tensor, strength: float) -> Tensor:
    """Return powers of two near (peak of the weight)^(1 - strength) / (peak of x)^strength, per input channel."""
    peaks = x.abs().amax(0).clamp_min(LEAST)  # (in,)
    of_weight = weight.abs().amax(0).clamp_min(LEAST)  # (in,)
    powers = (1 - strength) * of_weight.log2() - strength * peaks.log2()
    # Around their median, so that most channels stay near their own size. Bounded, so that none is lost in another.
    return (powers - powers.median()).round().clamp(-30, 30).exp2()


def _sums(whole: Tensor, weight: Tensor) -> Tensor:
    """Return whole (..., rows, in) times weight^T (..., in, out), exactly, in float32.

    Float32 adds whole numbers without rounding up to 2^24. Longer sums are added from parts, in int32.
    """
    product = products.linear if weight.dim() == 2 else products.linears
    parts = zip(whole.split(EXACT, -1), weight.split(EXACT, -1), strict=True)
    first, *others = (product(a, b) for a, b in parts)
    if not others:
        return first
    total = first.int()
    for each in others:
        total += each.int()
    return total.float()
