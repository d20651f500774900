"""What each rate would cost and keep: `stm plan`. Measured on this machine, on a few images."""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stm.bake import bake
from stm.errors import UsageError
from stm.findings import PlanRow
from stm.measure import flops
from stm.measure.data import SampleSet, iterate
from stm.measure.evaluate import forward, recorded
from stm.measure.records import Record
from stm.measure.stats import summarize
from stm.measure.timing import interleave, ratio, spread, waiting
from stm.model import ViM
from stm.reports import OnProgress, Progress

RATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
SECONDS = 4.0  # for the rounds, of the ten that all of it may take


def table(
    dense: ViM,
    wish: dict[str, Any],
    samples: SampleSet | None,
    *,
    batch_size: int = 1,
    rounds: int | None = None,
    command: Callable[[float], str],
    on_progress: OnProgress | None = None,
) -> tuple[PlanRow, ...]:
    """The dense model and, for each of `RATES`, what is made of it.

    Args:
        wish: options of `stm.bake.bake`, rate left out.
        samples: for the agreement; None: it is not measured.
        batch_size: of the forwards that are timed.
        command: what makes the model of a rate, for a command line.
    """
    models, refused = {0.0: dense}, {}
    for rate in RATES:
        try:
            models[rate] = bake(dense, **wish, rate=rate)
        except UsageError as error:
            refused[rate] = error.message
    shape, device = dense.config.model, dense.cls_token.device
    images = torch.randn(batch_size, shape.in_chans, shape.image_size, shape.image_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        kept = _kept(list(models.values()), samples, on_progress)
        calls = {str(rate): waiting(partial(model, images.to(device)), device) for rate, model in models.items()}
        seconds = interleave(calls, rounds, seconds=SECONDS, on_round=partial(_tell, on_progress))
    rows = []
    for rate, model, (agreement, kl) in zip(models, models.values(), kept, strict=True):
        an_image = [1000 * value / batch_size for value in seconds[str(rate)]]
        rows.append(
            PlanRow(
                rate=rate,
                saving=model.schedule.saving(shape.depth),
                tokens_per_block=model.schedule.tokens_per_block(shape.depth),
                flops=flops.count(model.config),
                ms_per_image=statistics.median(an_image),
                ms_iqr=spread(an_image),
                gain=ratio(seconds["0.0"], seconds[str(rate)]),
                agreement=agreement,
                kl=kl,
                rounds=len(an_image),
                compress=command(rate) if rate else None,
            )
        )
    return tuple(sorted([*rows, *(PlanRow(rate=rate, reason=reason) for rate, reason in refused.items())], key=lambda row: row.rate))


def _kept(models: Sequence[ViM], samples: SampleSet | None, on_progress: OnProgress | None) -> list[tuple[float | None, float | None]]:
    """Agreement with the first model and KL to it, of each; every image is decoded once."""
    if samples is None:
        return [(None, None)] * len(models)
    records: list[list[Record]] = [[] for _ in models]
    done = 0
    for batch in iterate(samples, models[0].config.preprocessing, batch_size=32):
        logits: list[Tensor | None] = [None] * len(models)
        for number, model in enumerate(models if batch.indices else ()):
            logits[number] = forward(model, batch.images.to(model.cls_token.device)).cpu()
            done += len(batch.indices)
            if on_progress is not None:
                on_progress(Progress("agreement", done, len(samples) * len(models), "forwards"))
        for found, values in zip(records, logits, strict=True):
            found += recorded(samples, batch, values, logits[0])
    measured = [summarize(found, data=samples.name) for found in records]
    return [(each.agreement, each.kl) for each in measured]


def _tell(on_progress: OnProgress | None, done: int, of: int) -> None:
    if on_progress is not None:
        on_progress(Progress("speed", done, of, "rounds"))
