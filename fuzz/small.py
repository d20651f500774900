"""The smallest files of each kind, without which no target can run: a model, its weights, images."""

import io
import json
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from stm.artifact import folder as artifact
from stm.bake import bake
from stm.checkpoint.official import to_official
from stm.config import Config, ModelConfig, Preprocess, Source, dense_schedule
from stm.model.initialize import initialize
from stm.model.vim import ViM
from stm.options import MergeOptions

# A name that tells everything that the tensors do not.
OFFICIAL = "vim_tiny_patch2_4_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2.pth"
PREP = Preprocess(resize=6, crop=4)
NAMES = tuple(f"class {index}" for index in range(10))


def config(classes: int = 10, channels: int = 3, names: tuple[str, ...] | None = NAMES) -> Config:
    """Return the config of a model of two blocks and 17 tokens."""
    shape = ModelConfig(image_size=8, patch=2, stride=2, d_model=4, depth=2, d_state=2, dt_rank=1, in_chans=channels)
    colours = {"mean": (0.5,) * channels, "std": (0.5,) * channels}
    return Config(
        model=shape,
        num_classes=classes,
        schedule=dense_schedule(shape),
        preprocessing=Preprocess(resize=10, crop=8, **colours),
        label_names=names,
        source=Source(file="tiny.pth", sha256="0" * 64),
    )


@cache
def model() -> ViM:
    """Return a model with fixed weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return initialize(ViM(config()))


@cache
def merged() -> ViM:
    """Return that model after merging, with a recipe."""
    return bake(model(), MergeOptions(method="paper", rate=0.4))


@cache
def files(compressed: bool = True) -> dict[str, bytes]:
    """Return the files of a model's folder by name."""
    made = merged() if compressed else model()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model")
        artifact.write(path, made.config, made.state_dict(), "# card\n")
        return {name: (path / name).read_bytes() for name in (artifact.CONFIG, artifact.WEIGHTS)}


@cache
def official() -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint as hustvl/Vim writes it."""
    return {name: tensor.detach().clone() for name, tensor in to_official(model().state_dict()).items()}


def png(seed: int = 0, size: tuple[int, int] = (9, 7)) -> bytes:
    """Return a small picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    made = io.BytesIO()
    Image.fromarray(pixels).save(made, "PNG")
    return made.getvalue()


def document(data: bytes) -> str:
    """Return JSON in as few bytes as it takes."""
    return json.dumps(json.loads(data), separators=(",", ":"))
