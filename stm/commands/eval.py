"""`stm eval`: a model on a sample set."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

from stm.commands.open_model import From, find_default, open_model
from stm.data.open import open_samples
from stm.distributed import ALONE, World
from stm.loading import ready
from stm.measure.environment import environment_of
from stm.measure.evaluate import assess
from stm.measure.records import check_path
from stm.progress import OnProgress
from stm.reports import (
    EvalReport,
)


def evaluate(
    model: str | None = None,
    *,
    data: str | Path | None = None,
    records: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    workers: int | None = None,
    world: World = ALONE,
    on_progress: OnProgress | None = None,
    **source: Any,
) -> EvalReport:
    """`stm eval`: a model on a sample set; a compressed one beside the dense one, whose weights it holds.

    Where a dtype is given, the dense one beside it has the file's own: what the dtype costs is part of the drop.

    Args:
        model: a MODEL as `stm.commands.open_model.open_model` takes it; None: see
            `stm.commands.open_model.find_default`.
        world: the processes that share the images and return the same report; the first one has the records' file.
        source: how to read it, the fields of `stm.commands.open_model.From`.
    """
    named = find_default() if model is None else model
    if records is not None and world.first:
        check_path(records)
    options = From(**source)
    own = open_model(named, dataclasses.replace(options, dtype=None), on_progress)
    vim = own if options.dtype is None else ready(copy.deepcopy(own), own.cls_token.device, options.dtype)
    samples = open_samples(
        data, config=vim.config, limit=limit, seed=seed, token=options.token, world=world, on_progress=on_progress
    )
    dense = own.with_plan(None) if own.plan is not None or own.config.dtype != vim.config.dtype else None
    figures = assess(
        vim,
        samples,
        reference=dense,
        limit=limit,
        batch_size=batch_size,
        seed=seed,
        records=records,
        workers=workers,
        world=world,
        on_progress=on_progress,
    )
    return EvalReport(command="eval", model=named, environment=environment_of(vim, world), **vars(figures))
