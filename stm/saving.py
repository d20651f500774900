"""From a model to its folder, card included."""

import os
from pathlib import Path

from stm.artifact import folder as artifact
from stm.artifact.provenance import as_trained, is_changed, mark
from stm.config import Config
from stm.model.vim import ViM
from stm.reports import ServedSpeed


def save(
    model: ViM,
    folder: str | os.PathLike[str],
    *,
    force: bool = False,
    images_per_second: float | None = None,
    served: ServedSpeed | None = None,
) -> Config:
    """Write a model's folder, card included; see `ViM.save_pretrained`. From then on the model's config speaks of these
    weights.

    Args:
        images_per_second: the speed that was measured here, for the card.
        served: the speed beside the dense model, for the card.

    Returns:
        The config as it was written.
    """
    from stm.hub.card import card, eval_results  # not part of the runtime
    from stm.measure import flops
    from stm.measure.environment import environment_of

    config, tensors = model.config, model.state_dict()
    if is_changed(model, config, model.mark):
        config = as_trained(config, model.mark)
    text = card(
        config,
        name=Path(folder).resolve().name,
        flops=flops.count(config),
        parameters=flops.parameters(config.model, config.num_classes),
        weights_bytes=artifact.weights_size(tensors),
        images_per_second=images_per_second,
        served=served,
        environment=None if images_per_second is None and served is None else environment_of(model),
    )
    written = artifact.write(folder, config, tensors, text, results=eval_results(config), force=force)
    model.mark = mark(model, written)
    return written
