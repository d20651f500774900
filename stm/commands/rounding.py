"""int8 in `stm compress`: the schedule is made in float32; the finished model is rounded, and held to what it was."""

import dataclasses
import math

from stm.config import INT8
from stm.data.sets import SampleSet
from stm.errors import UsageError
from stm.measure.evaluate import assess
from stm.model.vim import ViM
from stm.options import EvalOptions, ModelOptions
from stm.progress import OnProgress
from stm.reports import KlGate


def in_floats(source: ModelOptions) -> ModelOptions:
    """Return the options that open the model to compress: int8 has no gradients to fit with."""
    return dataclasses.replace(source, dtype="float32") if source.dtype == INT8 else source


def check_rounding(source: ModelOptions, max_kl: float | None, *, compare: bool) -> None:
    """Refuse a gate on what rounding costs if nothing is rounded, or nothing measured.

    Raises:
        UsageError: `max_kl` was given without the dtype int8 or with the comparison switched off, or is no bound.
    """
    if max_kl is None:
        return
    if not (math.isfinite(max_kl) and max_kl >= 0):
        raise UsageError(f"max kl is {max_kl}, expected at least 0 nats")
    if source.dtype != INT8:
        raise UsageError(
            f"max kl was given, but the dtype is {source.dtype or 'float32'}, and it bounds what int8 costs",
            "add --dtype int8, or leave it out",
        )
    if not compare:
        raise UsageError("max kl belongs to the comparison with float32, which is switched off")


def rounded(small: ViM) -> ViM:
    """Return a model in int8 that shares everything else with the model in float32."""
    return small.with_plan(small.plan, small.config).cast(INT8).eval()


def held(
    small: ViM,
    exact: ViM,
    samples: SampleSet,
    images: EvalOptions,
    max_kl: float | None,
    on_progress: OnProgress | None,
) -> KlGate | None:
    """Measure an int8 model against the same model in float32, write the figures into its config, and hold KL to a
    bound.

    Args:
        exact: the model in float32.
        max_kl: the most KL(float32 || int8), in nats; None: no bound.
    """
    figures = assess(small, samples, images, reference=exact, on_progress=on_progress)
    small.config = dataclasses.replace(small.config, rounding=figures.recorded())
    if max_kl is None or figures.kl is None:
        return None
    return KlGate(max_kl=max_kl, kl=figures.kl, passed=figures.kl <= max_kl)
