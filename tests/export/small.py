"""The smallest models that an export can be of."""

from typing import Any

import stm
from stm.config import Config, ModelConfig, Preprocess, dense_schedule
from stm.model.initialize import initialize
from stm.model.vim import ViM


def small(*, classes: int = 3, prep: dict[str, Any] | None = None, **shape: Any) -> ViM:
    """A dense model of random weights: by default 4 patches of 2 x 2 pixels and two blocks."""
    base: dict[str, Any] = {"image_size": 4, "patch": 2, "stride": 2, "d_model": 8, "depth": 2, "dt_rank": 1}
    model = ModelConfig(**base | shape)
    channels = model.in_chans
    config = Config(
        model=model,
        num_classes=classes,
        schedule=dense_schedule(model),
        preprocessing=Preprocess(
            **{
                "resize": model.image_size,
                "crop": model.image_size,
                "mean": (0.5,) * channels,
                "std": (0.2,) * channels,
            }
            | (prep or {})
        ),
        label_names=tuple("abcdefgh"[:classes]) or None,
    )
    return initialize(ViM(config), seed=1).eval()


def merged(**shape: Any) -> ViM:
    """`small`, merging after its first block: span convolution, step scale and weights by size."""
    return stm.compress(small(**shape), stages=[1], method="staged")
