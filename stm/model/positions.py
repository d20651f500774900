"""The position table of another grid of patches: a model at another resolution than its weights were trained at."""

from typing import TYPE_CHECKING, Any

from stm.config import ModelConfig, in_pixels
from stm.merging.schedule import Fixed, fixed, others

if TYPE_CHECKING:  # the sentences about it need no torch
    from torch import Tensor

INTERPOLATED = "interpolated"  # in `extra`: the size and grid that the table of positions was trained for


def interpolated(table: "Tensor", old: ModelConfig, new: ModelConfig) -> "Tensor":
    """Return a position table for another grid, bicubic over the patches; the rows of class tokens stay as they are.

    With the class token at the head this is what the official code does before it trains on at another size (hustvl/Vim
    vim/utils.py `interpolate_pos_embed`, OpenGVLab/VideoMamba image_sm/main.py). That code takes the first row for the
    class token's. A class token in the middle has its row there, and so it is taken from there and put back there.

    Args:
        table: (1, L, D) of `old`.

    Returns:
        (1, L', D) of `new`, in the table's dtype.
    """
    import torch.nn.functional as F

    patches = table[:, others(old.tokens, old.cls)]  # (1, M, D)
    on_grid = patches.float().mT.unflatten(-1, old.grid)  # (1, D, rows, columns)
    resized = F.interpolate(on_grid, size=new.grid, mode="bicubic", align_corners=False)
    return joined(resized.flatten(2).mT.to(table.dtype), table[:, list(fixed(old.cls))], new.cls)


def joined(patches: "Tensor", class_tokens: "Tensor", cls: Fixed) -> "Tensor":
    """Return the rows of patches (1, M, D) and class tokens (1, n, D) as the sequence has them, (1, M + n, D)."""
    tokens = patches.shape[1] + class_tokens.shape[1]
    table = patches.new_empty(1, tokens, patches.shape[2])
    table[:, others(tokens, cls)], table[:, list(fixed(cls))] = patches, class_tokens
    return table


def interpolation_note(old: ModelConfig, new: ModelConfig) -> str:
    """Return the sentence that every reader of a model with an interpolated table should see."""
    grids = [" x ".join(map(str, model.grid)) for model in (old, new)]
    return (
        f"image size {in_pixels(new.image_size)} as asked, not {in_pixels(old.image_size)} as the weights were trained:"
        f" the table of positions is interpolated from {grids[0]} to {grids[1]} patches (bicubic, the class token's row"
        " kept); nobody has reported an accuracy at this size, and stm eval with the same option compares it with the"
        " weights' own size"
    )


def interpolation_record(old: ModelConfig) -> dict[str, Any]:
    """Return what `extra` keeps of the size that the weights were trained at."""
    return {"image_size": list(old.input_shape[1:]), "grid": list(old.grid)}
