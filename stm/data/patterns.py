"""Pictures by arithmetic alone: a model can be given them where only torch is installed."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stm.config import Preprocess

_Generator = torch.Generator


def ellipses(height: int, width: int, g: _Generator) -> Tensor:
    """Return (3, H, W) in 0..1: 2 to 7 ellipses of random colour, size and angle on a ground of one colour."""
    size = min(height, width)  # the unit of all lengths
    y, x = torch.meshgrid(*((torch.arange(side) + 0.5) / size for side in (height, width)), indexing="ij")  # (H, W)
    out = torch.rand(3, 1, 1, generator=g).expand(3, height, width)
    for _ in range(int(torch.randint(2, 8, (), generator=g))):
        cx, cy, a, b, turn = torch.rand(5, generator=g).tolist()
        cx, cy = cx * (width / size), cy * (height / size)
        a, b, angle = 0.05 + 0.35 * a, 0.05 + 0.35 * b, math.pi * turn
        u = (x - cx) * math.cos(angle) + (y - cy) * math.sin(angle)
        v = (y - cy) * math.cos(angle) - (x - cx) * math.sin(angle)
        distance = (1 - ((u / a) ** 2 + (v / b) ** 2).sqrt()) * min(a, b) * size  # pixels inside the edge, nearly
        out = torch.lerp(out, torch.rand(3, 1, 1, generator=g), (distance + 0.5).clamp(0, 1))
    return out


def pink_noise(height: int, width: int, g: _Generator) -> Tensor:
    """Return (3, H, W) in 0..1: noise whose amplitude falls as 1 / frequency, as that of natural images does, in
    three correlated channels."""
    fy, fx = torch.fft.fftfreq(height), torch.fft.rfftfreq(width)
    frequency = (fy[:, None] ** 2 + fx**2).sqrt().clamp_min(1 / max(height, width))  # (H, W / 2 + 1)
    white = torch.randn(4, height, width, generator=g)
    pink = torch.fft.irfft2(torch.fft.rfft2(white) / frequency, s=(height, width))  # (4, H, W)
    pink = (pink - pink.mean((1, 2), keepdim=True)) / pink.std((1, 2), keepdim=True).clamp_min(1e-6)
    mixed = (2 * pink[:1] + pink[1:]) / math.sqrt(5)  # (3, H, W)
    return (0.5 + 0.2 * mixed).clamp(0, 1)


def as_channels(pictures: Tensor, prep: Preprocess) -> Tensor:
    """Return pictures (B, 3, H, W) uint8 as a model of any number of channels takes them, (B, C, H, W) float32.

    A model of one channel sees the mean of red, green and blue; with more than three channels they repeat.
    """
    x = pictures.float().div_(255)  # (B, 3, H, W)
    channels = len(prep.mean)
    if channels == 1:
        x = x.mean(1, keepdim=True)
    elif channels != 3:
        x = x[:, torch.arange(channels) % 3]
    return (x - per_channel(prep.mean)) / per_channel(prep.std)


def per_channel(values: Sequence[float]) -> Tensor:
    """Return one value per channel, (C, 1, 1), as it meets an image."""
    return torch.tensor(values).reshape(-1, 1, 1)
