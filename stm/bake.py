"""Baking: from a dense model and options to a compressed model. The schedule becomes constants, the weights become
buffers: whatever depends on no image is computed here, once, and never when the model runs."""

import copy
import dataclasses
import hashlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stm.artifact.provenance import as_trained, is_changed, mark, own_source
from stm.config import Calibration, Protection, Recipe
from stm.errors import UsageError
from stm.merging import hsp
from stm.merging.bnnm import plan_schedule
from stm.merging.plan import StaticPlan, Taps
from stm.merging.schedule import Schedule, Step
from stm.model.vim import ViM
from stm.options import MergeOptions
from stm.progress import OnProgress, Progress

CALIBRATION_IMAGES = 64
_PORTION = 8  # calibration images that run at once


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
            rate), for `staged` what the paper's schedule saves at that rate. 0.4 if no budget is given.
        saving: instead of a rate, the share of token-layers to save.
        method: the preset: "stm" (staged, size, step scale 0.5, span conv) or "paper" (border, hsp). What is given
            below replaces that part of it.
        schedule: the order of the merges: staged, border, sweep, even or outward.
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
        seed: is recorded; what chooses images takes it.

    Raises:
        UsageError: options that exclude each other, a budget out of reach, or a model that is already compressed.

    Examples:
        >>> dense = stm.load("vim-digits")
        >>> small = stm.compress(dense, rate=0.4)
        >>> depth = dense.config.model.depth
        >>> small.config.schedule.tokens_per_block(depth)[::6]
        (197, 197, 197, 99)
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
    return copy.deepcopy(bake(model, options, calibration=calibration, seed=seed, on_progress=on_progress))


def bake(
    model: ViM,
    options: MergeOptions = MergeOptions(),
    *,
    calibration: Tensor | CalibrationImages | None = None,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> ViM:
    """Compress as `compress` does, but share every parameter with the dense model.

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
        seed=seed,
    )
    config = dataclasses.replace(
        own_source(model.config), schedule=chosen.schedule, protection=protection, recipe=recipe, measured=(), files={}
    )
    if not chosen.schedule.steps:
        return model.with_plan(None, config)
    plan = StaticPlan(chosen.schedule, protection, config.model)
    _fill(plan, model, chosen.schedule, protection, None if images is None else images.images, on_progress)
    return model.with_plan(plan.to(model.cls_token.device), config)


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


def rule_weights(rule: str, step: Step, sizes: Sequence[int]) -> list[float]:
    """Return the weight of each token under prune, sum, mean or size: what a step multiplies it by.

    Args:
        sizes: of the tokens before the step, by position.
    """
    groups: dict[int, list[int]] = {}
    for source, destination in step.absorb:
        groups.setdefault(destination, [destination]).append(source)
    weights = [1.0] * len(sizes)
    for destination, group in groups.items():
        shares = {
            "prune": [float(position == destination) for position in group],
            "sum": [1.0] * len(group),
            "mean": [1 / len(group)] * len(group),
            "size": [sizes[position] / sum(sizes[member] for member in group) for position in group],
        }[rule]
        for position, share in zip(group, shares, strict=True):
            weights[position] = share
    return weights


def _fill(
    plan: StaticPlan,
    model: ViM,
    schedule: Schedule,
    protection: Protection,
    images: Tensor | None,
    on_progress: OnProgress | None,
) -> None:
    """Compute the floats of every step, on the CPU."""
    for number, step in enumerate(schedule.steps):
        baked = plan.step(step.after)
        assert baked is not None
        if baked.scale is not None:
            baked.scale.copy_(_scale(schedule.sizes[number + 1], protection))
        if baked.weight is None:
            continue
        if protection.weights != "hsp":
            baked.weight.copy_(torch.tensor(rule_weights(protection.weights, step, schedule.sizes[number])))
        elif images is None:
            mixer = model.blocks[step.after].mixer
            bias, A = mixer.dt_proj_bias.detach().cpu(), -mixer.A_log.detach().cpu().exp()  # (K, E), (K, E, N)
            delta = (
                F.softplus(bias)[:, None, None] * _scale(schedule.sizes[number], protection)[:, None]
            )  # (K, 1, L, E)
            B = delta.new_ones(*delta.shape[:3], A.shape[-1])  # taken as equal
            absorbed = _absorbed(schedule, step, len(model.layers))
            baked.weight.copy_(_static(hsp.least_squares(delta, B, A, absorbed)[0], absorbed, protection))
    if images is not None:
        _calibrate(plan, model, schedule, protection, images, on_progress)


@torch.no_grad()
def _calibrate(
    plan: StaticPlan,
    model: ViM,
    schedule: Schedule,
    protection: Protection,
    images: Tensor,
    on_progress: OnProgress | None,
) -> None:
    """Bake static hsp: the mean of the dynamic weights over the images.

    It goes block by block, and earlier steps are already static: each step is averaged over the inputs that the
    compressed model itself will give it.
    """
    device = model.cls_token.device
    plan.to(device)
    steps = {step.after: step for step in schedule.steps}
    states = [model.embed(portion.to(device)) for portion in torch.split(images, _PORTION)]
    for number in range(schedule.steps[-1].after + 1):
        step = steps.get(number)
        seen = [model.blocks[number](state, ("delta", "B", "A") if step else ()) for state in states]
        states = [state for state, _ in seen]
        if step is not None:
            baked, absorbed = (
                plan.step(number),
                hsp.Absorbed(*(v.to(device) for v in _absorbed(schedule, step, len(model.layers)))),
            )
            assert baked is not None and baked.weight is not None
            w = torch.cat([hsp.least_squares(taps.delta, taps.B, taps.A, absorbed) for _, taps in seen])  # (n, S)
            baked.weight.copy_(_static(w.double().mean(0), absorbed, protection))
            states = [baked(state, Taps()) for state in states]
        if on_progress is not None:
            on_progress(Progress("calibrate", number + 1, schedule.steps[-1].after + 1, "blocks"))


def _static(w: Tensor, absorbed: hsp.Absorbed, protection: Protection) -> Tensor:
    """Return one weight per token (L,), from those of the absorbed tokens, w (S,)."""
    weights = hsp.token_weights(w[None], absorbed)
    return (hsp.normalize(weights, absorbed) if protection.normalized else weights)[0]


def _absorbed(schedule: Schedule, step: Step, depth: int) -> hsp.Absorbed:
    return hsp.absorbed(step, schedule.tokens_per_block(depth)[step.after], schedule.cls_per_block(depth)[step.after])


def _scale(sizes: Sequence[int], protection: Protection) -> Tensor:
    """(L,): size^p."""
    return torch.tensor(sizes, dtype=torch.float64).pow(protection.step_scale).float()
