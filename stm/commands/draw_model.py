"""A model of an official shape with random weights: what `stm bench` and `stm plan` time without a download."""

import math

from stm.backends import choose
from stm.config import Config, ModelConfig, Preprocess, Source, dense_schedule
from stm.data.labels import imagenet
from stm.device import pick
from stm.errors import UsageError
from stm.hub.aliases import ALIASES
from stm.loading import ready
from stm.model.initialize import initialize
from stm.model.vim import ViM
from stm.options import ModelOptions


def draw_model(model: str, options: ModelOptions) -> ViM:
    """Return the model that a short name means, with fresh weights: for what depends on its shape alone. Nothing is
    downloaded.

    Raises:
        UsageError: MODEL is no alias of a checkpoint, or options that do not belong to it.
    """
    if model not in ALIASES:
        raise UsageError(f"--random-weights was given, but {model} is not one of {', '.join(ALIASES)}", "leave it out")
    alias = ALIASES[model]
    options.refuse(
        model,
        "drawn with random weights",
        "file",
        "revision",
        "ema",
        "mean",
        "std",
        "crop_ratio",
        "interpolation",
    )
    device = pick(options.device)
    try:
        shape = ModelConfig(
            image_size=options.image_size or alias.image_size,
            patch=alias.patch,
            stride=alias.stride,
            d_model=alias.d_model,
            depth=24,
            dt_rank=math.ceil(alias.d_model / 16),
            class_token=options.class_token or "middle",
            divide_out=options.divide_out is not False,
        )
    except ValueError as error:
        raise UsageError(f"{model}: {error}") from error
    config = Config(
        model=shape,
        num_classes=len(imagenet().labels),
        schedule=dense_schedule(shape),
        preprocessing=Preprocess.official(shape.image_size),
        source=Source(repo=alias.repo, license=alias.license),
        extra={"notes": ["its weights are random: only its speed means anything"]},
    )
    return ready(initialize(ViM(config, choose(options.backend, device.type))), device, options.dtype)
