"""The Vision Transformer beside the models: DeiT's own sizes, and attention by its definition."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stm.bench import vit
from stm.config import ModelConfig

PARAMETERS = {192: 5_717_416, 384: 22_050_664, 768: 86_567_656}  # timm's deit_{tiny,small,base}_patch16_224


def shape(D: int, **more: int) -> ModelConfig:
    return ModelConfig(d_model=D, depth=24, dt_rank=D // 16, **more)


@pytest.mark.parametrize("D", [192, 384])
def test_it_is_as_large_as_deit(D: int) -> None:
    assert sum(parameter.numel() for parameter in vit.ViT(shape(D), 1000).parameters()) == PARAMETERS[D]


def test_names() -> None:
    assert [vit.name_of(shape(D)) for D in (192, 384, 768, 64)] == ["DeiT-Ti", "DeiT-S", "DeiT-B", "ViT of width 64"]


def test_it_has_one_class_token_beside_a_model_of_several() -> None:
    model = shape(128, image_size=64, class_tokens=3)
    assert vit.ViT(model, 10)(torch.zeros(1, 3, 64, 64)).shape == (1, 10)
    assert vit.flops(model, 10) == vit.flops(shape(128, image_size=64), 10)


def test_its_operations_are_those_that_torch_counts() -> None:
    model = shape(128, image_size=64)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        logits = vit.ViT(model, 10)(torch.zeros(1, 3, 64, 64))
    assert logits.shape == (1, 10)
    attention = (
        vit.BLOCKS * 2 * 17 * 17 * 128
    )  # which torch does not count on a processor: q k^T and its product with v
    assert counter.get_total_flops() == 2 * (vit.flops(model, 10).honest - attention)


def test_a_block_by_its_definition() -> None:
    """Two heads of 64, softmax(q k^T / 8) v written out, in float64."""
    block = vit.Block(128).double().requires_grad_(False)
    x = torch.randn(2, 5, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q, k, v = (part.view(2, 5, 2, 64) for part in block.qkv(block.norm1(x)).chunk(3, -1))
    weights = (torch.einsum("bihd,bjhd->bhij", q, k) / 8).softmax(-1)
    y = x + block.proj(torch.einsum("bhij,bjhd->bihd", weights, v).reshape(2, 5, 128))
    up = block.up(block.norm2(y))
    expected = y + block.down(up * 0.5 * (1 + torch.erf(up / 2**0.5)))
    torch.testing.assert_close(block(x), expected)
