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
from stm.options import WEIGHTS_OPTIONS, ModelOptions


def draw_model(model: str, options: ModelOptions) -> ViM:
    """Return the model of a short name with fresh weights, for measurements that depend on its shape alone.

    Nothing is downloaded.

    Raises:
        UsageError: MODEL is no alias of a checkpoint, or an option belongs to weights or preprocessing.
    """
    if model not in ALIASES:
        raise UsageError(f"--random-weights was given, but {model} is not one of {', '.join(ALIASES)}", "leave it out")
    alias = ALIASES[model]
    # These options say which weights are read or how images become inputs. Both are absent here, so silence would lie.
    options.refuse(model, "drawn with random weights", "file", "revision", "labels", *WEIGHTS_OPTIONS)
    device = pick(options.device)
    try:
        shape = ModelConfig(
            image_size=options.image_size or alias.image_size,
            patch=alias.patch,
            stride=alias.stride,
            d_model=alias.d_model,
            depth=alias.depth,
            class_tokens=alias.class_tokens,
            neck=alias.neck,
            dt_rank=math.ceil(alias.d_model / 16),  # the rule of the Mamba package, which all official models follow
            class_token=options.class_token or alias.class_token,
            divide_out=alias.divide_out if options.divide_out is None else options.divide_out,
        )
    except ValueError as error:
        raise UsageError(f"{model}: {error}") from error
    # ImageNet's classes, so that the head costs what it costs in the official model.
    config = Config(
        model=shape,
        num_classes=len(imagenet().labels),
        schedule=dense_schedule(shape),
        preprocessing=Preprocess.official(shape.image_size),
        source=Source(repo=alias.repo, license=alias.license),
        # Reports repeat the notes, so no reader takes these weights for trained ones.
        extra={"notes": ["its weights are random: only its speed means anything"]},
    )
    return ready(initialize(ViM(config, choose(options.backend, device.type))), device, options.dtype)
