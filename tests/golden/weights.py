"""Deterministic, official-format Vision Mamba (ViM, bimamba v2) state dicts. Own code, needs only torch.

Every tensor is drawn on the CPU in float64 by its own torch.Generator, manual_seed(seed + index), where index is the
tensor's place in keys(depth), and then rounded to float32. Any one tensor can so be made without the others.
float64 draws are used because torch's float32 randn has an AVX2 path that differs from the plain one in the last bits.

keys(depth), in this order:
  0 cls_token   1 pos_embed   2 patch_embed.proj.weight   3 patch_embed.proj.bias
  then per block i (17 tensors, index 4 + 17 * i + place):
    0 norm.weight  1 mixer.A_log  2 mixer.A_b_log  3 mixer.D  4 mixer.D_b  5 mixer.in_proj.weight
    6 mixer.conv1d.weight  7 mixer.conv1d.bias  8 mixer.conv1d_b.weight  9 mixer.conv1d_b.bias
    10 mixer.x_proj.weight  11 mixer.x_proj_b.weight  12 mixer.dt_proj.weight  13 mixer.dt_proj.bias
    14 mixer.dt_proj_b.weight  15 mixer.dt_proj_b.bias  16 mixer.out_proj.weight
  then norm_f.weight, head.weight, head.bias

Draws (n = randn, u = rand, both in the tensor's own shape):
  cls_token, pos_embed, every bias of a convolution or of the head   0.2 n
  patch_embed.proj.weight   n / sqrt(3 patch^2)          norm.weight, norm_f.weight   1 + 0.2 n
  A_log, A_b_log            log(1..N) + 0.3 n            D, D_b                       1 + 0.3 n
  in_proj, dt_proj, head    n / sqrt(fan_in)             x_proj                       2 n / sqrt(fan_in)
  out_proj                  n / sqrt(fan_in)             conv1d weights               0.5 n
  dt_proj bias              softplus^-1(exp(log 1e-3 + u (log 1e-1 - log 1e-3)))
"""

import hashlib
import math

import torch

BLOCK = (
    "norm.weight",
    "mixer.A_log",
    "mixer.A_b_log",
    "mixer.D",
    "mixer.D_b",
    "mixer.in_proj.weight",
    "mixer.conv1d.weight",
    "mixer.conv1d.bias",
    "mixer.conv1d_b.weight",
    "mixer.conv1d_b.bias",
    "mixer.x_proj.weight",
    "mixer.x_proj_b.weight",
    "mixer.dt_proj.weight",
    "mixer.dt_proj.bias",
    "mixer.dt_proj_b.weight",
    "mixer.dt_proj_b.bias",
    "mixer.out_proj.weight",
)


def keys(depth):
    out = ["cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"]
    out += [f"layers.{i}.{k}" for i in range(depth) for k in BLOCK]
    return [*out, "norm_f.weight", "head.weight", "head.bias"]


def state_dict(D, depth, N=16, tokens=197, classes=1000, patch=16, seed=0):
    """dict key -> float32 tensor; tokens counts the class token, inner width is 2 D, dt rank is ceil(D / 16)."""
    E, R, K = 2 * D, math.ceil(D / 16), 4
    shapes = {
        "cls_token": (1, 1, D),
        "pos_embed": (1, tokens, D),
        "patch_embed.proj.weight": (D, 3, patch, patch),
        "patch_embed.proj.bias": (D,),
        "norm.weight": (D,),
        "mixer.A_log": (E, N),
        "mixer.D": (E,),
        "mixer.in_proj.weight": (2 * E, D),
        "mixer.conv1d.weight": (E, 1, K),
        "mixer.conv1d.bias": (E,),
        "mixer.x_proj.weight": (R + 2 * N, E),
        "mixer.dt_proj.weight": (E, R),
        "mixer.dt_proj.bias": (E,),
        "mixer.out_proj.weight": (D, E),
        "norm_f.weight": (D,),
        "head.weight": (classes, D),
        "head.bias": (classes,),
    }
    out = {}
    for index, key in enumerate(keys(depth)):
        kind = key.split(".", 2)[2] if key.startswith("layers.") else key
        kind = "mixer.A_log" if kind == "mixer.A_b_log" else kind.replace("_b.", ".")
        kind = "mixer.D" if kind == "mixer.D_b" else kind
        shape = shapes[kind]
        g = torch.Generator().manual_seed(seed + index)
        fan_in = math.prod(shape[1:])
        if kind == "mixer.dt_proj.bias":
            u = torch.rand(shape, generator=g, dtype=torch.float64)
            dt = torch.exp(math.log(1e-3) + u * (math.log(1e-1) - math.log(1e-3)))
            t = dt + torch.log(-torch.expm1(-dt))
        else:
            n = torch.randn(shape, generator=g, dtype=torch.float64)
            if kind in ("cls_token", "pos_embed") or kind.endswith("bias"):
                t = 0.2 * n
            elif kind.endswith("norm.weight") or kind == "norm_f.weight":
                t = 1 + 0.2 * n
            elif kind == "mixer.A_log":
                t = torch.log(torch.arange(1, N + 1, dtype=torch.float64)) + 0.3 * n
            elif kind == "mixer.D":
                t = 1 + 0.3 * n
            elif kind == "mixer.conv1d.weight":
                t = 0.5 * n
            elif kind == "mixer.x_proj.weight":
                t = 2 * n / math.sqrt(fan_in)
            else:
                t = n / math.sqrt(fan_in)
        out[key] = t.to(torch.float32)
    return out


def mamba_r(D, depth, class_tokens, reduce, patches=196, classes=1000, patch=16, seed=0):
    """The same for a Mamba-R (wangf3014/Mamba-Reg), which has several class tokens, and a neck if reduce > 1.

    The tensors that differ from a ViM's are drawn last, with generators 10000 to 10004 after the seed:
      cls_token, pos_embed_cls 0.2 n    head.weight, neck.weight n / sqrt(fan_in)    norm_neck.weight 1 + 0.2 n
    """
    out = state_dict(D, depth, tokens=patches, classes=classes, patch=patch, seed=seed)
    width = class_tokens * D // reduce
    drawn = {
        "cls_token": ((1, class_tokens, D), 0, 0.2),
        "pos_embed_cls": ((1, class_tokens, D), 0, 0.2),
        "head.weight": ((classes, width), 0, 1 / math.sqrt(width)),
        "neck.weight": ((D // reduce, D), 0, 1 / math.sqrt(D)),
        "norm_neck.weight": ((width,), 1, 0.2),
    }
    for index, (key, (shape, mean, std)) in enumerate(drawn.items()):
        g = torch.Generator().manual_seed(seed + 10_000 + index)
        if reduce > 1 or "neck" not in key:
            out[key] = (mean + std * torch.randn(shape, generator=g, dtype=torch.float64)).to(torch.float32)
    return out


def fingerprint(sd):
    """Small numbers that tell whether another machine drew the same weights: key -> [shape, sum, sum of squares,
    first]."""
    per = {
        k: [list(v.shape), v.double().sum().item(), v.double().square().sum().item(), v.flatten()[0].item()]
        for k, v in sd.items()
    }
    h = hashlib.sha256()
    for v in sd.values():
        h.update(v.contiguous().numpy().tobytes())
    return {"sha256_of_float32_bytes_in_key_order": h.hexdigest(), "tensors": per}
