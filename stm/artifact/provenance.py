"""Tell whether a model's weights are still those that were loaded, and what its folder may state if they are not.

A config states what was measured, where the weights came from, and how they were made. Training changes the weights
and leaves the config as it is. So a model carries checksums of the weights that it was loaded with, and saving compares
them.
"""

import ctypes
import dataclasses
import zlib
from typing import TYPE_CHECKING, NamedTuple

from stm.config import Config, Measured, dense_schedule

if TYPE_CHECKING:  # a card is written without torch
    from torch import Tensor, nn

TUNED = "fine_tuned"  # in `extra`: which model's weights were trained after they were loaded
MERGED, DENSE = "merged", "dense"


class Mark(NamedTuple):
    """The state of a model at the time when it was loaded, made or saved.

    Args:
        weights: a checksum of each parameter and saved buffer, by name; names of the plan's buffers begin with `plan.`.
        measured: the measurements that the config held. Later measurements are of the later weights.
    """

    weights: dict[str, int]
    measured: tuple[Measured, ...]


def mark(model: "nn.Module", config: Config) -> Mark:
    """Return the mark of a model as it is. Reads every weight once: 0.05 s for the 26 million parameters of ViM-S."""
    return Mark({name: _checksum(tensor) for name, tensor in model.state_dict().items()}, config.measured)


def under_plan(before: Mark | None, plan: "nn.Module | None") -> Mark | None:
    """Return the mark of a model that keeps its parameters and gets another plan."""
    if before is None:
        return None
    # The parameters keep their old checksums: if they were trained before, the new plan must not hide that.
    weights = {name: value for name, value in before.weights.items() if not name.startswith("plan.")}
    if plan is not None:
        weights |= {f"plan.{name}": _checksum(tensor) for name, tensor in plan.state_dict().items()}
    return Mark(weights, before.measured)


def is_changed(model: "nn.Module", config: Config, before: Mark | None) -> bool:
    """Return whether the weights differ from those that `config` describes.

    Without a mark nothing can be compared. The weights then count as changed if the config describes a file.
    """
    if before is None:
        return bool(config.files or config.source.sha256)
    return mark(model, config).weights != before.weights


def as_trained(config: Config, before: Mark | None) -> Config:
    """Return the config of a model whose weights were trained after they were loaded.

    The source stays, as the place where training began, without the hash of its file and the options that it was read
    with (`extra.asked`). Earlier measurements go, and so does the recipe, which would make other weights. `extra`
    states that the model was fine-tuned.
    """
    extra = {key: value for key, value in config.extra.items() if key != "asked"}
    # Without a mark nobody knows which measurements are of the trained weights, so all of them go.
    old = config.measured if before is None else before.measured
    return dataclasses.replace(
        config,
        recipe=None,
        measured=tuple(each for each in config.measured if each not in old),
        source=dataclasses.replace(config.source, sha256=None),
        files={},
        extra=extra | {TUNED: MERGED if config.schedule.steps else DENSE},
    )


def as_cast(config: Config, dtype: str) -> Config:
    """Return the config of a model whose weights are cast to `dtype`. Measurements go: none was made in that dtype.

    The recipe stays if running it in `dtype` makes the same weights. That holds if they were float32 before the cast,
    so that nothing was rounded yet, and if the recipe averaged no images, whose states would be rounded on the way.
    """
    if dtype == config.dtype:
        return config
    recipe = (
        config.recipe
        if config.dtype == "float32" and config.recipe is not None and config.recipe.calibration is None
        else None
    )
    return dataclasses.replace(config, dtype=dtype, measured=(), recipe=recipe, rounding=None)


def as_dense(config: Config) -> Config:
    """Return the config of the dense model that a compressed model was made of."""
    return dataclasses.replace(
        config, schedule=dense_schedule(config.model), protection=None, recipe=None, measured=(), files={}
    )


def own_source(config: Config) -> Config:
    """Return the config from whose source a recipe starts.

    For a fine-tuned dense model that is the file that it was read from, not the source where its training began.
    """
    if TUNED not in config.extra:
        return config
    sha256 = next((file.sha256 for file in config.files.values()), None)
    return dataclasses.replace(
        config, source=dataclasses.replace(config.source, sha256=sha256), extra=config.extra | {TUNED: DENSE}
    )


def tuned(config: Config) -> str | None:
    """Return a sentence if the weights were trained after they were loaded, else None."""
    how = config.extra.get(TUNED)
    if how not in (MERGED, DENSE):
        return None
    when = " after merging" if how == MERGED else " before merging" if config.schedule.steps else ""
    return f"fine-tuned{when}: the weights are not those of the source"


def _checksum(tensor: "Tensor") -> int:
    """Return the CRC-32 of a tensor's bytes, dtype and shape."""
    # 32 bits are enough: training changes hundreds of tensors, and one changed checksum shows it. SHA-256 is slower.
    tensor = tensor.detach().cpu().contiguous()
    data = (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())  # its memory, not a copy, and no numpy
    return zlib.crc32(data, zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode()))
