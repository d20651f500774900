"""From floats to int8 and back: a model's mixers, equalized on pictures that need no data (stm/model/quantized.py)."""

import torch
from torch import Tensor, nn

from stm.config import Config
from stm.data.patterns import as_channels, ellipses, pink_noise
from stm.model.quantized import Int8Mixer, equalizers, quantized, restored, with_mixer
from stm.model.vim import ViM

PICTURES = 4  # of each kind: the peaks of a channel hardly depend on what an image shows


def to_int8(model: ViM) -> nn.ModuleList:
    """Return the blocks of a float32 model with int8 mixers. The same model gives the same bits: the pictures have a
    fixed seed. What is not int8 is shared."""
    blocks: list[nn.Module] = []
    with torch.inference_mode(), torch.autocast(model.cls_token.device.type, enabled=False):
        state = model.embed(_pictures(model.config).to(model.cls_token.device))
        chosen = []
        for number, block in enumerate(model.blocks):
            chosen.append(equalizers(block, state))
            state, taps = block(state, model.plan.wants(number) if model.plan is not None else ())
            if model.plan is not None and number < len(model.blocks) - 1:
                state = model.plan(number, state, taps)
    for block, equalizers_of in zip(model.blocks, chosen, strict=True):
        # Copies: what inference mode makes can never be changed by torch again, such as by moving a model.
        mixer = quantized(block.mixer, model.config.model, [each.clone() for each in equalizers_of])
        blocks.append(with_mixer(block, mixer))
    return nn.ModuleList(blocks)


def from_int8(model: ViM) -> nn.ModuleList:
    """Return the blocks of an int8 model with mixers of float32: the weights that its whole numbers stand for."""
    blocks: list[nn.Module] = []
    for block in model.blocks:
        assert isinstance(block.mixer, Int8Mixer)
        blocks.append(with_mixer(block, restored(block.mixer, model.config.model)))
    return nn.ModuleList(blocks)


def _pictures(config: Config) -> Tensor:
    """Return normalised images (n, C, H, W) of both kinds."""
    _, height, width = config.model.input_shape
    g = torch.Generator().manual_seed(0)
    drawn = [draw(height, width, g) for draw in (ellipses, pink_noise) for _ in range(PICTURES)]
    # To 256 levels, like a file's: the last bits of a Fourier transform differ between processors.
    return as_channels(torch.stack(drawn).mul(255).round().byte(), config.preprocessing)
