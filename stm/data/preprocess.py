"""Turn images into a model's input."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from stm.config import Preprocess
from stm.data.images import fit


def preprocess(image: Image.Image, prep: Preprocess) -> Tensor:
    """Resize, center crop, scale to 0..1 and normalise; equal to torchvision's PIL path (see `fit`).

    Args:
        image: an image of any size and mode.
        prep: for a model of one or three channels.

    Returns:
        (C, H, W) float32, H = W = `prep.crop`.

    Raises:
        DataError: `fit` refuses the image.
    """
    return normalise([fit(image, prep).tobytes()], prep)[0]


def normalise(images: Sequence[bytes], prep: Preprocess) -> Tensor:
    """Return (pixel / 255 - mean) / std of B images, given as bytes of (H, W, C) uint8, as (B, C, H, W) float32."""
    shape = (len(images), prep.crop, prep.crop, len(prep.mean))
    pixels = (
        torch.frombuffer(bytearray().join(images), dtype=torch.uint8) if images else torch.empty(0, dtype=torch.uint8)
    )
    # The order of operations is torchvision's (ToTensor, then Normalize), so that every float is the same.
    x = pixels.reshape(shape).permute(0, 3, 1, 2).contiguous().float().div_(255)  # (B, C, H, W)
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (prep.mean, prep.std))  # (C, 1, 1)
    return x.sub_(mean).div_(std)
