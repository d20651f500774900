"""What each saving would cost and keep: `stm plan`. Measured on this machine, on as many images as a given time
allows."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stm.bake import bake
from stm.bench.timing import interleave, ratio, ratios, spread, waiting
from stm.data.sets import SampleSet, iterate
from stm.errors import UsageError
from stm.findings import PlanRow
from stm.fitting import Fitting
from stm.measure import flops
from stm.measure.evaluate import evaluating, logits_of, recorded
from stm.measure.records import Record
from stm.measure.stats import mean_interval, median_interval, summarize, wilson
from stm.model.vim import ViM
from stm.options import MergeOptions
from stm.progress import Meter, OnProgress, Progress
from stm.recipe import Fit

SAVINGS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45)
SECONDS = 4.0  # for the rounds of timing
IMAGE_SECONDS = 30.0  # for the images: of vim-digits, most of its 599 on two threads
_PORTION = 16  # images between two looks at the clock


class Table(NamedTuple):
    """The rows, the number of images that were scored, and what decided the schedules if they are fitted."""

    rows: tuple[PlanRow, ...]
    n: int
    fit: Fit | None


def table(
    dense: ViM,
    merge: MergeOptions,
    samples: SampleSet | None,
    *,
    fitting: Fitting | None = None,
    seconds: float | None = None,
    batch_size: int = 1,
    rounds: int | None = None,
    command: Callable[[float], str],
    clock: Callable[[], float] = perf_counter,
    on_progress: OnProgress | None = None,
) -> Table:
    """Measure the dense model and, for each of `SAVINGS`, the model that is made of it.

    All models share the dense one's weights. What is timed is the model as it was loaded, without `optimize`: the
    kept buffers of so many models would fill the memory. All of them take turns.

    Args:
        merge: what to merge, and how; without a budget.
        samples: for what the models keep, in random order, so that however many there is time for are a fair draw;
            None: not measured.
        fitting: the model's, for a fitted schedule. Its judges are not asked. They would cost eight forwards per image
            and saving, more than the whole table, and the command of a row asks them when the model is made.
        seconds: the time for the images; None: all of them, however long it takes.
        batch_size: of the forwards that are timed.
        command: what makes the model of a saving, for a command line.
        clock: of the images, in seconds.

    Raises:
        UsageError: no saving can be reached.
        StmError: a logit is not finite.
    """
    flat = None if fitting is None else fitting.without_judges()
    models: dict[float, ViM] = {0.0: dense}
    refused: dict[float, str] = {}
    for saving in SAVINGS:
        try:
            models[saving] = bake(dense, dataclasses.replace(merge, saving=saving), fitting=flat)
        except UsageError as error:
            refused[saving] = error.message
    if len(models) == 1:
        raise UsageError(f"no saving can be planned; {SAVINGS[0]:g}: {refused[SAVINGS[0]]}")
    shape, device = dense.config.model, dense.cls_token.device
    images = torch.randn(batch_size, *shape.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), evaluating(*models.values()):
        kept, n = _kept(list(models.values()), samples, seconds, clock, on_progress)
        calls = {str(saving): waiting(partial(model, images.to(device)), device) for saving, model in models.items()}
        timed = interleave(calls, rounds, seconds=SECONDS, on_round=partial(_tell, on_progress))
    rows = []
    for saving, model, figures in zip(models, models.values(), kept, strict=True):
        an_image = [1000 * value / batch_size for value in timed[str(saving)]]
        rows.append(
            PlanRow(
                asked_saving=saving,
                saving=model.schedule.saving(shape.depth),
                tokens_per_block=model.schedule.tokens_per_block(shape.depth),
                flops=flops.count(model.config),
                ms_per_image=statistics.median(an_image),
                ms_iqr=spread(an_image),
                gain=ratio(timed["0.0"], timed[str(saving)]),
                gain_ci=median_interval(ratios(timed["0.0"], timed[str(saving)])),
                rounds=len(an_image),
                compress=command(saving) if saving else None,
                **figures,
            )
        )
    rows += [PlanRow(asked_saving=saving, reason=reason) for saving, reason in refused.items()]
    recipe = next(model.config.recipe for saving, model in models.items() if saving)
    return Table(tuple(sorted(rows, key=lambda row: row.asked_saving)), n, None if recipe is None else recipe.fit)


def _kept(
    models: Sequence[ViM],
    samples: SampleSet | None,
    seconds: float | None,
    clock: Callable[[], float],
    on_progress: OnProgress | None,
) -> tuple[list[dict[str, Any]], int]:
    """Return what each model keeps of the first one, as fields of a row, and the number of images that were scored.

    Every image is decoded once, and all models see the same images.
    """
    if samples is None:
        return [{} for _ in models], 0
    records: list[list[Record]] = [[] for _ in models]
    images, start = 0, clock()
    meter = Meter(on_progress, "images", len(samples), passes=len(models))
    for batch in iterate(samples, models[0].config.preprocessing, batch_size=_PORTION):
        logits: list[Tensor | None] = [None] * len(models)
        files = [samples.samples[index].file for index in batch.indices]
        for number, model in enumerate(models if files else ()):
            who = "a compressed model" if number else "the dense model"
            logits[number] = logits_of(model, batch.images, files, who, lambda n, _: meter.passed(n))[0]
        for scored, values in zip(records, logits, strict=True):
            scored += recorded(samples, batch, values, logits[0])
        images, passed = len(records[0]), clock() - start
        possible = (
            len(samples)
            if seconds is None or passed <= 0
            else min(len(samples), max(images, int(images * seconds / passed)))
        )
        meter.total = possible
        meter.finished(images)
        if seconds is not None and passed >= seconds:
            break
    return [_figures(scored, samples.name) for scored in records], sum(record.error is None for record in records[0])


def _figures(records: Sequence[Record], data: str) -> dict[str, Any]:
    """Return the fields of a row that images fill."""
    figures = summarize(records, data=data)
    agreed = sum(record.error is None and record.pred == record.dense_pred for record in records)
    return {
        "agreement": figures.agreement,
        "agreement_ci": wilson(agreed, figures.n),
        "kl": figures.kl,
        "kl_ci": mean_interval([record.kl for record in records if record.kl is not None]),
        "top1": figures.top1,
        "drop": figures.drop,
        "drop_ci": figures.drop_ci,
    }


def _tell(on_progress: OnProgress | None, done: int, of: int) -> None:
    if on_progress is not None:
        on_progress(Progress("speed", done, of, "rounds"))
