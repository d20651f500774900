"""The constants of a fixed schedule: the weight of every token that merges, and the step scale of every token after it.

Whatever depends on no image is computed here, once, and never when the model runs.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stm.config import Protection
from stm.merging import hsp
from stm.merging.plan import StaticPlan, Taps
from stm.merging.schedule import Schedule, Step
from stm.model.vim import ViM
from stm.progress import OnProgress, Progress

_PORTION = 8  # calibration images that run at once


def static_plan(
    model: ViM,
    schedule: Schedule,
    protection: Protection,
    images: Tensor | None = None,
    on_progress: OnProgress | None = None,
) -> StaticPlan:
    """Return the plan of a schedule with all its constants, on the model's device.

    Args:
        model: dense.
        images: (n, C, H, W), normalised, that static hsp weights are averaged over; None: they come from the
            parameters alone.
    """
    plan = StaticPlan(schedule, protection, model.config.model)
    _fill(plan, model, schedule, protection, images, on_progress)
    return plan.to(model.cls_token.device)


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
        outputs = [model.blocks[number](state, ("delta", "B", "A") if step else ()) for state in states]
        states = [state for state, _ in outputs]
        if step is not None:
            baked, absorbed = (
                plan.step(number),
                hsp.Absorbed(*(v.to(device) for v in _absorbed(schedule, step, len(model.layers)))),
            )
            assert baked is not None and baked.weight is not None
            w = torch.cat([hsp.least_squares(taps.delta, taps.B, taps.A, absorbed) for _, taps in outputs])  # (n, S)
            baked.weight.copy_(_static(w.double().mean(0), absorbed, protection))
            states = [baked(state, Taps()) for state in states]
        if on_progress is not None:
            on_progress(Progress("calibrate", number + 1, schedule.steps[-1].after + 1, "blocks"))


def _static(w: Tensor, absorbed: hsp.Absorbed, protection: Protection) -> Tensor:
    """Return one weight per token (L,), from those of the absorbed tokens, w (S,)."""
    weights = hsp.token_weights(w[None], absorbed)
    return (hsp.normalize(weights, absorbed) if protection.normalized else weights)[0]


def _absorbed(schedule: Schedule, step: Step, depth: int) -> hsp.Absorbed:
    return hsp.absorbed(step, schedule.tokens_per_block(depth)[step.after])


def _scale(sizes: Sequence[int], protection: Protection) -> Tensor:
    """(L,): size^p."""
    return torch.tensor(sizes, dtype=torch.float64).pow(protection.step_scale).float()
