"""`stm.compress`: from a dense model to a compressed one, in one call."""

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from stm.artifact.provenance import as_trained, is_changed, mark
from stm.bake import CalibrationImages, bake
from stm.bar import drawn
from stm.data.fit_images import FitImages, as_set, pictures, whole
from stm.errors import UsageError
from stm.fitting import budget_of, fit
from stm.goals import Goal
from stm.model.vim import ViM
from stm.options import MergeOptions
from stm.progress import OnProgress


def compress(
    model: ViM,
    *,
    rate: float | None = None,
    saving: float | None = None,
    max_drop: float | None = None,
    speedup: float | None = None,
    fit_on: Any = None,
    method: str = "stm",
    schedule: str | None = None,
    stages: Sequence[int] | None = None,
    sides: str = "both",
    tokens_per_side: int | None = None,
    weights: str | None = None,
    hsp: str | None = None,
    step_scale: float | None = None,
    span_conv: bool | None = None,
    normalize: bool = False,
    calibration: Tensor | CalibrationImages | None = None,
    seed: int = 0,
    progress: bool = False,
    on_progress: OnProgress | None = None,
) -> ViM:
    """Return a compressed copy of a dense model; the model itself is not touched.

    Args:
        rate: how much to merge: for a gradual schedule the share of patch tokens that is gone in the end (the paper's
            rate), for `fitted` and `staged` what the paper's schedule saves at that rate. 0 merges nothing. 0.4 if no
            budget is given.
        saving: instead of a rate, the share of token-layers to save.
        max_drop: instead of a rate, the most top-1 to lose, a fraction: the largest saving that keeps this promise with
            95% certainty on a part of `fit_on`, which must have labels.
        speedup: instead of a rate, how many times as fast as the dense model the result is to be on this machine, one
            image at a time, both after `optimize`.
        fit_on: the images that a fitted schedule comes from: normalised (n, C, H, W), a folder, a set on the Hub, or
            what else `stm.evaluate` takes; labels are not needed. None: drawn pictures, which need no data. Do not
            measure the result on them.
        method: the preset: "stm" (fitted, size, step scale 0.5, span conv), "staged" (the same with the order staged)
            or "paper" (border, hsp). What is given below replaces that part of it.
        schedule: the order of the merges: fitted, staged, border, sweep, even or outward.
        stages: instead of a rate, the blocks before which the stages of `staged` act. They make it the schedule if
            "stm" is the method.
        sides: of the class token: both, left or right.
        tokens_per_side: r, the tokens that a gradual schedule merges per side and step.
        weights: prune, sum, mean, size or hsp.
        hsp: "dynamic" (from the running input) or "static" (baked); needs the weights hsp.
        step_scale: p; a token of size s takes s^p times its Delta in every later block.
        span_conv: whether the convolution sees a merged token as often as it is large.
        normalize: divide hsp's weights by their sum.
        calibration: normalised images (n, C, H, W) that static hsp weights are averaged over; without them they come
            from the parameters alone.
        seed: draws the images of the fit, and its probes.
        progress: draw a bar, in a terminal or a notebook.
        on_progress: called with each `stm.progress.Progress`, for a bar of one's own.

    Raises:
        UsageError: options that exclude each other, a budget out of reach, or a model that is already compressed.
        DataError: images of the fit that cannot be used.
        GateError: no saving keeps `max_drop`.
        StmError: no saving reaches `speedup`.

    Examples:
        >>> dense = stm.load("vim-digits")
        >>> small = stm.compress(dense, rate=0.4)
        >>> depth = dense.config.model.depth
        >>> f"{small.config.schedule.saving(depth):.2f}"
        '0.23'
        >>> paper = stm.compress(dense, rate=0.4, method="paper")
        >>> paper.config.schedule.tokens_per_block(depth)[::6]
        (197, 173, 149, 125)
    """
    options = MergeOptions(
        rate=rate,
        saving=saving,
        stages=stages,
        method=method,
        schedule=schedule,
        sides=sides,
        tokens_per_side=tokens_per_side,
        weights=weights,
        hsp=hsp,
        normalize=normalize,
        step_scale=step_scale,
        span_conv=span_conv,
    )
    with drawn(progress, on_progress, stage="compress") as tell:
        return _compressed(model, options, Goal(max_drop=max_drop, speedup=speedup), fit_on, calibration, seed, tell)


def _compressed(
    model: ViM,
    options: MergeOptions,
    goal: Goal,
    fit_on: Any,
    calibration: Tensor | CalibrationImages | None,
    seed: int,
    on_progress: OnProgress | None,
) -> ViM:
    if is_changed(model, model.config, model.mark):
        dense = model.with_plan(model.plan, as_trained(model.config, model.mark))
        dense.mark = mark(dense, dense.config)
        model = dense
    goal.check(options)
    fitting = None
    if fit_on is not None or goal.given:
        options.check_fitted("fit_on" if fit_on is not None else goal.name)
        if not goal.given:
            budget_of(model.config.model, options)  # refused before the costs are computed
        fitting = fit(model, _images(model, fit_on, goal, seed), on_progress=on_progress)
        options = goal.met(fitting, options, on_progress=on_progress)
    small = bake(model, options, fitting=fitting, calibration=calibration, seed=seed, on_progress=on_progress)
    return copy.deepcopy(goal.recorded(small))


def _images(model: ViM, fit_on: Any, goal: Goal, seed: int) -> FitImages:
    if fit_on is None:
        if goal.max_drop is not None:
            raise UsageError("max_drop was given without images, and it takes labelled ones to keep", "give fit_on")
        return pictures(model.config, seed=seed)
    samples = as_set(fit_on, model.config, labels=goal.max_drop is not None)
    return whole(samples, seed=seed, promise=goal.max_drop is not None)
