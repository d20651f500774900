"""Baking: from a dense model and options to a compressed model. The schedule becomes constants, the weights become
buffers: whatever depends on no image is computed here, once, and never when the model runs."""

import copy
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stm.artifact.provenance import as_trained, is_changed, mark, own_source
from stm.config import Calibration, Fit, Protection, Recipe
from stm.data.fit_images import as_set, pictures, whole
from stm.errors import UsageError
from stm.fitting import Fitting, fit
from stm.merging.bnnm import DEFAULT_RATE, PlannedSchedule, check_options, plan_schedule
from stm.merging.constants import static_plan
from stm.merging.schedule import Schedule
from stm.model.vim import ViM
from stm.options import MergeOptions
from stm.progress import OnProgress

CALIBRATION_IMAGES = 64


@dataclasses.dataclass(frozen=True)
class CalibrationImages:
    """Images to average hsp weights over: normalised (n, C, H, W), and the name, count and hash that are recorded."""

    images: Tensor
    about: Calibration

    @classmethod
    def of(cls, images: Tensor, data: str) -> "CalibrationImages":
        """Take images and the name of their set."""
        images = images.detach().to("cpu", torch.float32).contiguous()
        digest = hashlib.sha256(images.numpy().tobytes())
        return cls(images, Calibration(data=data, n=len(images), sha256=digest.hexdigest()))


def compress(
    model: ViM,
    *,
    rate: float | None = None,
    saving: float | None = None,
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
    on_progress: OnProgress | None = None,
) -> ViM:
    """Return a compressed copy of a dense model; the model itself is not touched.

    Args:
        rate: how much to merge: for a gradual schedule the share of patch tokens that is gone in the end (the paper's
            rate), for `fitted` and `staged` what the paper's schedule saves at that rate. 0.4 if no budget is given.
        saving: instead of a rate, the share of token-layers to save.
        fit_on: the images that a fitted schedule comes from: normalised (n, C, H, W), a folder, a set on the Hub, or
            what else `stm.evaluate` takes; labels are not needed. None: drawn pictures, which need no data. Do not
            measure the result on them.
        method: the preset: "stm" (fitted, size, step scale 0.5, span conv), "staged" (the same with the order staged)
            or "paper" (border, hsp). What is given below replaces that part of it.
        schedule: the order of the merges: fitted, staged, border, sweep, even or outward.
        stages: instead of a rate, the blocks before which the stages of `staged` act.
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

    Raises:
        UsageError: options that exclude each other, a budget out of reach, or a model that is already compressed.
        DataError: images of the fit that cannot be used.

    Examples:
        >>> dense = stm.load("vim-digits")
        >>> small = stm.compress(dense, rate=0.4)
        >>> depth = dense.config.model.depth
        >>> f"{small.config.schedule.saving(depth):.2f}"
        '0.22'
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
    if is_changed(model, model.config, model.mark):
        dense = model.with_plan(model.plan, as_trained(model.config, model.mark))
        dense.mark = mark(dense, dense.config)
        model = dense
    fitting = None
    if fit_on is not None:
        check_fitted(options, "fit_on")
        fitting = fit(model, whole(as_set(fit_on, model.config), seed=seed), on_progress=on_progress)
    small = bake(model, options, fitting=fitting, calibration=calibration, seed=seed, on_progress=on_progress)
    return copy.deepcopy(small)


def bake(
    model: ViM,
    options: MergeOptions = MergeOptions(),
    *,
    fitting: Fitting | None = None,
    calibration: Tensor | CalibrationImages | None = None,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> ViM:
    """Compress as `compress` does, but share every parameter with the dense model.

    Args:
        fitting: the model's, for a fitted schedule; None: it is fitted on pictures that need no data.

    Raises:
        UsageError: as `compress`.
    """
    if model.plan is not None or model.config.recipe is not None:
        raise UsageError("the model is already compressed", "start from its dense source")
    preset = options.preset
    protection = protection_of(options)
    if calibration is not None and (protection.weights, protection.mode) != ("hsp", "static"):
        raise UsageError(
            "calibration images were given, but only static hsp weights are calibrated",
            "add --weights hsp --hsp static",
        )
    order, sides = options.schedule or preset.schedule, options.sides or preset.sides
    assert preset.method is not None and order is not None and sides is not None  # a preset leaves none of them open
    about = None
    if order == "fitted":
        chosen, protection, about = _fitted(model, options, protection, sides, fitting, seed, on_progress)
    else:
        chosen = plan_schedule(
            model.config.model,
            order=order,
            rate=options.rate,
            saving=options.saving,
            stages=options.stages,
            sides=sides,
            tokens_per_side=options.tokens_per_side,
        )
    images = CalibrationImages.of(calibration, "tensor") if isinstance(calibration, Tensor) else calibration
    recipe = Recipe(
        method=preset.method,
        rate=chosen.rate,
        saving=options.saving,
        removed_share=chosen.schedule.removed_share,
        schedule=order,
        stages=None if options.stages is None else tuple(options.stages),
        sides=sides,
        tokens_per_side=chosen.tokens_per_side,
        calibration=None if images is None else images.about,
        fit=about,
        seed=seed,
    )
    config = dataclasses.replace(
        own_source(model.config), schedule=chosen.schedule, protection=protection, recipe=recipe, measured=(), files={}
    )
    if not chosen.schedule.steps:
        return model.with_plan(None, config)
    averaged = None if images is None else images.images
    return model.with_plan(static_plan(model, chosen.schedule, protection, averaged, on_progress), config)


def is_fitted(options: MergeOptions) -> bool:
    """Return whether these options ask for a schedule that is fitted to the model."""
    return (options.schedule or options.preset.schedule) == "fitted"


def check_fitted(options: MergeOptions, name: str) -> None:
    """Raise UsageError if an option that belongs to a fitted schedule was given with another one.

    Args:
        name: the option that was given.
    """
    if not is_fitted(options):
        order = options.schedule or options.preset.schedule
        raise UsageError(
            f"{name} was given, but the schedule {order} looks at no image",
            "leave it out, or choose the schedule fitted",
        )


def _fitted(
    model: ViM,
    options: MergeOptions,
    protection: Protection,
    sides: str,
    fitting: Fitting | None,
    seed: int,
    on_progress: OnProgress | None,
) -> tuple[PlannedSchedule, Protection, Fit | None]:
    """Return the fitted schedule of a budget, how its tokens are treated, and what decided both; no fit of a rate 0."""
    check_options("fitted", options.rate, options.saving, options.stages, sides, options.tokens_per_side)
    rate = DEFAULT_RATE if options.rate is None and options.saving is None else options.rate
    shape = model.config.model
    if not (options.saving if rate is None else rate):
        return PlannedSchedule(Schedule(shape.tokens, shape.cls), rate), protection, None
    if fitting is None:
        fitting = fit(model, pictures(model.config, seed=seed), on_progress=on_progress)
    layers = fitting.layers(rate, options.saving, sides)
    choice = fitting.choose(
        layers,
        protection,
        sides=sides,
        other_scales=options.step_scale is None,
        other_orders=options.schedule is None,
        on_progress=on_progress,
    )
    saving = layers / (shape.tokens * shape.depth)
    return PlannedSchedule(choice.schedule, rate, saving), choice.protection, choice.fit


def protection_of(options: MergeOptions) -> Protection:
    """Return how merged tokens are weighted and treated: what was asked for, else what the preset says."""
    preset = options.preset
    rule = options.weights or preset.weights
    if rule != "hsp" and (options.hsp is not None or options.normalize):
        problem = f"{'hsp' if options.hsp else 'normalize'} needs the weights hsp, not {rule}"
        raise UsageError(problem, "add --weights hsp")
    scale = preset.step_scale if options.step_scale is None else options.step_scale
    spans = preset.span_conv if options.span_conv is None else options.span_conv
    assert rule is not None and scale is not None and spans is not None  # a preset leaves none of them open
    try:
        return Protection(
            weights=rule,
            mode=(options.hsp or "dynamic") if rule == "hsp" else "static",
            normalized=options.normalize,
            step_scale=float(scale),
            span_conv=spans,
        )
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
