"""Baking: from a dense model and options to a compressed model. The schedule becomes constants, the weights become
buffers: whatever depends on no image is computed here, once, and never when the model runs."""

import dataclasses
import hashlib

import torch
from torch import Tensor

from stm.artifact.provenance import own_source
from stm.config import Config, Protection
from stm.data.fit_images import pictures
from stm.errors import UsageError
from stm.fitting import Choice, Fitting, budget_of, fit
from stm.merging.bnnm import DEFAULT_RATE, PlannedSchedule, plan_schedule
from stm.merging.constants import static_plan
from stm.merging.schedule import Schedule
from stm.model.vim import ViM
from stm.options import MergeOptions
from stm.progress import OnProgress
from stm.recipe import Calibration, Fit, Recipe

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


def bake(
    model: ViM,
    options: MergeOptions = MergeOptions(),
    *,
    fitting: Fitting | None = None,
    chosen_before: Choice | None = None,
    calibration: Tensor | CalibrationImages | None = None,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> ViM:
    """Return a compressed model that shares every parameter with the dense one; see `stm.compress`.

    Args:
        fitting: the model's, for a fitted schedule; None: it is fitted on pictures that need no data.
        chosen_before: what an earlier fit chose for this budget, so that nothing is fitted; see `Fitting.choose`.

    Raises:
        UsageError, DataError: as `stm.compress`.
    """
    if model.plan is not None or model.config.recipe is not None:
        raise UsageError("the model is already compressed", "start from its dense source")
    preset = options.preset
    protection = options.protection
    if calibration is not None and (protection.weights, protection.mode) != ("hsp", "static"):
        raise UsageError(
            "calibration images were given, but only static hsp weights are calibrated",
            "add --weights hsp --hsp static",
        )
    order, sides = options.order, options.sides or preset.sides
    assert preset.method is not None and sides is not None  # a preset leaves none of them open
    about = None
    if order == "fitted" and chosen_before is not None:
        protection, about = chosen_before.protection, chosen_before.fit
        rate = DEFAULT_RATE if options.rate is None and options.saving is None else options.rate
        chosen = PlannedSchedule(chosen_before.schedule, rate)
    elif order == "fitted":
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
    return _under(model, chosen.schedule, protection, recipe, images, on_progress)


def bake_again(
    model: ViM,
    recorded: Config,
    *,
    calibration: CalibrationImages | None = None,
    on_progress: OnProgress | None = None,
) -> ViM:
    """Return the model with the very merges that a folder holds: nothing is fitted or chosen.

    Args:
        recorded: of the folder; it has a recipe and a protection.
        calibration: for static hsp weights.
    """
    assert recorded.recipe is not None and recorded.protection is not None  # `recorded` in stm/commands/recipe.py
    about = None if calibration is None else calibration.about
    recipe = dataclasses.replace(recorded.recipe, calibration=about)
    return _under(model, recorded.schedule, recorded.protection, recipe, calibration, on_progress)


def _under(
    model: ViM,
    schedule: Schedule,
    protection: Protection,
    recipe: Recipe,
    images: CalibrationImages | None,
    on_progress: OnProgress | None,
) -> ViM:
    """Return the model under a schedule, with all that config.json says of it."""
    config = dataclasses.replace(
        own_source(model.config), schedule=schedule, protection=protection, recipe=recipe, measured=(), files={}
    )
    if not schedule.steps:
        return model.with_plan(None, config)
    averaged = None if images is None else images.images
    return model.with_plan(static_plan(model, schedule, protection, averaged, on_progress), config)


def _fitted(
    model: ViM,
    options: MergeOptions,
    protection: Protection,
    sides: str,
    fitting: Fitting | None,
    seed: int,
    on_progress: OnProgress | None,
) -> tuple[PlannedSchedule, Protection, Fit | None]:
    """Return the fitted schedule of a budget, how its tokens are treated, and what decided both; no fit of nothing."""
    shape = model.config.model
    rate, layers = budget_of(shape, options)  # an impossible one is refused before the fit, which takes long
    if not layers:
        return PlannedSchedule(Schedule(shape.tokens, shape.cls), rate), protection, None
    if fitting is None:
        fitting = fit(model, pictures(model.config, seed=seed), on_progress=on_progress)
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
