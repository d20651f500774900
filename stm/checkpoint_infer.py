"""What a ViM checkpoint is, told from the names and shapes of its tensors and from the trainer's own arguments.

Names and shapes are those of the official code (hustvl/Vim vim/models_mamba.py, bimamba v2). What neither can tell is
assumed to be as in the official `midclstok_div2` models, and said.
"""

import argparse
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from stm.config import CLASS_TOKENS, LARGEST_SIDE, ModelConfig, Preprocess
from stm.errors import CheckpointError, UsageError, listed

Shapes = Mapping[str, tuple[int, ...]]

# Tensors of a mixer that each direction has its own of; {} is empty for the forward one, _b for the backward one.
DIRECTED = ("conv1d{}.weight", "conv1d{}.bias", "x_proj{}.weight", "dt_proj{}.weight", "dt_proj{}.bias", "A{}_log", "D{}")

_OFFICIAL_SIZE = 224
_RUNS = "stm runs ViM as in hustvl/Vim's midclstok models: bimamba v2, RMSNorm, one class token, absolute positions"
_REFUSED = (
    (r"blocks\.\d+\.attn\.", "a vision transformer (DeiT, ViT): its blocks hold attention"),
    (r"layers\.\d+\.mixer\.conv1d_weight", "the weights file of a folder that stm wrote: give the folder"),
    (r"rope\.|(.*\.)?freqs(_cos|_sin)?", "a ViM with rotary position embeddings (RoPE)"),
    (r"cls_token_(head|tail)", "a ViM with a double class token"),
    (r"pos_embed_cls|(.*[._])?reg(ister)?_?tokens?", "a ViM with register tokens (Mamba-R)"),
    (r"temporal_pos_embedding", "a VideoMamba for video"),
    (r"(layers\.\d+\.norm|norm_f)\.bias", "a ViM with LayerNorm"),
    (r"layers\.\d+\.mixer\.gamma", "a ViM with layer scale"),
)
_NEEDED = (
    (r"layers\.\d+\.mixer\..*", "layers.*.mixer", "not a ViM"),
    (r"layers\.\d+\.mixer\.conv1d_b\..*", "layers.*.mixer.conv1d_b", "a ViM with bimamba v1 or with one direction"),
    (r"cls_token", "cls_token", "a ViM without a class token"),
    (r"pos_embed", "pos_embed", "a ViM without absolute position embeddings"),
    (r"head\..*", "head", "a ViM without a classification head"),
)


class Inferred(NamedTuple):
    """The model, its number of classes, its preprocessing, and a sentence for everything that was assumed."""

    model: ModelConfig
    num_classes: int
    preprocessing: Preprocess
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Stored:
    """What the trainer's own arguments say, where a file holds them; None where they say nothing."""

    input_size: int | None = None
    stride: int | None = None
    class_token: str | None = None
    divide_out: bool | None = None
    crop_ratio: float = 0.875

    @classmethod
    def of(cls, args: Any) -> "Stored":
        """From an `argparse.Namespace` or a dict. Builders' names say how the model is built: `..._stride8_..._midclstok_div2`."""
        values = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, dict) else {}
        name, size, ratio = (values.get(key) for key in ("model", "input_size", "eval_crop_ratio"))
        name = name.lower() if isinstance(name, str) else ""
        stride = re.search(r"stride(\d{1,4})(?!\d)", name)
        middle = re.search(r"mid(dle)?_?cls_?tok", name)
        head = re.search(r"cls_?tok", name) or name.startswith("videomamba")
        return cls(
            input_size=size if type(size) is int else None,
            stride=int(stride[1]) if stride else None,
            class_token="middle" if middle else "head" if head else None,
            divide_out="div2" in name if middle or head else None,
            crop_ratio=float(ratio) if isinstance(ratio, float | int) and 0.1 <= ratio <= 1 else cls.crop_ratio,
        )


def infer(
    where: str, shapes: Shapes, stored: Stored, *, image_size: int | None, class_token: str | None, divide_out: bool | None
) -> Inferred:
    """Tell what the model is; explicit arguments win over stored ones, and the tensors over both.

    Args:
        where: the file's name, for messages.
        shapes: of every tensor, by official name.

    Raises:
        CheckpointError: a variant that is not run; tensors missing, unexpected or mis-shaped; an image size that is
            stored but cannot be, or that cannot be told.
        UsageError: an argument that no model takes or that the tensors contradict.
    """
    if class_token not in (None, *CLASS_TOKENS):
        raise UsageError(f"class_token is {class_token!r}, expected {' or '.join(CLASS_TOKENS)}")
    _refuse_variants(where, shapes)
    depth = len({name.split(".")[1] for name in shapes if name.startswith("layers.")})
    _refuse_names(where, shapes, depth)
    config, classes, grid = _dimensions(where, shapes)
    size, stride, note = _geometry(where, config["patch"], grid, stored, image_size)
    token = class_token or stored.class_token or "middle"
    divide = divide_out if divide_out is not None else stored.divide_out if stored.divide_out is not None else True
    try:
        model = ModelConfig(image_size=size, stride=stride, depth=depth, class_token=token, divide_out=divide, **config)
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error
    _refuse_shapes(where, shapes, official_shapes(model, classes))
    preprocessing, normalised = _preprocessing(model, stored)
    notes = (note, *_assumed(class_token, divide_out, stored), *normalised)
    return Inferred(model, classes, preprocessing, notes)


def official_shapes(model: ModelConfig, classes: int) -> dict[str, tuple[int, ...]]:
    """The tensors of the official model, by name."""
    D, E, N, R, W = model.d_model, model.d_inner, model.d_state, model.dt_rank, model.d_conv
    directed = dict(zip(DIRECTED, ((E, 1, W), (E,), (R + 2 * N, E), (E, R), (E,), (E, N), (E,)), strict=True))
    block = {"norm.weight": (D,), "mixer.in_proj.weight": (2 * E, D), "mixer.out_proj.weight": (D, E)}
    block |= {f"mixer.{name.format(suffix)}": shape for suffix in ("", "_b") for name, shape in directed.items()}
    return {
        "cls_token": (1, 1, D),
        "pos_embed": (1, model.tokens, D),
        "patch_embed.proj.weight": (D, model.in_chans, model.patch, model.patch),
        "patch_embed.proj.bias": (D,),
        **{f"layers.{i}.{name}": shape for i in range(model.depth) for name, shape in block.items()},
        "norm_f.weight": (D,),
        "head.weight": (classes, D),
        "head.bias": (classes,),
    }


def _refuse_variants(where: str, names: Collection[str]) -> None:
    for pattern, what in _REFUSED:
        if found := next((name for name in names if re.fullmatch(pattern + ".*", name)), None):
            raise CheckpointError(f"{where} is {what} ({found})", _RUNS)
    for pattern, needed, what in _NEEDED:
        if not any(re.fullmatch(pattern, name) for name in names):
            raise CheckpointError(f"{where} is {what}: it has no {needed}, but {listed(names)}", _RUNS)


def _refuse_names(where: str, shapes: Shapes, depth: int) -> None:
    # only names count here: any config of that depth has the same
    expected = official_shapes(ModelConfig(d_model=1, dt_rank=1, depth=depth), 1).keys()
    missing = [name for name in expected if name not in shapes]
    unexpected = [name for name in shapes if name not in expected]
    if missing or unexpected:
        parts = [f"{len(names)} {kind} ({listed(names)})" for names, kind in ((missing, "missing"), (unexpected, "unexpected")) if names]
        raise CheckpointError(f"{where} does not hold the tensors of a ViM with {depth} blocks: {', '.join(parts)}", _RUNS)


def _refuse_shapes(where: str, shapes: Shapes, expected: Shapes) -> None:
    wrong = [f"{name} {shapes[name]} instead of {shape}" for name, shape in expected.items() if shapes[name] != shape]
    if wrong:
        raise CheckpointError(f"{where}: {len(wrong)} mis-shaped ({listed(wrong)})", "it was damaged or edited: get the original")


def _dimensions(where: str, shapes: Shapes) -> tuple[dict[str, Any], int, int]:
    """The model's dimensions, its classes and the patches along a side.

    Of tensors that every block has, the commonest shape counts, so that a wrong one is named by `_refuse_shapes`.
    """

    def shape(pattern: str, rank: int) -> tuple[int, ...]:
        found = {name: shape for name, shape in shapes.items() if re.fullmatch(pattern, name)}
        fitting = Counter(shape for shape in found.values() if len(shape) == rank)
        if not fitting:
            name, wrong = next(iter(found.items()))
            raise CheckpointError(f"{where}: {name} is {wrong}, expected {rank} dimensions", _RUNS)
        return fitting.most_common(1)[0][0]

    (D,) = shape(r"layers\.\d+\.norm\.weight|norm_f\.weight", 1)
    E, N = shape(r"layers\.\d+\.mixer\.A(_b)?_log", 2)
    _, R = shape(r"layers\.\d+\.mixer\.dt_proj(_b)?\.weight", 2)
    _, _, W = shape(r"layers\.\d+\.mixer\.conv1d(_b)?\.weight", 3)
    _, C, height, width = shape(r"patch_embed\.proj\.weight", 4)
    _, L, _ = shape("pos_embed", 3)
    _, tokens, _ = shape("cls_token", 3)
    classes, _ = shape(r"head\.weight", 2)
    grid = math.isqrt(max(L - 1, 0))
    if classes < 1:
        raise CheckpointError(f"{where} has a head without classes (head.weight), expected at least 1", _RUNS)
    if tokens != 1:
        raise CheckpointError(f"{where} is a ViM with {tokens} class tokens (cls_token), expected 1", _RUNS)
    if height != width:
        raise CheckpointError(f"{where} has patches of {height} x {width} pixels (patch_embed.proj.weight), expected square ones", _RUNS)
    if grid < 1 or grid**2 != L - 1:
        raise CheckpointError(f"{where} has {L} positions (pos_embed), expected a square grid of patches and one class token", _RUNS)
    if D < 1 or E % D:
        raise CheckpointError(f"{where} has an inner width of {E} (A_log), expected a multiple of its width {D}", _RUNS)
    return {"d_model": D, "expand": E // D, "d_state": N, "dt_rank": R, "d_conv": W, "in_chans": C, "patch": height}, classes, grid


def _geometry(where: str, patch: int, grid: int, stored: Stored, asked: int | None) -> tuple[int, int, str]:
    """Image size, stride, and where they come from: the size asked for, else the stored one, else the official one."""
    fits = f"{grid} x {grid} patches of {patch} pixels"
    if asked is not None:
        if (stride := _stride(asked, patch, grid, stored.stride) or _stride(asked, patch, grid, None)) is None:
            raise UsageError(f"image_size is {asked}, but {where} holds {fits}", f"edge to edge, they make --image-size {grid * patch}")
        return asked, stride, f"image size {asked} as asked, stride {stride} as it gives {fits}"
    if (size := stored.input_size) is not None:
        if (stride := _stride(size, patch, grid, stored.stride)) is None:
            said = f"input_size {size}" + (f" and stride {stored.stride}" if stored.stride else "")
            raise CheckpointError(f"{where}: its own arguments say {said}, but it holds {fits}", "give the right one: --image-size N")
        return size, stride, f"image size {size} from the file's own arguments, stride {stride} as it gives {fits}"
    stride = _stride(_OFFICIAL_SIZE, patch, grid, stored.stride)
    if stride is None or stride * (grid - 1) != _OFFICIAL_SIZE - patch:
        raise CheckpointError(
            f"{where} holds {fits} and does not say the image size, nor is it the usual {_OFFICIAL_SIZE}",
            f"give it: --image-size N (edge to edge, the patches make {grid * patch})",
        )
    return _OFFICIAL_SIZE, stride, f"image size {_OFFICIAL_SIZE} is assumed: at stride {stride} it gives {fits}"


def _stride(size: int, patch: int, grid: int, told: int | None) -> int | None:
    """The stride at which an image of that size has `grid` patches along a side; None if there is none or no telling."""
    if not patch <= size <= LARGEST_SIDE:  # a file's own numbers may be any
        return None
    fitting = [stride for stride in (range(1, patch + 1) if told is None else (told,)) if stride and (size - patch) // stride + 1 == grid]
    whole = [stride for stride in fitting if stride * (grid - 1) == size - patch]
    if patch in fitting:
        return patch
    return whole[0] if whole else fitting[0] if len(fitting) == 1 else None


def _assumed(class_token: str | None, divide_out: bool | None, stored: Stored) -> tuple[str, ...]:
    """Sentences about what the tensors cannot tell: overruled, or assumed because nothing says it."""
    assumed, notes = [], []
    for asked, says, official, told in (
        (class_token, stored.class_token, "the class token in the middle", f"the class token is at the {stored.class_token}"),
        (divide_out, stored.divide_out, "the two directions averaged", f"divide_out is {stored.divide_out}"),
    ):
        if asked is None and says is None:
            assumed.append(official)
        elif asked is not None and says is not None and asked != says:
            notes.append(f"by the file's own arguments {told}: overruled, as asked")
    if assumed:
        notes.append(
            f"assumed, as in the official midclstok_div2 models: {' and '.join(assumed)}; a VideoMamba has the same tensors, "
            "but its class token at the head and its directions added (--class-token head --no-divide-out)"
        )
    return tuple(notes)


def _preprocessing(model: ModelConfig, stored: Stored) -> tuple[Preprocess, tuple[str, ...]]:
    """hustvl/Vim vim/datasets.py: short side int(size / ratio), bicubic, center crop; small images are taken as they are."""
    size, channels = model.image_size, model.in_chans
    resize = int(size / stored.crop_ratio) if size > 32 else size
    if channels == 3:
        return Preprocess(resize=resize, crop=size), ()
    unknown = Preprocess(resize=resize, crop=size, mean=(0.0,) * channels, std=(1.0,) * channels)
    return unknown, (f"the model takes {channels} channels: their mean and standard deviation are unknown, 0 and 1 are assumed",)
