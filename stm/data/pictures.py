"""Pictures that need no data of the user's: crops of the embedded photographs, ellipses on a plain ground, pink noise.

A schedule can be fitted on them, because its costs need no labels and hardly depend on what the images show: structure
at every scale, edges, and plain regions are enough. Each source alone is worse than the three together.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stm.config import Config
from stm.data.formats import open_image
from stm.data.open import PHOTOGRAPHS

_Generator = torch.Generator


def drawn(config: Config, n: int, seed: int = 0) -> dict[str, Tensor]:
    """Return `n` pictures of each source, (n, 3, H, W) uint8, in the model's size; `as_channels` is their next step."""
    _, height, width = config.model.input_shape
    sources: dict[str, Callable[[int, int, _Generator], Tensor]] = {
        "crops": _crop_maker(),
        "ellipses": ellipses,
        "noise": pink_noise,
    }
    out = {}
    for number, (name, draw) in enumerate(sources.items()):
        # One generator per source, so that more pictures of one do not change the others.
        g = torch.Generator().manual_seed(len(sources) * seed + number)
        # To 256 levels, like a file's: the last bits of a Fourier transform differ between processors, and the hash of
        # the pictures must not. As bytes they also take a quarter of the memory, for as long as a fit lasts.
        out[name] = torch.stack([draw(height, width, g).mul(255).round().byte() for _ in range(n)])
    return out


def _crop_maker(folder: Path = PHOTOGRAPHS) -> Callable[[int, int, _Generator], Tensor]:
    """Return a function that crops a photograph at random: 25 to 100% of the largest crop of the model's proportions,
    half of them mirrored."""
    photographs = []
    for path in sorted(folder.glob("*.jpg")):
        with open_image(path) as image:
            photographs.append(image.convert("RGB"))

    def crop(height: int, width: int, g: _Generator) -> Tensor:
        image = photographs[int(torch.randint(len(photographs), (), generator=g))]
        share, left, top, mirror = torch.rand(4, generator=g).tolist()
        across = min(image.width, image.height * (width / height)) * (0.25 + 0.75 * share)
        down = min(image.height, image.width * (height / width)) * (0.25 + 0.75 * share)
        left, top = left * (image.width - across), top * (image.height - down)
        resized = image.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + across, top + down))
        x = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255  # (3, H, W)
        return x.flip(-1) if mirror < 0.5 else x

    return crop


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
