"""Fresh weights, as the official code draws them: for training from scratch, and to measure speed without a checkpoint.

Source: hustvl/Vim, vim/models_mamba.py (`segm_init_weights`, `_init_weights`) and mamba_simple.py (`Mamba.__init__`).
"""

import dataclasses
import math

import torch
from torch import nn

from stm.model.layers import Linear
from stm.model.vim import ViM


def initialize(model: ViM, seed: int = 0) -> ViM:
    """Draw every parameter of a model in place, and return the model.

    The generator is its own and on the processor, so that the seed alone decides the weights.
    """
    g = torch.Generator().manual_seed(seed)
    shape = model.config.model
    with torch.no_grad():
        drawn = [model.cls_token, model.pos_embed, model.head.weight]
        if model.neck is not None and model.norm_neck is not None:
            drawn.append(model.neck.weight)
            model.norm_neck.weight.fill_(1)
        for parameter in drawn:
            nn.init.trunc_normal_(parameter, std=0.02, generator=g)
        fan_in = shape.in_chans * shape.patch**2
        # LeCun's normal. The constant is the standard deviation of a normal distribution cut at 2 sigma.
        nn.init.trunc_normal_(model.patch_embed.weight, std=math.sqrt(1 / fan_in) / 0.87962566103423978, generator=g)
        for zero in (model.patch_embed.bias, model.head.bias):
            assert zero is not None
            zero.zero_()
        model.norm_f.weight.fill_(1)
        for block in model.blocks:
            block.norm.weight.fill_(1)
            mixer = block.mixer
            nn.init.trunc_normal_(mixer.in_proj.weight, std=0.02, generator=g)
            nn.init.trunc_normal_(mixer.x_proj_weight, std=0.02, generator=g)
            nn.init.uniform_(mixer.dt_proj_weight, -(shape.dt_rank**-0.5), shape.dt_rank**-0.5, generator=g)
            for conv in (mixer.conv1d_weight, mixer.conv1d_bias):
                nn.init.uniform_(conv, -(shape.d_conv**-0.5), shape.d_conv**-0.5, generator=g)
            # The bias is such that Delta starts log-uniform in 0.001 to 0.1: memories of many lengths.
            low, high = math.log(1e-3), math.log(1e-1)
            step = torch.exp(low + (high - low) * torch.rand(mixer.dt_proj_bias.shape, generator=g)).clamp_min(1e-4)
            mixer.dt_proj_bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
            # S4D's real initialisation: A = -1, -2, .. -N in every channel.
            mixer.A_log.copy_(torch.arange(1, shape.d_state + 1).log())
            mixer.D.fill_(1)
            if mixer.scan_norm is not None:
                mixer.scan_norm.reset_parameters()
            # kaiming_uniform(a=sqrt 5), divided by sqrt(depth) since every block adds to one residual stream (GPT-2).
            bound = math.sqrt(1 / shape.d_inner) / math.sqrt(shape.depth)
            nn.init.uniform_(mixer.out_proj.weight, -bound, bound, generator=g)
    return model


def draw_head(model: ViM, classes: int, seed: int = 0) -> ViM:
    """Give a model, in place, a new head for another number of classes, drawn as `initialize` does; return the model.

    What the config told of the old classes goes: their names and what was measured.
    """
    old = model.head.weight
    head = Linear(model.config.model.d_head, classes).to(old)
    with torch.no_grad():
        weight = torch.empty(head.weight.shape)
        nn.init.trunc_normal_(weight, std=0.02, generator=torch.Generator().manual_seed(seed))
        head.weight.copy_(weight)
        nn.init.zeros_(head.bias)
    model.head = head
    model.config = dataclasses.replace(
        model.config, num_classes=classes, label_names=None, measured=(), recipe=None, rounding=None
    )
    return model
