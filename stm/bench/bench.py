"""Measure speed and memory of models side by side in one process: `stm bench`.

Only forwards are timed, on random images that are on the device already: not decoding, not loading. The variants take
turns in one process, so that heat, other users and clock rates hit all of them alike. Ratios are taken within a round.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stm.bench import gemms
from stm.bench.memory import peak_bytes
from stm.bench.timing import check_rounds, interleave, quartiles, ratio, spread, waiting
from stm.errors import UsageError
from stm.findings import BenchRow
from stm.measure import flops
from stm.model.serving import optimize
from stm.model.vim import ViM
from stm.progress import OnProgress, Progress
from stm.reports import Flops, ServedSpeed

DENSE, COMPRESSED = "dense", "compressed"
SERVED_SECONDS = 2.0  # for the speed that `stm compress` shows


class Variant(NamedTuple):
    """One thing to time.

    Args:
        prepare: from a batch size to the module, or the call, that runs on batches of that size.
        flops: of one image.
        vim: a ViM whose matrix products are timed alone beside this variant, or None.
        in_torch: whether torch runs it, and so can tell what its tensors take.
    """

    prepare: Callable[[int], Callable[[Tensor], Any]]
    flops: Flops
    vim: ViM | None = None
    in_torch: bool = True


def variants_of(dense: ViM, small: ViM | None, *, optimized: bool = False) -> dict[str, Variant]:
    """Return a dense model and the compressed one, by name; `optimized` adds what `ViM.optimize` makes of each."""
    variants = {}
    for name, model in ((DENSE, dense), (COMPRESSED, small)):
        if model is not None:
            count = flops.count(model.config)
            variants[name] = Variant(partial(_as_it_is, model), count, model)
            if optimized:
                variants[f"{name}, optimized"] = Variant(partial(optimize, model), count)
    return variants


def check(batch_sizes: Sequence[int], rounds: int | None) -> None:
    """Refuse what `measure` would: UsageError for a batch size or a number of rounds below 1."""
    if not batch_sizes or min(batch_sizes) < 1:
        raise UsageError(f"batch sizes are {', '.join(map(str, batch_sizes)) or 'none'}, expected at least 1")
    check_rounds(rounds)


def measure(
    variants: Mapping[str, Variant],
    shape: tuple[int, int, int],
    device: torch.device,
    *,
    batch_sizes: Sequence[int] = (1,),
    rounds: int | None = None,
    clock: Callable[[], float] = perf_counter,
    on_progress: OnProgress | None = None,
) -> tuple[BenchRow, ...]:
    """Return a row for each variant at each batch size.

    All variants of one batch size take turns. The gain of each is over the first variant.

    Args:
        shape: (C, H, W) of an image.
        rounds, clock: see `stm.bench.timing.interleave`.

    Raises:
        UsageError: a batch size or a number of rounds below 1.
    """
    check(batch_sizes, rounds)
    rows = []
    for batch_size in batch_sizes:
        images = torch.randn(batch_size, *shape, generator=torch.Generator().manual_seed(0)).to(device)
        calls: dict[str, Callable[[], Any]] = {
            name: partial(variant.prepare(batch_size), images) for name, variant in variants.items()
        }
        # The matrix products take turns with the models too: their ratio tells how much of a forward is anything else.
        products = {name: f"{name}: products" for name, variant in variants.items() if variant.vim is not None}
        calls |= {
            product: gemms.alone(vim, batch_size)
            for name, product in products.items()
            if (vim := variants[name].vim) is not None
        }
        with torch.inference_mode():
            report = partial(_tell, on_progress, f"batch size {batch_size}")
            seconds = interleave(
                {name: waiting(call, device) for name, call in calls.items()}, rounds, clock=clock, on_round=report
            )
            # Each variant is prepared anew: one that keeps its buffers allocates them in its first run alone.
            peaks = {
                name: peak_bytes(partial(variant.prepare(batch_size), images), device) if variant.in_torch else None
                for name, variant in variants.items()
            }
        first = seconds[next(iter(variants))]
        for name, variant in variants.items():
            an_image = [1000 * value / batch_size for value in seconds[name]]
            ms = statistics.median(an_image)
            rows.append(
                BenchRow(
                    variant=name,
                    batch_size=batch_size,
                    ms_per_image=ms,
                    ms_iqr=spread(an_image),
                    images_per_second=1000 / ms,
                    peak_bytes=peaks[name],
                    flops=variant.flops,
                    gain=ratio(first, seconds[name]),
                    gemm_ms=1000 * statistics.median(seconds[products[name]]) / batch_size
                    if name in products
                    else None,
                    gemm_ratio=ratio(seconds[name], seconds[products[name]]) if name in products else None,
                    rounds=len(an_image),
                )
            )
    return tuple(rows)


def served_speed(
    dense: ViM, small: ViM, *, batch_size: int = 1, rounds: int | None = None, on_progress: OnProgress | None = None
) -> ServedSpeed:
    """Time the dense model and the compressed one in turns, both as `optimize` makes them ready to serve.

    Args:
        batch_size: images per forward.
        rounds: None: as many as fit into `SERVED_SECONDS`.
    """
    shape, device = dense.config.model, dense.cls_token.device
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, *shape.input_shape, generator=generator).to(device)
    calls = {
        name: waiting(partial(optimize(model, batch_size), images), device)
        for name, model in ((DENSE, dense), (COMPRESSED, small))
    }
    seconds = interleave(calls, rounds, seconds=SERVED_SECONDS, on_round=partial(_tell, on_progress, "speed"))
    of_dense, of_small = seconds[DENSE], seconds[COMPRESSED]
    gains = [a / b for a, b in zip(of_dense, of_small, strict=True)]
    return ServedSpeed(
        batch_size=batch_size,
        ms_per_image=1000 * statistics.median(of_small) / batch_size,
        dense_ms_per_image=1000 * statistics.median(of_dense) / batch_size,
        gain=statistics.median(gains),
        gain_quartiles=quartiles(gains),
        rounds=len(gains),
    )


def _as_it_is(model: ViM, batch_size: int) -> Callable[[Tensor], Tensor]:
    return model.answer


def _tell(on_progress: OnProgress | None, stage: str, done: int, of: int) -> None:
    if on_progress is not None:
        on_progress(Progress(stage, done, of, "rounds"))
