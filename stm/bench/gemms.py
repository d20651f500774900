"""Run a model's matrix products alone: the time of a forward if everything else were free.

Merging can only shorten them with the tokens, and no kernel of ours makes them faster. So they are the floor against
which `stm bench` holds a forward. How high that floor is depends on the library that computes them, and on the
processor which library is fastest: `LIBRARIES` has those that torch brings.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stm.merging.schedule import fixed
from stm.model import products
from stm.model.quantized import Int8Mixer, restored
from stm.model.vim import ViM


class Gemm(NamedTuple):
    """A product of one image's rows (rows, in) with a weight (out, in)."""

    rows: int
    weight: Tensor


def gemms_of(model: ViM) -> list[Gemm]:
    """Return every product in the order of the forward.

    They are the patches, the projections of each block on the tokens that enter it, and the head. Of the last block
    only the products that reach the class token count, as the model runs it. Those of an int8 model are in float32.
    """
    shape, schedule = model.config.model, model.schedule
    n = shape.class_tokens
    cut = n and model.config.num_classes  # the features of a backbone are those of every token
    last = shape.depth - 1 if cut else shape.depth
    products = [Gemm(shape.patches, model.patch_embed.weight.flatten(1))]
    places = zip(model.blocks, schedule.tokens_per_block(shape.depth), schedule.cls_per_block(shape.depth), strict=True)
    for number, (block, length, c) in enumerate(places):
        mixer = restored(block.mixer, shape) if isinstance(block.mixer, Int8Mixer) else block.mixer
        # In the last block each direction walks up to its last class token, and stops there.
        directions = (length, length) if number < last else (fixed(c)[-1] + 1, length - fixed(c)[0])
        if number < last:
            products.append(Gemm(length, mixer.in_proj.weight))
        else:  # the gate z is needed at the class tokens alone
            to_x, to_z = mixer.in_proj.weight.chunk(2)
            products += [Gemm(length, to_x), Gemm(n, to_z)]
        for k, rows in enumerate(directions):
            products += [Gemm(rows, mixer.x_proj_weight[k]), Gemm(rows, mixer.dt_proj_weight[k])]
        products.append(Gemm(length if number < last else n, mixer.out_proj.weight))
    if model.neck is not None:
        products.append(Gemm(n, model.neck.weight))
    return [*products, *([Gemm(1, model.head.weight)] if model.config.num_classes else [])]


def _linear(weight: Tensor, rows: int) -> Callable[[Tensor], Tensor]:
    return lambda x: F.linear(x, weight)


def _onednn(weight: Tensor, rows: int) -> Callable[[Tensor], Tensor]:
    return lambda x: products.onednn(x, weight)


def _onednn_packed(weight: Tensor, rows: int) -> Callable[[Tensor], Tensor]:
    packed = products.packed(weight, rows)
    return lambda x: products.onednn(x, packed)


# From a weight (out, in) and the number of rows to a call on those rows. F.linear is what a loaded model uses, MKL on
# most x86 processors; packed weights are what `ViM.optimize` uses.
LIBRARIES: dict[str, Callable[[Tensor, int], Callable[[Tensor], Tensor]]] = {
    "F.linear": _linear,
    "oneDNN": _onednn,
    "oneDNN, packed": _onednn_packed,
}


def libraries() -> tuple[str, ...]:
    """Return the names of the `LIBRARIES` that work on this processor with this torch, whose operators are private."""
    weight, names = torch.ones(16, 16), []
    for name, prepare in LIBRARIES.items():
        try:
            prepare(weight, 2)(torch.ones(2, 16))
        except products.LACKING:
            continue
        names.append(name)
    return tuple(names)


def alone(model: ViM, batch_size: int, library: str = "F.linear") -> Callable[[], None]:
    """Return a call that runs all products, one after the other, on inputs that are made beforehand.

    Args:
        library: one of `libraries()`.
    """
    generator = torch.Generator().manual_seed(0)
    # Products of one shape share their input: it then lies in the cache, as a block's activations do in a forward.
    inputs: dict[tuple[int, int], Tensor] = {}
    work = []
    for rows, weight in gemms_of(model):
        key = (batch_size * rows, weight.shape[1])
        if key not in inputs:
            inputs[key] = torch.randn(key, generator=generator).to(weight.device, weight.dtype)
        work.append((LIBRARIES[library](weight.detach(), key[0]), inputs[key]))

    def run() -> None:
        for product, x in work:
            product(x)

    return run
