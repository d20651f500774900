"""`stm compress`: read a dense model, merge its tokens by a fixed schedule, compare the two, and write a folder."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import torch

from stm.artifact import folder as artifact
from stm.bake import CALIBRATION_IMAGES, CalibrationImages, bake, bake_again
from stm.bench.bench import served_speed
from stm.commands import beside
from stm.commands.fit_set import check_different, check_fit_on, fit_notes, fit_set
from stm.commands.outcome import Outcome, reported
from stm.commands.recipe import as_recorded, check_made, check_source, default_name, read_recipe, recorded
from stm.commands.recipe_file import Choice, Merges, decided, is_recipe_file, read, under
from stm.commands.recipe_file import check as check_recipe
from stm.commands.recipe_file import write as write_recipe
from stm.commands.rounding import check_rounding, held, in_floats, rounded
from stm.config import INT8, Config
from stm.data.open import open_chosen, open_samples
from stm.data.sets import SampleSet, iterate
from stm.errors import DataError, UsageError
from stm.evaluations import OfSet
from stm.fitting import Fitting, budget_of
from stm.fitting import fit as fitted
from stm.goals import Goal
from stm.hub import push as hub_push
from stm.hub.push import PushOptions
from stm.loading import open_model
from stm.measure.evaluate import assess
from stm.measure.judge import feature_change
from stm.model.vim import ViM
from stm.model_names import name_of
from stm.options import EvalOptions, FitOptions, MergeOptions, ModelOptions, SetOptions
from stm.progress import OnProgress
from stm.reports import CompressReport, Gate
from stm.saving import save
from stm.units import percent
from stm.verdicts import milder, warning


class _Wish(NamedTuple):
    """What was asked for, after a recipe has had its say.

    Args:
        goal: the outcome that decides how much is merged, if no budget does.
        recorded: what the recipe's folder says; None without one.
        merges: what the fit of a recipe's file decided; None without one.
        compare: whether to compare with the dense model.
    """

    source: ModelOptions
    merge: MergeOptions
    fit: FitOptions
    goal: Goal
    images: EvalOptions
    recorded: Config | None
    merges: Merges | None
    compare: bool

    @property
    def fits(self) -> bool:
        """Whether a schedule is fitted: a recipe may hold the merges themselves."""
        return self.recorded is None and self.merges is None and self.merge.order == "fitted"

    def remembered(self, choice: Choice, made: Config) -> Choice:
        """Return the recipe of a model that was made: what was chosen, and what a fit decided."""
        merges = decided(made, outcome=self.goal.given or (self.merges is not None and self.merges.saving is not None))
        if self.recorded is None:
            return dataclasses.replace(choice, merges=merges)
        whole = dataclasses.replace(choice, source=self.source, merge=self.merge, images=self.images)
        return dataclasses.replace(whole, merges=merges, no_eval=not self.compare)

    @property
    def splits(self) -> bool:
        """Whether a part of the images to measure on is for the fit: the user's own, or those of a promise."""
        own = self.images.data is not None or self.goal.max_drop is not None
        return self.fits and own and self.fit.fit_on is None


def compress(
    model: str,
    source: ModelOptions = ModelOptions(),
    merge: MergeOptions = MergeOptions(),
    images: EvalOptions = EvalOptions(),
    fit: FitOptions = FitOptions(),
    *,
    recipe: str | Path | None = None,
    save_recipe: str | Path | None = None,
    calibration: str | Path | None = None,
    max_drop: float | None = None,
    max_kl: float | None = None,
    speedup: float | None = None,
    timed: int | None = None,
    eval: bool = True,
    out: str | Path | None = None,
    force: bool = False,
    dry_run: bool = False,
    push: PushOptions | None = None,
    on_progress: OnProgress | None = None,
) -> CompressReport:
    """Run `stm compress`. Everything that can be checked is checked before a model is read.

    Args:
        model, source: a MODEL, and how to open it; see `stm.load`.
        merge: what to merge, and how.
        images: the sample set of the comparison. With a recipe, its limit and seed are the recipe's unless given.
        fit: the images that a fitted schedule comes from. They are left out of the comparison.
        recipe: a file (`stm.commands.recipe_file`), whose keys are options beside which those given here count; or a
            folder, here or on the Hub, whose recipe is run again; `merge` must then be empty.
        save_recipe: a file to write the recipe of this run to, if the model is written.
        calibration: a folder of images that static hsp weights are averaged over, `CALIBRATION_IMAGES` of them.
        max_drop: the most top-1 that may be lost, as a fraction. If more is, nothing is written and the gate is not
            passed. Without a budget, a fitted schedule saves as much as this allows.
        max_kl: the most that int8 may change the compressed model's outputs: KL(float32 || int8), in nats.
        speedup: instead of a budget, how many times as fast as the dense model a fitted schedule makes it here.
        timed: images per forward that is timed; None: 1, or what a recipe says.
        eval: whether to compare with the dense model.
        out: the folder; named after model, method and budget by default.
        force: replace a folder of ours.
        dry_run: check everything, but write nothing and compare nothing.
        push: where the folder is pushed to. Who is logged in is asked before anything is done.

    Raises:
        UsageError: options that exclude each other, a budget out of reach, or an output that cannot be written.
        StmError: what reading, measuring or writing raises; nothing is left behind.
    """
    told = tuple[str, ...]()
    choice = Choice(
        source=source,
        merge=merge,
        fit=fit,
        images=images,
        calibration=calibration,
        max_drop=max_drop,
        max_kl=max_kl,
        speedup=speedup,
        served_batch=timed,
        no_eval=not eval,
    )
    of_file = recipe is not None and is_recipe_file(recipe)
    if recipe is not None and of_file:
        choice, told = under(read(recipe), choice, recipe)
        source, fit, images, calibration = choice.source, choice.fit, choice.images, choice.calibration
        max_drop, max_kl = choice.max_drop, choice.max_kl
    wish = _recalled(choice, None if of_file else recipe)
    goal = wish.goal
    check_rounding(wish.source, max_kl, compare=wish.compare)
    _check_images(wish, calibration)
    if save_recipe is not None:
        check_recipe(Path(save_recipe), force=force)
    output = Path(out) if out is not None else Path(default_name(name_of(model), wish.merge))
    artifact.check_output(output, force=force)
    beside.check(output, choice.export, force=force)
    if push is not None:
        hub_push.check(dataclasses.replace(push, dry_run=dry_run))

    measured, how = wish.images.shared(fit.fit_on, calibration)
    dense = open_model(model, in_floats(wish.source), on_progress)
    beside.check_dtype(dense.config.dtype, choice.export)
    if wish.merges is not None:
        wish.merges.schedule(dense.config, str(recipe))  # refused before images are read
        told += wish.merges.notes(dense.config, str(recipe))
    if wish.recorded is not None:
        check_source(dense.config, wish.recorded, model, recipe)
        if dense.config.label_names is None:  # a set or a file named the classes then, which need not be given again
            dense.config = dataclasses.replace(dense.config, label_names=wish.recorded.label_names)
    backbone = not dense.config.num_classes
    if backbone and any(bound is not None for bound in (max_drop, max_kl, speedup)):
        dense.config.check_head()
    if wish.fits and not goal.given:
        budget_of(dense.config.model, wish.merge)  # an impossible one is refused before images are read, and the fit
    samples = given = _samples(wish, measured, dense.config, max_drop, on_progress) if wish.compare else None
    if given is not None and (names := given.sorted_names or given.own_names):
        # From now on the model names its classes, and so does its folder.
        dense.config = dataclasses.replace(dense.config, label_names=names)
    averaged, notes = None, tuple[str, ...]()
    if calibration is not None:
        averaged, notes = _calibration(calibration, dense.config, wish, how, on_progress)
    fitting = None
    if wish.fits:
        fit_images, samples = fit_set(
            fit,
            dense.config,
            samples,
            split=wish.splits,
            labels=goal.max_drop is not None,
            limit=images.limit,
            seed=wish.images.draws_by,
            how=how,
            token=source.token,
            on_progress=on_progress,
        )
        fitting = fitted(dense, fit_images, keep=not fit.no_cache, on_progress=on_progress)
    exact = small = _made(dense, wish, fitting, averaged, on_progress)
    if wish.source.dtype == INT8:
        small = rounded(exact)
    if wish.recorded is not None:
        check_made(small.config, wish.recorded, recipe)

    outcome = Outcome()
    if samples is not None and not dry_run and backbone:
        outcome = _changed(dense, small, samples, wish, on_progress)
        moved = f"the features of the patches differ from the dense model's by {percent(outcome.moved or 0, 1)}"
        notes += (f"{moved} (root mean square) on {len(samples)} images of {samples.name}",)
    elif samples is not None and not dry_run:
        outcome = _compared(dense, small, samples, wish, max_drop, on_progress)
        if small is not exact:
            outcome = outcome._replace(kl_gate=held(small, exact, samples, wish.images, max_kl, on_progress))
    # A speed that was asked for is measured even if nothing is compared. Nobody will serve what is not written.
    timed_too = (samples is not None or goal.speedup is not None) and small.plan is not None and not backbone
    if timed_too and outcome.accepted and not dry_run:
        served = served_speed(dense, small, batch_size=goal.batch_size, on_progress=on_progress)
        outcome = outcome._replace(served=served)
    pushed, exports = None, list[str]()
    if outcome.accepted and not dry_run:
        speed = None if outcome.figures is None else outcome.figures.images_per_second
        small.config = save(small, output, force=force, images_per_second=speed, served=outcome.served)
        pushed = None if push is None else hub_push.push(output, small.config, push, on_progress)
        if save_recipe is not None:
            write_recipe(Path(save_recipe), wish.remembered(choice, small.config), force=force)
        exports = beside.write(output, choice.export, force=force, on_progress=on_progress)
    if fitting is not None and small.plan is not None:
        checked = wish.compare and not dry_run and not backbone
        notes += fit_notes(fitting, small, given if wish.splits else None, checked=checked, on_progress=on_progress)
    report = reported(small, model, output, dry_run, outcome, wish.recorded)
    notes = told + report.notes + notes
    return dataclasses.replace(
        report, notes=notes, push=pushed, exports=tuple(exports), **_warned(small, model, wish, outcome)
    )


def _warned(small: ViM, model: str, wish: _Wish, outcome: Outcome) -> dict[str, Any]:
    """Return the warning of a loss beyond chance, and the command that loses less, with the names that were given."""
    text = None if outcome.figures is None else warning(outcome.figures, small.config.recipe)
    if text is None:
        return {}
    merge = milder(small.config.recipe, small.schedule.saving(small.config.model.depth))
    groups = () if merge is None else (wish.source, merge, wish.fit, wish.images)
    words = [word for group in groups for word in group.words()]
    return {"warnings": (text,), "milder": shlex.join(["stm", "compress", model, *words]) if words else None}


def _goal(choice: Choice, recipe: str | Path | None) -> Goal:
    """Return the outcome that stands for a budget, if there is one: the gate of a budget is no goal.

    Args:
        recipe: a folder.
    """
    merge, max_drop, speedup = choice.merge, choice.max_drop, choice.speedup
    timed = 1 if choice.served_batch is None else choice.served_batch
    if choice.merges is not None:  # the outcome was met when they were fitted
        return Goal(batch_size=timed)
    budget = recipe is not None or any(value is not None for value in (merge.rate, merge.saving, merge.stages))
    if speedup is not None and recipe is not None:
        raise UsageError("speedup was given beside a recipe, which already says what to merge", "give one of the two")
    if speedup is not None:
        merge.check_fitted("speedup")
    drop = None if budget or speedup is not None or merge.order != "fitted" else max_drop
    goal = Goal(max_drop=drop, speedup=speedup, batch_size=timed)
    goal.check(merge)
    return goal


def _made(
    dense: ViM,
    wish: _Wish,
    fitting: Fitting | None,
    averaged: CalibrationImages | None,
    on_progress: OnProgress | None,
) -> ViM:
    """Return the compressed model: by the recipe's own merges, or by what was asked for."""
    if wish.recorded is not None and wish.merge.order == "fitted":
        return bake_again(dense, wish.recorded, calibration=averaged, on_progress=on_progress)
    merge = wish.merge if fitting is None else wish.goal.met(fitting, wish.merge, wish.images, on_progress)
    small = bake(
        dense,
        merge,
        fitting=fitting,
        chosen_before=None if wish.merges is None else wish.merges.chosen(dense.config, merge),
        calibration=averaged,
        seed=wish.images.draws_by,
        on_progress=on_progress,
    )
    return wish.goal.recorded(small)


def _recalled(choice: Choice, recipe: str | Path | None) -> _Wish:
    """Return what was asked for, completed by a recipe's folder if there is one."""
    source, merge, fit, images = choice.source, choice.merge, choice.fit, choice.images
    goal, eval, config = _goal(choice, recipe), not choice.no_eval, None
    measure = any(value is not None for value in (choice.max_drop, images.data, images.limit))
    if choice.merges is not None and choice.merges.saving is not None:
        merge = dataclasses.replace(merge, saving=choice.merges.saving)
    if recipe is not None:
        merge.refuse(" beside a recipe, which already says it", "give one of the two")
        config = read_recipe(recipe, source)
        merge, source = recorded(config, recipe), as_recorded(source, config, recipe)
        eval = eval and (bool(config.measured) or measure)
        if images.seed is None and config.recipe is not None:
            images = dataclasses.replace(images, seed=config.recipe.seed)
        if images.limit is None and config.measured:  # the same images, for the same config.json
            images = dataclasses.replace(images, limit=config.measured[0].n + config.measured[0].failed)
    if not eval and measure:
        raise UsageError(
            "data, limit and max drop belong to the comparison with the dense model, which is switched off"
        )
    wish = _Wish(source, merge, fit, goal, images, config, choice.merges, eval)
    for name in fit.images_given:
        if config is not None:
            raise UsageError(f"{name} was given beside a recipe, whose folder holds the merges", "leave it out")
        merge.check_fitted(name)
    return wish


def _check_images(wish: _Wish, calibration: str | Path | None) -> None:
    check_different(wish.images.data, calibration, "calibrate")
    check_fit_on(wish.images.data, wish.fit)


def _samples(
    wish: _Wish, images: EvalOptions, config: Config, max_drop: float | None, on_progress: OnProgress | None
) -> SampleSet:
    if wish.splits:  # the limit is for the images that are left to measure on
        images = dataclasses.replace(images, limit=None)
    # A recipe's fit is over: what it used is left out, as it was then.
    of = wish.recorded or (config if wish.merges is None else wish.merges.recorded(config))
    samples = open_chosen(images, of, need_labels=False, token=wish.source.token, on_progress=on_progress)
    if max_drop is not None and not samples.labelled:
        raise UsageError(
            f"max drop needs labels, and {samples.name} has none",
            "give labelled images: --data DIR, or leave --max-drop out",
        )
    return samples


def _calibration(
    data: str | Path, config: Config, wish: _Wish, how: SetOptions, on_progress: OnProgress | None
) -> tuple[CalibrationImages, tuple[str, ...]]:
    """Return the images of a set, labelled or not, that weights are averaged over, and notes about the set."""
    samples = open_samples(
        data,
        config=config,
        limit=CALIBRATION_IMAGES,
        seed=wish.images.draws_by,
        need_labels=False,
        how=how,
        token=wish.source.token,
        on_progress=on_progress,
    )
    batches = list(iterate(samples, config.preprocessing, batch_size=CALIBRATION_IMAGES))
    if errors := [error for batch in batches for error in batch.errors.values()]:
        raise DataError(f"{errors[0]}: calibration takes no broken image", "remove it, or choose another folder")
    notes = tuple(f"calibration: {note}" for note in OfSet(**samples.of_set).skipped_notes)
    return CalibrationImages.of(torch.cat([batch.images for batch in batches]), samples.name), notes


def _changed(dense: ViM, small: ViM, samples: SampleSet, wish: _Wish, on_progress: OnProgress | None) -> Outcome:
    """Compare the features of two backbones, and write the figure into the small one's config."""
    measured = feature_change(dense, small, samples, wish.images.draws_by, on_progress)
    small.config = dataclasses.replace(small.config, measured=(measured,))
    return Outcome(moved=measured.feature_change)


def _compared(
    dense: ViM,
    small: ViM,
    samples: SampleSet,
    wish: _Wish,
    max_drop: float | None,
    on_progress: OnProgress | None,
) -> Outcome:
    """Compare the two models, write the figures into the small one's config, and hold them to the gate."""
    figures = assess(small, samples, wish.images, reference=dense, on_progress=on_progress)
    small.config = dataclasses.replace(small.config, measured=(figures.recorded(),))
    gate = None
    if max_drop is not None and figures.drop is not None:
        gate = Gate(max_drop=max_drop, drop=figures.drop, passed=figures.drop <= max_drop)
    return Outcome(figures, gate=gate)
