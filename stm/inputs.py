"""From pictures to a model's input. Pillow is needed to have pictures, and imported when there are some."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stm.config import Config, Preprocess, sides
from stm.errors import StmError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from stm.model.vim import ViM


def preprocess(images: "Image | Sequence[Image]", model: "ViM | Config | Preprocess | None" = None) -> Tensor:
    """Return pictures as a model takes them: resized, cropped at the center, scaled and normalised, as `stm eval` does.

    Args:
        images: a Pillow image of any size and mode, or several of them. EXIF orientation is not applied, as in the
            official evaluation; `PIL.ImageOps.exif_transpose` applies it.
        model: the model, its config or its `Preprocess`, which say how. None: as the official models, at 224 pixels.

    Returns:
        (B, C, H, W) float32, B = 1 for one image; on the model's device if a model is given.

    Raises:
        UsageError: something other than a Pillow image.
        DataError: an image that the model cannot take.
        StmError: Pillow is not installed.

    Examples:
        >>> from PIL import Image
        >>> model = stm.load("vim-digits")
        >>> stm.preprocess(Image.new("L", (40, 30)), model).shape
        torch.Size([1, 1, 28, 28])
    """
    try:
        from PIL.Image import Image as Picture

        from stm.data.preprocess import preprocess as one
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "PIL":
            raise
        raise StmError("pictures need Pillow, which is not installed", "pip install pillow") from error
    pictures: list[Any] = list(images) if isinstance(images, list | tuple) else [images]
    wrong = next((each for each in pictures if not isinstance(each, Picture)), None)
    if wrong is not None:
        raise UsageError(f"an image is of type {type(wrong).__name__}, expected a Pillow image", "PIL.Image.open(FILE)")
    prep = _of(model)
    made = [one(picture, prep) for picture in pictures]
    batch = torch.stack(made) if made else torch.empty(0, len(prep.mean), *sides(prep.crop))
    weights = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
    return batch if weights is None else batch.to(weights.device)


def _of(model: "ViM | Config | Preprocess | None") -> Preprocess:
    if model is None:
        return Preprocess.official(224)
    if isinstance(model, Preprocess):
        return model
    return (model if isinstance(model, Config) else model.config).preprocessing
