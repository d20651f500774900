"""The four readings of one set of tensors against a loop in float64 that shares no code with stm, over images, tokens
and states.

The class token in the middle or at the head, the directions averaged or added: (middle, averaged) is hustvl/Vim, which
the other golden tests hold to its own outputs; (head, added) is VideoMamba (OpenGVLab/VideoMamba
image_sm/models/videomamba.py). The bound is max|a - b| / max|b| <= 1e-4 in float32.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import stm

BOUND = 1e-4
State = dict[str, Tensor]
Error = Callable[[Tensor, Tensor], float]
Tell = Callable[[str, float, str], None]


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def one_direction(state: State, prefix: str, suffix: str, x: Tensor) -> Tensor:
    """Convolution and scan of one direction, in its own order. x: (L, E)."""
    kernel, bias = state[f"{prefix}conv1d{suffix}.weight"][:, 0], state[f"{prefix}conv1d{suffix}.bias"]  # (E, W), (E,)
    width = kernel.shape[1]
    padded = torch.cat([torch.zeros(width - 1, x.shape[1], dtype=x.dtype), x])
    u = silu(torch.stack([(padded[t : t + width] * kernel.T).sum(0) + bias for t in range(len(x))]))
    A = -state[f"{prefix}A{suffix}_log"].exp()  # (E, N)
    weight, projected = state[f"{prefix}dt_proj{suffix}.weight"], u @ state[f"{prefix}x_proj{suffix}.weight"].T
    low, B, C = projected.split([weight.shape[1], A.shape[1], A.shape[1]], dim=1)
    delta = (1 + (low @ weight.T + state[f"{prefix}dt_proj{suffix}.bias"]).exp()).log()  # (L, E)
    h, out = torch.zeros_like(A), []
    for t in range(len(x)):
        h = (delta[t][:, None] * A).exp() * h + (delta[t] * u[t])[:, None] * B[t]
        out.append(h @ C[t] + state[f"{prefix}D{suffix}"] * u[t])
    return torch.stack(out)


def logits_of_one(state: State, image: Tensor, *, head: bool, averaged: bool) -> Tensor:
    kernel = state["patch_embed.proj.weight"]
    side = kernel.shape[-1]
    patches = image.unfold(1, side, side).unfold(2, side, side)  # (3, rows, columns, side, side)
    tokens = torch.einsum("crkij,dcij->rkd", patches, kernel).flatten(0, 1) + state["patch_embed.proj.bias"]
    place = 0 if head else len(tokens) // 2
    x = torch.cat([tokens[:place], state["cls_token"][0], tokens[place:]]) + state["pos_embed"][0]
    residual = torch.zeros_like(x)
    for block in range(len({name.split(".")[1] for name in state if name.startswith("layers.")})):
        prefix = f"layers.{block}.mixer."
        residual = residual + x
        inner, gate = (
            rms_norm(residual, state[f"layers.{block}.norm.weight"]) @ state[f"{prefix}in_proj.weight"].T
        ).chunk(2, dim=1)
        forward = one_direction(state, prefix, "", inner) * silu(gate)
        backward = (one_direction(state, prefix, "_b", inner.flip(0)) * silu(gate.flip(0))).flip(0)
        x = (forward + backward) / (2 if averaged else 1) @ state[f"{prefix}out_proj.weight"].T
    return state["head.weight"] @ rms_norm(residual + x, state["norm_f.weight"])[place] + state["head.bias"]


@pytest.mark.parametrize("averaged", [True, False])
@pytest.mark.parametrize("head", [True, False])
def test_each_reading_equals_a_plain_loop(
    golden_state: Callable[..., State], head: bool, averaged: bool, tmp_path: Path, error: Error, tell: Tell
) -> None:
    state = golden_state(D=32, depth=4, tokens=17, classes=10, patch=16, seed=5)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    double = {name: tensor.double() for name, tensor in state.items()}
    expected = {
        (h, a): torch.stack([logits_of_one(double, image.double(), head=h, averaged=a) for image in images])
        for h, a in ((head, averaged), (not head, averaged), (head, not averaged))
    }
    # as it is asked, and as the name alone says it
    name = {(True, False): "videomamba_t16_in1k_res64.pth", (False, True): "vim_midclstok_res64.pth"}.get(
        (head, averaged)
    )
    torch.save({"model": state}, tmp_path / (name or "weights.pth"))
    options = {"class_token": "head" if head else "middle", "divide_out": averaged, "image_size": 64}
    for given in (options, {}) if name else (options,):
        model = stm.load_checkpoint(tmp_path / (name or "weights.pth"), device="cpu", **given)
        with torch.inference_mode():
            found = model(images)
        worst = error(found, expected[head, averaged])
        tell(f"{options['class_token']}, {'averaged' if averaged else 'added'}", worst, "logits")
        assert worst <= BOUND
        assert all(
            error(found, other) > 100 * BOUND for reading, other in expected.items() if reading != (head, averaged)
        )
