"""A model's matrix products alone: what its forward would take if everything else were free."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stm.model.vim import ViM


class Gemm(NamedTuple):
    """A product of the rows of one image, (rows, in), with a weight (out, in)."""

    rows: int
    weight: Tensor


def gemms_of(model: ViM) -> list[Gemm]:
    """Every product in the order of the forward: patches, the projections of each block on the tokens that enter it,
    the head.

    Of the last block only what reaches the class token, as the model runs it.
    """
    shape, schedule = model.config.model, model.schedule
    last, found = shape.depth - 1, [Gemm(shape.grid**2, model.patch_embed.weight.flatten(1))]
    places = zip(model.blocks, schedule.tokens_per_block(shape.depth), schedule.cls_per_block(shape.depth), strict=True)
    for number, (block, length, c) in enumerate(places):
        mixer = block.mixer
        directions = (length, length) if number < last else (c + 1, length - c)
        if number < last:
            found.append(Gemm(length, mixer.in_proj.weight))
        else:
            to_x, to_z = mixer.in_proj.weight.chunk(2)
            found += [Gemm(length, to_x), Gemm(1, to_z)]
        for k, rows in enumerate(directions):
            found += [Gemm(rows, mixer.x_proj_weight[k]), Gemm(rows, mixer.dt_proj_weight[k])]
        found.append(Gemm(length if number < last else 1, mixer.out_proj.weight))
    return [*found, Gemm(1, model.head.weight)]


def alone(model: ViM, batch_size: int) -> Callable[[], None]:
    """A call that runs them all in F.linear, one after the other, on inputs that are there."""
    generator = torch.Generator().manual_seed(0)
    inputs: dict[tuple[int, int], Tensor] = {}
    work = []
    for rows, weight in gemms_of(model):
        key = (batch_size * rows, weight.shape[1])
        if key not in inputs:
            inputs[key] = torch.randn(key, generator=generator).to(weight.device, weight.dtype)
        work.append((inputs[key], weight))

    def run() -> None:
        for x, weight in work:
            F.linear(x, weight)

    return run
