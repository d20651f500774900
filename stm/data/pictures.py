"""Pictures that need no data of the user's: crops of the embedded photographs, ellipses on a plain ground, pink noise.

A schedule can be fitted on them, because its costs need no labels and hardly depend on what the images show: structure
at every scale, edges, and plain regions are enough. Each source alone is worse than the three together.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stm.config import Config
from stm.data.formats import open_image
from stm.data.open import PHOTOGRAPHS
from stm.data.patterns import ellipses, pink_noise

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
