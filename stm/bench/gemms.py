"""Run a model's matrix products alone: the time of a forward if everything else were free.

Merging can only shorten them with the tokens, and no kernel of ours makes them faster. So they are the floor against
which `stm bench` holds a forward.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stm.model.vim import ViM


class Gemm(NamedTuple):
    """A product of one image's rows (rows, in) with a weight (out, in)."""

    rows: int
    weight: Tensor


def gemms_of(model: ViM) -> list[Gemm]:
    """Return every product in the order of the forward.

    They are the patches, the projections of each block on the tokens that enter it, and the head. Of the last block
    only the products that reach the class token count, as the model runs it.
    """
    shape, schedule = model.config.model, model.schedule
    last, products = shape.depth - 1, [Gemm(shape.patches, model.patch_embed.weight.flatten(1))]
    places = zip(model.blocks, schedule.tokens_per_block(shape.depth), schedule.cls_per_block(shape.depth), strict=True)
    for number, (block, length, c) in enumerate(places):
        mixer = block.mixer
        # In the last block each direction walks up to the class token at position c, and stops there.
        directions = (length, length) if number < last else (c + 1, length - c)
        if number < last:
            products.append(Gemm(length, mixer.in_proj.weight))
        else:  # the gate z is needed at the class token alone
            to_x, to_z = mixer.in_proj.weight.chunk(2)
            products += [Gemm(length, to_x), Gemm(1, to_z)]
        for k, rows in enumerate(directions):
            products += [Gemm(rows, mixer.x_proj_weight[k]), Gemm(rows, mixer.dt_proj_weight[k])]
        products.append(Gemm(length if number < last else 1, mixer.out_proj.weight))
    return [*products, Gemm(1, model.head.weight)]


def alone(model: ViM, batch_size: int) -> Callable[[], None]:
    """Return a call that runs all products in F.linear, one after the other, on inputs that are made beforehand."""
    generator = torch.Generator().manual_seed(0)
    # Products of one shape share their input: it then lies in the cache, as a block's activations do in a forward.
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
