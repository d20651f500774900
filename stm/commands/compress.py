"""`stm compress`: read a dense model, merge its tokens by a fixed schedule, compare the two, and write a folder."""

import dataclasses
import os
import shlex
from pathlib import Path
from typing import Any

import torch

from stm.artifact import folder as artifact
from stm.bake import CALIBRATION_IMAGES, CalibrationImages, bake
from stm.bench import bench as benching
from stm.commands.open_model import model_of, name_of, open_model, read_recipe
from stm.commands.recipe import Wish, as_recorded, check_made, check_source, default_name, split
from stm.config import Config, Protection, Recipe
from stm.config_file import to_json
from stm.data.open import open_samples
from stm.data.sets import iterate
from stm.errors import DataError, UsageError
from stm.hub import push as hub_push
from stm.hub.push import To
from stm.measure import flops
from stm.measure.environment import environment_of
from stm.measure.evaluate import assess
from stm.merging.bnnm import plan_schedule
from stm.model.vim import ViM
from stm.progress import OnProgress
from stm.reports import Assessment, CompressReport, Gate, OfSet, ServedSpeed
from stm.saving import save


def compress(
    model: str,
    *,
    recipe: str | Path | None = None,
    calibration: str | Path | None = None,
    data: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    seed: int | None = None,
    workers: int | None = None,
    max_drop: float | None = None,
    eval: bool = True,
    out: str | Path | None = None,
    force: bool = False,
    dry_run: bool = False,
    push_to: str | None = None,
    on_progress: OnProgress | None = None,
    **options: Any,
) -> CompressReport:
    """`stm compress`: read a dense model, bake a schedule into it, compare the two, and write a folder.

    Args:
        model: a MODEL as `stm.commands.open_model.open_model` takes it.
        recipe: a folder, here or on the Hub, whose recipe is run again, instead of a wish.
        calibration: a folder of images that static hsp weights are averaged over, `CALIBRATION_IMAGES` of them.
        data, limit, batch_size, workers: the sample set; see `stm.evaluate`. None: what is embedded, and all of it, or
            as many images as the recipe's folder was measured on.
        seed: chooses images; 0, or the recipe's.
        max_drop: the most top-1 that may be lost, as a fraction; if more is, nothing is written and the gate has not
            passed.
        eval: whether to compare with the dense model.
        out: the folder; named after model, method and budget by default.
        force: replace a folder of ours.
        dry_run: check everything, but write nothing and compare nothing.
        push_to: a Hub repository that the folder is pushed to; who is logged in is asked before anything is done.
        options: the fields of `Wish` and of `stm.commands.open_model.From`.

    Raises:
        UsageError: options that exclude each other or cannot be had, or an output that cannot be written.
        StmError: what reading, measuring or writing raises; nothing is left behind.
    """
    (source, wish), again = split(options), None
    to_measure = data is not None or limit is not None or max_drop is not None
    if recipe is not None:
        if wish != Wish():
            given = next(f.name for f in dataclasses.fields(Wish) if getattr(wish, f.name) != f.default)
            raise UsageError(f"{given} was given beside a recipe, which already says it", "give one of the two")
        again = read_recipe(recipe, source)
        wish, source = Wish.recorded(again, Path(recipe)), as_recorded(source, again, recipe)
        eval = eval and (bool(again.measured) or to_measure)
    if not eval and to_measure:
        raise UsageError(
            "data, limit and max drop belong to the comparison with the dense model, which is switched off"
        )
    if calibration is not None and data is not None and os.path.realpath(calibration) == os.path.realpath(data):
        raise UsageError(
            f"{data} cannot both calibrate and measure: the accuracy would be of images that the weights were tuned on"
        )
    output = Path(out) if out is not None else Path(default_name(name_of(model), wish))
    artifact.check_output(output, force=force)
    to = None if push_to is None else To(repo=push_to, token=source.token)
    if to is not None:
        hub_push.check(to)

    dense = open_model(model, source, on_progress)
    seed = seed if seed is not None else again.recipe.seed if again is not None and again.recipe is not None else 0
    if limit is None and again is not None and again.measured:
        limit = again.measured[0].n + again.measured[0].failed  # the same images, for the same config.json
    if again is not None:
        check_source(dense.config, again, model, recipe)
    samples = None
    if eval:
        samples = open_samples(
            data, config=dense.config, limit=limit, seed=seed, token=source.token, on_progress=on_progress
        )
    if max_drop is not None and samples is not None and not samples.labelled:
        raise UsageError(
            f"max drop needs labels, and {samples.name} has none",
            "give labelled images: --data DIR, or leave --max-drop out",
        )
    images, skipped = None, tuple[str, ...]()
    if calibration is not None:
        images, skipped = _calibration_images(calibration, dense.config, seed, source.token, on_progress)
    small = bake(dense, **wish.options(), calibration=images, seed=seed, on_progress=on_progress)
    if again is not None:
        check_made(small.config, again, recipe)
    figures = served = None
    if samples is not None and not dry_run:
        figures = assess(
            small,
            samples,
            reference=dense,
            limit=limit,
            batch_size=batch_size,
            seed=seed,
            workers=workers,
            on_progress=on_progress,
        )
        small.config = dataclasses.replace(small.config, measured=(figures.recorded(),))
    gate = None
    if max_drop is not None and figures is not None and figures.drop is not None:
        gate = Gate(max_drop=max_drop, drop=figures.drop, passed=figures.drop <= max_drop)
    accepted = not dry_run and (gate is None or gate.passed)
    if accepted and figures is not None and small.plan is not None:
        served = benching.served(dense, small, on_progress=on_progress)
    if accepted:
        speed = None if figures is None else figures.images_per_second
        small.config = save(small, output, force=force, images_per_second=speed, served=served)
    pushed = None
    if to is not None and accepted:
        pushed = hub_push.push(output, small.config, to, on_progress)
    report = _compress_report(small, model, output, dry_run, figures, served, gate, again)
    return dataclasses.replace(report, notes=report.notes + skipped, push=pushed)


def _calibration_images(
    data: str | Path, config: Config, seed: int, token: str | None, on_progress: OnProgress | None
) -> tuple[CalibrationImages, tuple[str, ...]]:
    """The images of a set, labelled or not, that weights are averaged over, and what there is to say of the set."""
    samples = open_samples(
        data,
        config=config,
        limit=CALIBRATION_IMAGES,
        seed=seed,
        need_labels=False,
        token=token,
        on_progress=on_progress,
    )
    batches = list(iterate(samples, config.preprocessing, batch_size=CALIBRATION_IMAGES))
    if errors := [error for batch in batches for error in batch.errors.values()]:
        raise DataError(f"{errors[0]}: calibration takes no broken image", "remove it, or choose another folder")
    notes = tuple(f"calibration: {note}" for note in OfSet(**samples.of_set).skipped_notes)
    return CalibrationImages.of(torch.cat([batch.images for batch in batches]), samples.name), notes


def _compress_report(
    small: ViM,
    model: str,
    output: Path,
    dry_run: bool,
    figures: Assessment | None,
    served: ServedSpeed | None,
    gate: Gate | None,
    again: Config | None,
) -> CompressReport:
    config = small.config
    assert config.recipe is not None and config.protection is not None
    notes, reasons = config.extra_texts("notes"), {}
    if figures is None:
        why = "a dry run compares nothing" if dry_run else "the comparison was switched off"
        reasons = dict.fromkeys(("eval", "served", "gate"), why)
    elif gate is None:
        reasons = {"gate": "no max drop was given"}
    if served is None and figures is not None:
        reasons["served"] = "nothing is merged" if small.plan is None else "the gate was not passed"
    if served is not None and served.gain_quartiles[0] <= 1:
        notes += (_no_gain(served, config.protection),)
    if figures is not None and figures.top1 is None:
        where = shlex.quote(model_of(str(output)))
        notes += (
            f"accuracy was not measured, as {figures.data} has no labels; measure it: stm eval {where} --data DIR",
        )
    if again is not None and figures is not None and again.measured and figures.data != again.measured[0].data:
        notes += (
            (
                f"the recipe's folder was measured on {again.measured[0].data}, this one on {figures.data}: --data DIR"
                " chooses"
            ),
        )
    return CompressReport(
        command="compress",
        model=model,
        environment=environment_of(small),
        output=model_of(str(output)),
        dry_run=dry_run,
        source=config.source,
        recipe=config.recipe,
        protection=config.protection,
        schedule=to_json(config)["schedule"],
        asked_saving=_asked_saving(config.recipe, config),
        saving=config.schedule.saving(config.model.depth),
        flops=flops.count(config),
        parameters=flops.parameters(config.model, config.num_classes),
        bytes=artifact.weights_size(small.state_dict()),
        eval=figures,
        served=served,
        gate=gate,
        notes=notes,
        reasons=reasons,
    )


def _no_gain(served: ServedSpeed, protection: Protection) -> str:
    """Say that a served model gains nothing on this machine, and what to try."""
    text = f"after optimize() it runs at {served.gain:.2f}x the dense model's speed here: "
    if protection.mode == "dynamic":
        return text + "its hsp weights are computed from every image; --hsp static bakes them"
    return text + "a larger --rate or --saving gains more"


def _asked_saving(recipe: Recipe, config: Config) -> float | None:
    """The saving that a wish asks for, where it is one: under `staged` a rate stands for the paper's saving at that
    rate."""
    if recipe.schedule != "staged" or recipe.rate is None:
        return recipe.saving
    return plan_schedule(config.model, order="staged", rate=recipe.rate, sides=recipe.sides).saving
