"""A Vision Transformer to compare speed with: DeiT's architecture on torch's attention, with random weights.

Source: DeiT (arXiv 2012.12877), Table 1, and timm's vision_transformer.py. It has 12 pre-norm blocks, heads of width
64, an MLP four times as wide, GELU, biases everywhere, LayerNorm with eps 1e-6, and a class token at the head. Widths
192, 384 and 768 are DeiT-Ti, DeiT-S and DeiT-B. Speed does not depend on the values of weights, so no checkpoint is
needed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stm.config import ModelConfig
from stm.reports import Flops

BLOCKS, HEAD, MLP = 12, 64, 4


class ViT(nn.Module):
    """The DeiT that is as wide as a ViM, on the same images and patches.

    Args:
        model: the ViM's shape.
        num_classes: of the head.
    """

    def __init__(self, model: ModelConfig, num_classes: int) -> None:
        super().__init__()
        D = model.d_model
        self.patch_embed = nn.Conv2d(model.in_chans, D, model.patch, model.stride)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, D))
        self.pos_embed = nn.Parameter(torch.zeros(1, model.patches + 1, D))
        self.layers = nn.ModuleList(Block(D) for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(D, eps=1e-6)
        self.head = nn.Linear(D, num_classes)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, classes), float32, of normalised images (B, C, H, W)."""
        patches = self.patch_embed(images.to(self.cls_token.dtype)).flatten(2).mT  # (B, L - 1, D)
        x = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], 1) + self.pos_embed  # (B, L, D)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x[:, 0])).float()


class Block(nn.Module):
    """Attention, then an MLP. Each acts on a LayerNorm of its input and is added to that input."""

    def __init__(self, D: int) -> None:
        super().__init__()
        self.heads = max(1, D // HEAD)
        self.norm1, self.norm2 = (nn.LayerNorm(D, eps=1e-6) for _ in range(2))
        self.qkv, self.proj = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, MLP * D), nn.Linear(MLP * D, D)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (B, L, D), for x (B, L, D)."""
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))  # (B, L, 3, heads, D / heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, L, D / heads) each
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def name_of(model: ModelConfig) -> str:
    """Return DeiT's own name for a model of this width, or one that states the width."""
    return {192: "DeiT-Ti", 384: "DeiT-S", 768: "DeiT-B"}.get(model.d_model, f"ViT of width {model.d_model}")


def flops(model: ModelConfig, num_classes: int) -> Flops:
    """Return the ViT's multiply-accumulates, which both conventions count alike."""
    D, L = model.d_model, model.patches + 1
    # Per token 3 D D for q, k, v, D D for the output and 2 MLP D D for the MLP; attention takes two products of L x L x
    # D.
    block = (4 + 2 * MLP) * D * D * L + 2 * L * L * D
    total = model.in_chans * model.patch**2 * D * (L - 1) + BLOCKS * block + D * num_classes
    return Flops(paper=total, honest=total, paper_saving=0.0, honest_saving=0.0)
