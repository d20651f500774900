"""Whether a model's weights are still those that were loaded, and what its folder may say of it if they are not.

A config states what was measured, where the weights came from and how they were made. Whoever trains a model changes
the weights and not the config; so a model carries checksums of what it was loaded with, and saving compares.
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
    """What a model was when it was loaded, made or saved.

    Args:
        weights: a checksum of each parameter and saved buffer, by name; those of the plan begin with `plan.`.
        measured: what its config said then. Figures that are added later are of the weights that are there later.
    """

    weights: dict[str, int]
    measured: tuple[Measured, ...]


def mark(model: "nn.Module", config: Config) -> Mark:
    """The mark of a model as it is. Reads every weight once: 0.05 s for the 26 million parameters of ViM-S."""
    return Mark({name: _checksum(tensor) for name, tensor in model.state_dict().items()}, config.measured)


def under_plan(before: Mark | None, plan: "nn.Module | None") -> Mark | None:
    """The mark of a model that gets another plan and keeps its parameters."""
    if before is None:
        return None
    weights = {name: value for name, value in before.weights.items() if not name.startswith("plan.")}
    if plan is not None:
        weights |= {f"plan.{name}": _checksum(tensor) for name, tensor in plan.state_dict().items()}
    return Mark(weights, before.measured)


def is_changed(model: "nn.Module", config: Config, before: Mark | None) -> bool:
    """Whether the weights are others than those that `config` speaks of. Without a mark they count as others if it
    speaks of a file."""
    if before is None:
        return bool(config.files or config.source.sha256)
    return mark(model, config).weights != before.weights


def as_trained(config: Config, before: Mark | None) -> Config:
    """What may be said of a model whose weights are others than those that were loaded.

    Its source remains as where training began, without the hash of its file and how that was read (`extra.asked`). What
    was measured before goes, and so does the recipe, which makes other weights. `extra` says that it was fine-tuned.
    """
    extra = {key: value for key, value in config.extra.items() if key != "asked"}
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
    """What may be said of a model whose weights get another dtype: in this one nothing was measured.

    The recipe stays if running it in that dtype makes these weights: they were float32, and no images were averaged
        over in it.
    """
    if dtype == config.dtype:
        return config
    recipe = (
        config.recipe
        if config.dtype == "float32" and config.recipe is not None and config.recipe.calibration is None
        else None
    )
    return dataclasses.replace(config, dtype=dtype, measured=(), recipe=recipe)


def as_dense(config: Config) -> Config:
    """What the dense model says that a compressed one was made of."""
    return dataclasses.replace(
        config, schedule=dense_schedule(config.model), protection=None, recipe=None, measured=(), files={}
    )


def own_source(config: Config) -> Config:
    """The config whose source a recipe begins with: of a dense model that was fine-tuned, the file that it was read
    from."""
    if TUNED not in config.extra:
        return config
    sha256 = next((file.sha256 for file in config.files.values()), None)
    return dataclasses.replace(
        config, source=dataclasses.replace(config.source, sha256=sha256), extra=config.extra | {TUNED: DENSE}
    )


def tuned(config: Config) -> str | None:
    """A sentence if the weights were trained after they were loaded, else None."""
    how = config.extra.get(TUNED)
    if how not in (MERGED, DENSE):
        return None
    when = " after merging" if how == MERGED else " before merging" if config.schedule.steps else ""
    return f"fine-tuned{when}: the weights are not those of the source"


def _checksum(tensor: "Tensor") -> int:
    """CRC-32 of its bytes, dtype and shape. Training changes hundreds of tensors; that all of their sums stay does not
    happen."""
    tensor = tensor.detach().cpu().contiguous()
    data = (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())  # its memory, not a copy, and no numpy
    return zlib.crc32(data, zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode()))
