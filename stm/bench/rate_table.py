"""What each rate would cost and keep: `stm plan`. Measured on this machine, on as many images as a given time
allows."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from stm.bake import bake
from stm.bench.timing import interleave, ratio, spread, waiting
from stm.data.sets import SampleSet, iterate
from stm.errors import UsageError
from stm.findings import PlanRow
from stm.measure import flops
from stm.measure.evaluate import forward, recorded
from stm.measure.records import Record
from stm.measure.stats import Interval, mean_interval, summarize, wilson
from stm.model.vim import ViM
from stm.options import MergeOptions
from stm.progress import OnProgress, Progress

RATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
SECONDS = 4.0  # for the rounds of timing
IMAGE_SECONDS = 30.0  # for the images of the agreement: of vim-digits, all of its 599 on two threads
_PORTION = 16  # images between two looks at the clock


def table(
    dense: ViM,
    merge: MergeOptions,
    samples: SampleSet | None,
    *,
    seconds: float | None = None,
    batch_size: int = 1,
    rounds: int | None = None,
    command: Callable[[float], str],
    clock: Callable[[], float] = perf_counter,
    on_progress: OnProgress | None = None,
) -> tuple[tuple[PlanRow, ...], int]:
    """Measure the dense model and, for each of `RATES`, the model that is made of it.

    Args:
        merge: what to merge at each rate, and how; without a budget.
        samples: for the agreement, in random order, so that however many there is time for are a fair draw; None: not
            measured.
        seconds: the time for them; None: all of them, however long it takes.
        batch_size: of the forwards that are timed.
        command: what makes the model of a rate, for a command line.
        clock: of the images, in seconds.

    Returns:
        The rows, and the number of images that were scored.

    Raises:
        UsageError: no rate can be reached.
    """
    models: dict[float, ViM] = {0.0: dense}
    refused: dict[float, str] = {}
    for rate in RATES:
        try:
            models[rate] = bake(dense, dataclasses.replace(merge, rate=rate))
        except UsageError as error:
            refused[rate] = error.message
    if len(models) == 1:
        raise UsageError(f"no rate can be planned; {RATES[0]:g}: {refused[RATES[0]]}")
    shape, device = dense.config.model, dense.cls_token.device
    images = torch.randn(
        batch_size, shape.in_chans, shape.image_size, shape.image_size, generator=torch.Generator().manual_seed(0)
    )
    with torch.inference_mode():
        kept = _kept(list(models.values()), samples, seconds, clock, on_progress)
        calls = {str(rate): waiting(partial(model, images.to(device)), device) for rate, model in models.items()}
        timed = interleave(calls, rounds, seconds=SECONDS, on_round=partial(_tell, on_progress))
    rows = []
    for rate, model, near in zip(models, models.values(), kept, strict=True):
        an_image = [1000 * value / batch_size for value in timed[str(rate)]]
        rows.append(
            PlanRow(
                rate=rate,
                saving=model.schedule.saving(shape.depth),
                tokens_per_block=model.schedule.tokens_per_block(shape.depth),
                flops=flops.count(model.config),
                ms_per_image=statistics.median(an_image),
                ms_iqr=spread(an_image),
                gain=ratio(timed["0.0"], timed[str(rate)]),
                agreement=near.agreement,
                agreement_ci=near.agreement_ci,
                kl=near.kl,
                kl_ci=near.kl_ci,
                rounds=len(an_image),
                compress=command(rate) if rate else None,
            )
        )
    rows += [PlanRow(rate=rate, reason=reason) for rate, reason in refused.items()]
    return tuple(sorted(rows, key=lambda row: row.rate)), kept[0].n


class _Near(NamedTuple):
    """How near a model stays to the dense one on `n` images."""

    n: int = 0
    agreement: float | None = None
    agreement_ci: Interval | None = None
    kl: float | None = None
    kl_ci: Interval | None = None

    @classmethod
    def of(cls, records: Sequence[Record], data: str) -> "_Near":
        figures = summarize(records, data=data)
        agreed = sum(record.error is None and record.pred == record.dense_pred for record in records)
        divergences = [record.kl for record in records if record.kl is not None]
        return cls(figures.n, figures.agreement, wilson(agreed, figures.n), figures.kl, mean_interval(divergences))


def _kept(
    models: Sequence[ViM],
    samples: SampleSet | None,
    seconds: float | None,
    clock: Callable[[], float],
    on_progress: OnProgress | None,
) -> list[_Near]:
    """Agreement with the first model and KL to it, of each. Every image is decoded once, and all models see the same
    images."""
    if samples is None:
        return [_Near()] * len(models)
    records: list[list[Record]] = [[] for _ in models]
    images, start = 0, clock()
    for batch in iterate(samples, models[0].config.preprocessing, batch_size=_PORTION):
        logits: list[Tensor | None] = [None] * len(models)
        for number, model in enumerate(models if batch.indices else ()):
            logits[number] = forward(model, batch.images.to(model.cls_token.device)).cpu()
        for scored, values in zip(records, logits, strict=True):
            scored += recorded(samples, batch, values, logits[0])
        images, passed = len(records[0]), clock() - start
        possible = (
            len(samples)
            if seconds is None or passed <= 0
            else min(len(samples), max(images, int(images * seconds / passed)))
        )
        if on_progress is not None:
            on_progress(Progress("agreement", images, possible, "images"))
        if seconds is not None and passed >= seconds:
            break
    return [_Near.of(scored, samples.name) for scored in records]


def _tell(on_progress: OnProgress | None, done: int, of: int) -> None:
    if on_progress is not None:
        on_progress(Progress("speed", done, of, "rounds"))
