"""`stm eval`: a model on a sample set."""

import copy
import dataclasses
import os
import shlex
from pathlib import Path

from stm.artifact import folder as artifact
from stm.assets import EMBEDDED_MODEL
from stm.config import in_pixels
from stm.data.open import open_chosen
from stm.distributed import ALONE, World
from stm.errors import UsageError
from stm.hub.card import warned
from stm.loading import open_classifier, open_model, ready
from stm.measure.environment import environment_of
from stm.measure.evaluate import assess
from stm.measure.judge import features_report
from stm.measure.records import check_path
from stm.model.positions import INTERPOLATED
from stm.model.vim import ViM
from stm.model_names import model_of
from stm.options import EvalOptions, ModelOptions, command
from stm.progress import OnProgress
from stm.reports import EvalReport


def evaluate(
    model: str | None = None,
    source: ModelOptions = ModelOptions(),
    images: EvalOptions = EvalOptions(),
    *,
    records: str | Path | None = None,
    world: World = ALONE,
    on_progress: OnProgress | None = None,
) -> EvalReport:
    """Run `stm eval`: measure a model. A compressed model is measured beside the dense model, whose weights it holds.

    A dense model at another image size than its weights' own is measured beside itself at that size, which needs no
    labels. If a dtype is given, the dense model keeps the dtype of the file: what the dtype costs is then part of the
    drop.

    Args:
        model, source: a MODEL, and how to open it; see `stm.load`. None: see `find_default`.
        images: the sample set.
        records: a CSV file with one line per image. A run that was stopped continues from it.
        world: the processes that share the images and return the same report; the first one holds the records.

    Raises:
        StmError: what reading and measuring raise.
    """
    named = find_default() if model is None else model
    if records is not None and world.first:  # only the first process has the file
        check_path(records)
    # `own` keeps the dtype of the file, because the dense reference must. A cast changes a model in place, so the model
    # that is measured in another dtype is a copy.
    own = open_model(named, dataclasses.replace(source, dtype=None), on_progress)
    if not own.config.num_classes:
        return _of_backbone(named, own, source, images, records, world, on_progress)
    vim = own if source.dtype is None else ready(copy.deepcopy(own), own.cls_token.device, source.dtype)
    # A dense model in the dtype of its file would be compared with itself.
    dense = own.with_plan(None) if own.plan is not None or own.config.dtype != vim.config.dtype else None
    notes = tuple[str, ...]()
    if dense is None and source.image_size is not None and INTERPOLATED in own.config.extra:
        at_own = open_classifier(named, dataclasses.replace(source, dtype=None, image_size=None), on_progress)
        if at_own.config.model != own.config.model:
            dense = at_own
            here, there = (in_pixels(each.config.model.image_size) for each in (own, at_own))
            notes = (
                f"the table of positions is interpolated to {here} pixels; the dense model beside it is the same model"
                f" at its own {there} pixels",
            )
    samples = open_chosen(
        images,
        vim.config,
        need_labels=dense is None,  # beside another model, agreement and KL need none
        token=source.token,
        world=world,
        on_progress=on_progress,
    )
    figures = assess(
        vim,
        samples,
        images,
        reference=dense,
        records=records,
        world=world,
        on_progress=on_progress,
    )
    # What a dtype costs is no fault of the recipe: another budget would not mend it.
    config = own.config if own.config.dtype == vim.config.dtype else dataclasses.replace(own.config, recipe=None)
    return EvalReport(
        command="eval",
        model=named,
        environment=environment_of(vim, world),
        notes=notes,
        **figures.reported,
        **warned(figures, config),
    )


def _of_backbone(
    named: str,
    own: ViM,
    source: ModelOptions,
    images: EvalOptions,
    records: str | Path | None,
    world: World,
    on_progress: OnProgress | None,
) -> EvalReport:
    """Measure how far merging moves a backbone's features, which needs no labels."""
    if own.plan is None:
        raise UsageError(
            f"{named} is a dense backbone: without logits there is nothing to measure but how far merging moves its"
            " features",
            f"compress it first: {shlex.join(['stm', 'compress', named, *source.words()])}",
        )
    if records is not None:
        raise UsageError(f"records has a line per image for logits, and {named} is a backbone", "leave --records out")
    if world.size > 1:
        raise UsageError(f"several processes share images for logits, and {named} is a backbone", "leave torchrun out")
    vim = own if source.dtype is None else ready(copy.deepcopy(own), own.cls_token.device, source.dtype)
    samples = open_chosen(images, vim.config, need_labels=False, token=source.token, on_progress=on_progress)
    return features_report(named, vim, own.with_plan(None), samples, images.draws_by, on_progress=on_progress)


def find_default() -> str:
    """Return the MODEL to evaluate if none is named.

    It is the current folder, else the only folder directly below that holds a model, else the embedded model.

    Raises:
        UsageError: several folders below the current one hold a model.
    """
    if artifact.is_model("."):
        return "."
    below = sorted(
        entry.name
        for entry in os.scandir(".")
        # Hidden folders are skipped: our own temporary folders are hidden, and may hold half a model.
        if entry.is_dir() and not entry.name.startswith(".") and artifact.is_model(entry.path)
    )
    if len(below) > 1:  # any choice would be a guess, and a wrong one looks like a result
        raise UsageError(
            f"no model was named, and {len(below)} folders here hold one: {', '.join(below)}",
            command("eval", model_of(below[0]), {}),
        )
    return model_of(below[0]) if below else EMBEDDED_MODEL
