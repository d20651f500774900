"""The schedule that costs a model least: fitted on images once, then cut for any budget.

`fit` computes the costs of all merges (stm/merging/costs.py); `Fitting.choose` turns them into the schedule of a
budget. If there are images to judge by, several candidates are tried on them, and the one nearest to the dense model is
taken.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from stm.config import INT8, ModelConfig, Protection
from stm.data.fit_images import FitImages
from stm.data.sets import SampleSet, iterate
from stm.errors import InfeasibleBudget, StmError, UsageError
from stm.measure.judge import divergences
from stm.measure.records import fingerprint
from stm.merging import bnnm, cost_file
from stm.merging.budget import (
    NEAR,
    Capacity,
    layers_to_save,
    layers_within,
    nearest_stages,
    paper_saving,
    steps_for_saving,
)
from stm.merging.constants import static_plan
from stm.merging.cost_file import Effects
from stm.merging.costs import LARGEST_GROUP, effects, images_at_once, never_dearer, probe_shape
from stm.merging.fit import CostTable, Group, as_schedule
from stm.merging.regroup import PROBES, Regrouping
from stm.merging.schedule import Fixed, Schedule, fixed
from stm.model.vim import ViM
from stm.options import PRESETS, MergeOptions
from stm.progress import Meter, OnProgress
from stm.recipe import Fit, Tried

STEP_SCALES = (0.5, 0.75, 1.0)  # the candidates for p


class Choice(NamedTuple):
    """A schedule for a budget, how its merged tokens are treated, and what decided both."""

    schedule: Schedule
    protection: Protection
    fit: Fit | None  # None: a person chose


class _Candidate(NamedTuple):
    cut: str
    schedule: Schedule
    protection: Protection


@dataclass(frozen=True)
class Fitting:
    """The costs of one model.

    Args:
        dense: the model.
        images: those that the costs came from, and those that judge.
        sha256: of all of them.
        effects: what was computed from them.
    """

    dense: ViM
    images: FitImages
    sha256: str
    effects: Effects

    def without_judges(self) -> "Fitting":
        """Return this fitting with nothing to choose by: its schedules are flat cuts."""
        return dataclasses.replace(self, images=dataclasses.replace(self.images, judges=None))

    def table(self, sides: str = "both") -> CostTable:
        """Return the costs of the sides of the class token that take part.

        Raises:
            UsageError: there is no token on them.
        """
        shape = self.dense.config.model
        bnnm.capacity_of(shape, sides)
        return CostTable(never_dearer(self.effects.cost), _parts(shape, sides))

    def choose(
        self,
        layers: int,
        protection: Protection,
        *,
        sides: str = "both",
        other_scales: bool = True,
        other_orders: bool = True,
        on_progress: OnProgress | None = None,
    ) -> Choice:
        """Return the schedule that saves nearest to so many token-layers and changes the logits least.

        Without judges that is the flat cut. With judges it is the best of the flat and the regrouped cut and what is
        allowed besides.

        Args:
            protection: how merged tokens are treated.
            sides: both, left or right.
            other_scales: whether the judges may take another step scale.
            other_orders: whether the judges may take one of the orders staged and border.

        Raises:
            DataError: none of the judges can be read.
        """
        judges = self.images.judges
        fit = Fit(
            data=self.images.data,
            n=self.images.n,
            judges=0 if judges is None else len(judges),
            seed=self.images.seed,
            sha256=self.sha256,
        )
        if judges is None or not layers:
            return Choice(self._schedule(self.table(sides).fitted(layers)), protection, fit)
        scales = STEP_SCALES if other_scales else (protection.step_scale,)
        candidates = [
            _Candidate(cut, schedule, dataclasses.replace(protection, step_scale=scale))
            for cut, schedule in self._cuts(layers, sides, other_orders)
            for scale in (scales if cut in ("flat", "regrouped") else (protection.step_scale,))
        ]
        losses = self._losses(candidates, judges, on_progress).mean(1).tolist()
        order = sorted(range(len(candidates)), key=losses.__getitem__)
        tried = tuple(
            Tried(cut=candidates[i].cut, step_scale=candidates[i].protection.step_scale, kl=losses[i]) for i in order
        )
        best = candidates[order[0]]
        return Choice(best.schedule, best.protection, dataclasses.replace(fit, cut=best.cut, tried=tried))

    def beside_presets(
        self, small: ViM, samples: SampleSet, on_progress: OnProgress | None = None
    ) -> list[tuple[str, list[float]]]:
        """Return KL(dense || model) per image of a compressed model, and of the other presets at the same saving.

        Args:
            small: what was made of this model.
            samples: the images to compare on.
        """
        config = small.config
        assert config.protection is not None and config.recipe is not None
        saved = sum(len(step.absorb) * (config.model.depth - 1 - step.after) for step in config.schedule.steps)
        candidates = [_Candidate("fitted", config.schedule, config.protection)]
        candidates += [
            _Candidate(preset, schedule, PRESETS[preset].protection)
            for order, schedule in self._orders(saved, config.recipe.sides)
            for preset in ("staged", "paper")
            if PRESETS[preset].schedule == order and self._saves(schedule, saved)
        ]
        losses = self._losses(candidates, samples, on_progress).tolist()
        return [(candidate.cut, values) for candidate, values in zip(candidates, losses, strict=True)]

    def _losses(self, candidates: list[_Candidate], samples: SampleSet, on_progress: OnProgress | None) -> Tensor:
        """Return KL(dense || candidate) of each candidate on each image, (candidates, n)."""
        models = [
            self.dense.with_plan(
                static_plan(self.dense, schedule, protection),
                dataclasses.replace(self.dense.config, schedule=schedule, protection=protection, measured=(), files={}),
            )
            for _, schedule, protection in candidates
        ]
        return divergences(self.dense, models, samples, on_progress)

    def _cuts(self, layers: int, sides: str, other_orders: bool) -> Iterator[tuple[str, Schedule]]:
        """Yield the name and the schedule of each candidate."""
        table = self.table(sides)
        yield "flat", self._schedule(table.fitted(layers))  # it saves as much as the table can
        others = []
        if len(self.effects.probes):
            others.append(("regrouped", self._schedule(Regrouping(table, self.effects.probes).fitted(layers))))
        if other_orders:
            others += self._orders(layers, sides)
        yield from ((cut, schedule) for cut, schedule in others if self._saves(schedule, layers))

    def _orders(self, layers: int, sides: str) -> list[tuple[str, Schedule]]:
        """Return the schedules nearest to a saving that look at no image."""
        model, capacity = self.dense.config.model, bnnm.capacity_of(self.dense.config.model, sides)
        saving = layers / capacity.token_layers
        made = []
        with suppress(UsageError):  # a side may not have the pairs
            blocks = nearest_stages(capacity, layers_to_save(capacity, saving))
            made.append(("staged", bnnm.staged(model.tokens, model.cls, blocks, sides)))
        with suppress(UsageError):
            if model.class_tokens:  # which `border` merges toward
                r, steps = steps_for_saving(capacity, saving)
                made.append(("border", bnnm.gradual(model.tokens, model.cls, "border", r, steps, sides)))
        return made

    def _saves(self, schedule: Schedule, layers: int) -> bool:
        """Return whether a schedule saves as much as was asked: one that saves less would win by that alone."""
        model = self.dense.config.model
        return schedule.saving(model.depth) >= layers / (model.tokens * model.depth) - NEAR

    def _schedule(self, groups: list[Group]) -> Schedule:
        model = self.dense.config.model
        return as_schedule(groups, model.tokens, model.cls)


def layers_of(model: ModelConfig, rate: float | None, saving: float | None, sides: str = "both") -> int:
    """Return the token-layers that a budget saves: a saving, or what the paper's schedule saves at a rate.

    This needs no fit, so a budget can be refused before one.

    Raises:
        UsageError: a model without a block or a token to merge before; or a budget out of reach, and the message names
            the largest.
    """
    capacity, largest = bnnm.capacity_of(model, sides), most_layers(model, sides)
    if rate is None:
        assert saving is not None
        return layers_within(capacity, saving, largest)
    layers = paper_saving(capacity, rate)
    if layers > largest:
        share = 100 * largest // capacity.token_layers / 100
        why = f"rate {rate} is more than possible; the largest possible saving is {share:.2f}"
        raise InfeasibleBudget(why, asked="rate", value=rate, best=_largest_rate(capacity, largest))
    return layers


def _largest_rate(capacity: Capacity, largest: int) -> float | None:
    """Return the largest rate in whole percents at which the paper's schedule saves no more than `largest`."""
    for percents in range(99, 0, -1):
        with suppress(UsageError):
            if paper_saving(capacity, percents / 100) <= largest:
                return percents / 100
    return None


def most_layers(model: ModelConfig, sides: str = "both") -> int:
    """Return the most token-layers that a fitted schedule can save, which depends on no cost.

    Raises:
        UsageError: a model without a block or a token to merge before.
    """
    _check_depth(model)
    bnnm.capacity_of(model, sides)
    free = torch.zeros(model.depth - 1, model.tokens, LARGEST_GROUP + 1, dtype=torch.float64)
    return CostTable(free, _parts(model, sides)).most()


def budget_of(model: ModelConfig, options: MergeOptions) -> tuple[float | None, int]:
    """Return the rate of a fitted schedule's budget, None if it is a saving, and the token-layers that it saves.

    Raises:
        UsageError: options that exclude each other, or what `layers_of` raises.
    """
    sides = options.sides or options.preset.sides or "both"
    bnnm.check_options("fitted", options.rate, options.saving, options.stages, sides, options.tokens_per_side)
    rate = bnnm.DEFAULT_RATE if options.rate is None and options.saving is None else options.rate
    # nothing at all is a budget too: the dense model
    return rate, layers_of(model, rate, options.saving, sides) if (options.saving if rate is None else rate) else 0


def _parts(model: ModelConfig, sides: str) -> list[range]:
    """Return the positions of each side that takes part, ascending."""
    parts = bnnm.parts_of(model.tokens, model.cls, sides)
    return [part if part.step > 0 else part[::-1] for part in parts]


def fit(dense: ViM, images: FitImages, *, keep: bool = True, on_progress: OnProgress | None = None) -> Fitting:
    """Compute the costs of all merges of a dense model.

    Args:
        images: what they come from.
        keep: whether to take them from an earlier run, and to keep them for later ones; see `stm.merging.cost_file`.

    Raises:
        UsageError: a model without a block or a token to merge before.
        DataError: none of the images can be read.
        StmError: the gradients are not finite.
    """
    _check_depth(dense.config.model)
    if dense.config.dtype == INT8:  # which has no gradients: the costs are those of the floats that it stands for
        dense = dense.with_plan(None).cast("float32")
    sha256 = images.sha256(dense.config.preprocessing)
    name = key_of(dense, images, sha256)
    known = cost_file.read(name) if keep else None
    if known is None:
        known = _computed(dense, images, on_progress)
        if keep:
            cost_file.write(name, known)
    return Fitting(dense, images, sha256, known)


def _check_depth(model: ModelConfig) -> None:
    if model.depth < 2:
        raise UsageError("the model has one block, and no merge before it would save anything")


def kept(dense: ViM, images: FitImages) -> Fitting | None:
    """Return the fitting of a model on images if an earlier run has kept it, else None.

    Raises:
        DataError: none of the images can be read.
    """
    sha256 = images.sha256(dense.config.preprocessing)
    known = cost_file.read(key_of(dense, images, sha256))
    return None if known is None else Fitting(dense, images, sha256, known)


def key_of(dense: ViM, images: FitImages, sha256: str) -> str:
    """Return the name under which the costs of a model on images are kept.

    Args:
        sha256: of the images.
    """
    return cost_file.key(
        model=fingerprint(dense),
        images=sha256,
        kinds={kind: len(samples) for kind, samples in images.sources.items()},
        seed=images.seed,
        probes=0 if images.judges is None else PROBES,
        group=LARGEST_GROUP,
    )


def _computed(dense: ViM, images: FitImages, on_progress: OnProgress | None) -> Effects:
    """Return the effects of all images, the mean of the kinds."""
    costs, probes, done = [], list[Tensor](), 0
    meter = Meter(on_progress, "fit", images.n)
    for samples in images.sources.values():
        total, n = torch.zeros(()), 0
        for portion in _effects_of(dense, samples, images.seed):
            if not portion.isfinite().all():
                raise StmError(
                    f"the model's gradients on {samples.name} are not finite, expected numbers",
                    "run it in float32 (--dtype float32), or choose another schedule: --method staged",
                )
            total, n = total + portion.square().sum(0), n + len(portion)
            if images.judges is not None and sum(map(len, probes)) < PROBES:
                probes.append(portion.float())
            done += len(portion)
            meter.finished(done)
        costs.append(total / max(n, 1))
    if len(costs) > 1:
        costs = [cost / _level(cost, dense.config.model.cls) for cost in costs]
    cost = torch.stack(costs).mean(0)
    return Effects(cost, torch.cat(probes)[:PROBES] if probes else cost.new_zeros(0, *cost.shape).float())


def _effects_of(dense: ViM, samples: SampleSet, seed: int) -> Iterator[Tensor]:
    """Yield the effects (b, depth - 1, L, n) of a set, one probe per image."""
    g = torch.Generator().manual_seed(seed)
    size = images_at_once(dense.config.model)
    for batch in iterate(samples, dense.config.preprocessing, batch_size=size):
        # drawn for broken images too, so that no other image's probe depends on them
        places = sorted([*batch.indices, *batch.errors])
        probes = torch.randn(len(places), *probe_shape(dense.config), generator=g)
        if batch.indices:
            yield from effects(dense, batch.images, probes[[places.index(index) for index in batch.indices]])


def _level(cost: Tensor, cls: Fixed) -> float:
    """Return the summed cost of the pairs before the first half of the blocks, by which kinds of pictures compare."""
    blocks = max((cost.shape[0] + 1) // 2 - 1, 1)  # a model of two or three blocks has none before its half but one
    pairs = cost[:blocks, :-1, 2].clone()  # (blocks, L - 1)
    for c in fixed(cls):
        pairs[:, max(c - 1, 0) : c + 1] = 0  # those of the class token
    return float(pairs.sum()) or 1.0
