"""Turn images into a model's input."""

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from stm.config import Preprocess, sides
from stm.data.images import pixels
from stm.data.patterns import per_channel


def preprocess(image: Image.Image, prep: Preprocess) -> Tensor:
    """Resize, center crop, scale to 0..1 and normalise; equal to torchvision's PIL path (see `fit`).

    Args:
        image: an image of any size and mode.
        prep: of a model whose channels the image has; one of one or three channels takes every image.

    Returns:
        (C, H, W) float32, H and W those of `prep.crop`.

    Raises:
        DataError: `fit` refuses the image.
    """
    return normalise([pixels(image, prep)], prep)[0]


def normalise(images: Sequence[bytes], prep: Preprocess) -> Tensor:
    """Return (pixel - mean) / std of B images, given as `stm.data.images.pixels` does, as (B, C, H, W) float32."""
    shape = (len(images), *sides(prep.crop), len(prep.mean))
    sizes = {*map(len, images)}
    if sizes - {math.prod(shape[1:])}:  # more than 8 bits per channel, if only in some
        floats = [_floats(image, shape[1:]) for image in images]
        x = torch.stack(floats).permute(0, 3, 1, 2).contiguous()  # (B, C, H, W)
        return x.sub_(per_channel(prep.mean)).div_(per_channel(prep.std))
    pixels = (
        torch.frombuffer(bytearray().join(images), dtype=torch.uint8) if images else torch.empty(0, dtype=torch.uint8)
    )
    # The order of operations is torchvision's (ToTensor, then Normalize), so that every float is the same.
    x = pixels.reshape(shape).permute(0, 3, 1, 2).contiguous().float().div_(255)  # (B, C, H, W)
    return x.sub_(per_channel(prep.mean)).div_(per_channel(prep.std))


def _floats(image: bytes, shape: Sequence[int]) -> Tensor:
    """Return the pixels of one image, uint8 or float32, as (H, W, C) float32 from 0 to 1."""
    bytes_ = len(image) == math.prod(shape)
    x = torch.frombuffer(bytearray(image), dtype=torch.uint8 if bytes_ else torch.float32).reshape(*shape)
    return x.float().div_(255) if bytes_ else x
