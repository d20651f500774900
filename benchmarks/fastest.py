"""Find the fastest fitted schedule that keeps top-1 within half a point of dense.

    python benchmarks/fastest.py vim-s --calibration some_images/ --data imagenet/val
    python benchmarks/fastest.py proxy/ --calibration images/calibration --data images/evaluation

It works in three steps:

1. Chosen: a schedule is fitted for each of some savings, on drawn pictures or on --fit-on. They run on the calibration
   images and are judged by KL to the dense model. No label is read. For each ceiling on KL, the schedule under the
   ceiling that saves the most operations goes on.
2. Confirmed: those schedules, and no others, run on images that chose nothing, beside the dense model.
3. Timed: the same schedules as `optimize` makes them, in turns with the dense model in one run. A figure is the median
   and the quartiles over the rounds of a ratio within a round.

Several schedules are confirmed and the fastest that holds is named, so an estimate just inside half a point is partly
luck. The last line names the fastest whose whole interval is inside.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter, thread_time
from typing import NamedTuple

import torch
from cpu import Figure, images
from torch import Tensor

import stm
from stm.bake import bake
from stm.bench.timing import interleave, threads
from stm.config import Measured
from stm.data.fit_images import pictures, whole
from stm.data.open import open_samples
from stm.data.sets import iterate
from stm.fitting import Fitting, fit, most_layers
from stm.loading import open_model
from stm.measure import flops
from stm.measure.compare import Contender, run_all
from stm.measure.environment import processor_name
from stm.measure.evaluate import forward
from stm.measure.records import kl_divergence
from stm.measure.stats import summarize
from stm.model.vim import ViM
from stm.options import MergeOptions, ModelOptions

CEILINGS = (0.0025, 0.005, 0.01, 0.015, 0.02, 0.04)  # nats
STEP = 0.02  # between two savings
BATCHES = (1, 8)


class Candidate(NamedTuple):
    """A schedule: the token-layers that it saves, its saving of the honest count, and its KL to dense on the
    calibration images."""

    asked: float
    model: ViM
    saving: float
    kl: float

    def __str__(self) -> str:
        return f"{self.asked:.0%}"


def screen(dense: ViM, fitting: Fitting, batches: Sequence[Tensor], least: float) -> Iterator[Candidate]:
    """Yield the schedules of a fit that save `least` or more, until KL passes the highest ceiling."""
    most = most_layers(dense.config.model) / (dense.config.model.tokens * dense.config.model.depth)
    with torch.inference_mode():
        reference = [forward(dense, batch) for batch in batches]
        asked = least
        while asked <= most:
            small = bake(dense, MergeOptions(saving=asked), fitting=fitting)
            divergences = [
                kl_divergence(logits, forward(small, batch)) for logits, batch in zip(reference, batches, strict=True)
            ]
            kl = torch.cat(divergences).mean().item()
            candidate = Candidate(asked, small, flops.count(small.config).honest_saving, kl)
            print(f"{candidate}: saves {candidate.saving:.1%}, KL {kl:.4f}", file=sys.stderr, flush=True)
            yield candidate
            if kl > max(CEILINGS):
                break
            asked += STEP


def finalists(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return for each ceiling the candidate under it that saves most, in the order of the ceilings."""
    best = (
        max((c for c in candidates if c.kl <= ceiling), key=lambda c: c.saving, default=None) for ceiling in CEILINGS
    )
    return list(dict.fromkeys(candidate for candidate in best if candidate is not None))


def time(dense: ViM, chosen: Sequence[Candidate], batch: int, rounds: int, clock: Callable[[], float]) -> list[Figure]:
    """Return the times of dense over those of each candidate, all ready to serve."""
    x = images(batch, dense.config.model.image_size)
    models = {"dense": dense} | {str(candidate): candidate.model for candidate in chosen}
    calls = {name: partial(model.optimize(batch_size=batch), x) for name, model in models.items()}
    with torch.inference_mode():
        times = interleave(calls, rounds, clock=clock)
    return [Figure.of(str(candidate), "", times["dense"], times[str(candidate)]) for candidate in chosen]


def row(candidate: Candidate, measured: Measured, timed: Sequence[Figure]) -> str:
    assert (
        measured.drop is not None
        and measured.drop_ci is not None
        and measured.kl is not None
        and measured.agreement is not None
    )
    low, high = measured.drop_ci
    cells = [
        str(candidate),
        f"{candidate.saving:.1%}",
        f"{candidate.kl:.4f}",
        f"{measured.kl:.4f}",
        f"{measured.agreement:.1%}",
        f"{measured.top1:.2%}",
        f"{100 * measured.drop:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})",
        *(f"{figure.ratio:.2f}x ({figure.low:.2f} to {figure.high:.2f})" for figure in timed),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="dense: whatever stm takes")
    parser.add_argument(
        "--calibration", type=Path, required=True, metavar="DIR", help="images that choose; labels are not read"
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="labelled images that confirm; none of the former"
    )
    parser.add_argument(
        "--fit-on", type=Path, metavar="DIR", help="images to fit on, none of the others; default: drawn pictures"
    )
    parser.add_argument("--points", type=float, default=0.5, help="the top-1 that may be lost")
    parser.add_argument(
        "--least", type=float, default=0.3, help="look at no schedule that saves less of the token-layers"
    )
    parser.add_argument("--limit", type=int, default=200, help="calibration images")
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument(
        "--cpu-time", action="store_true", help="measure this thread's processor time instead of the clock"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    dense = open_model(options.model, ModelOptions(device="cpu", dtype="float32"))
    few = open_samples(
        options.calibration, config=dense.config, limit=options.limit, seed=options.seed, need_labels=False
    )
    samples = open_samples(options.data, config=dense.config)
    with threads(1):
        load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
        how = "processor time of the thread" if options.cpu_time else "wall clock"
        print(
            f"{processor_name()}, 1 thread, torch {torch.__version__}, stm {stm.__version__}, backend"
            f" {dense.backend.name}"
        )
        print(f"{how}, {options.rounds} rounds, {os.cpu_count()} processors{load}\n")

        batches = [batch.images for batch in iterate(few, dense.config.preprocessing, batch_size=8)]
        if options.fit_on is None:
            fit_images = pictures(dense.config, seed=options.seed)
        else:
            fit_images = whole(open_samples(options.fit_on, config=dense.config, need_labels=False), seed=options.seed)
        looked_at = list(screen(dense, fit(dense, fit_images), batches, options.least))
        chosen = finalists(looked_at)
        if not chosen:
            raise SystemExit(
                f"none of {len(looked_at)} schedules stays below a KL of {max(CEILINGS)}: try a smaller --least"
            )
        print(
            f"{len(looked_at)} schedules, fitted on {fit_images.n} of {fit_images.data}, looked at on {len(few)} images"
            f" of {few.name}; confirmed on {len(samples)} of {samples.name}\n"
        )
        entered = [
            Contender(dense, {"method": "dense"}),
            *(Contender(candidate.model, {"method": str(candidate)}) for candidate in chosen),
        ]
        runs = run_all(entered, samples, workers=0).runs
        measured = [summarize(run.records, data=samples.name) for run in runs[1:]]
        clock = thread_time if options.cpu_time else perf_counter
        timed = list(zip(*(time(dense, chosen, batch, options.rounds, clock) for batch in BATCHES), strict=True))

    speeds = " | ".join(f"dense / this, B = {batch}" for batch in BATCHES)
    accuracies = "KL, calibration | KL | agreement | top-1 | points lost (95%)"
    print(f"| token-layers saved | operations saved | {accuracies} | {speeds} |")
    print(f"|{' --- |' * (7 + len(BATCHES))}")
    for candidate, accuracy, speeds_of in zip(chosen, measured, timed, strict=True):
        print(row(candidate, accuracy, speeds_of))
    print(f"\nDense: {measured[0].dense_top1:.2%}.")
    for what, bound in (("by the estimate", lambda m: m.drop), ("with its whole interval", lambda m: m.drop_ci[1])):
        within = [figures for figures, m in zip(timed, measured, strict=True) if 100 * bound(m) <= options.points]
        fastest = "none of these"
        if within:
            # The batch size at which a schedule gains least decides: it should be fast at each of them.
            best = max(within, key=lambda figures: min(figure.ratio for figure in figures))
            speed = " and ".join(
                f"{figure.ratio:.2f}x at B = {batch}" for figure, batch in zip(best, BATCHES, strict=True)
            )
            fastest = f"{best[0].what}, {speed}"
        print(f"Fastest within {options.points:g} points {what}: {fastest}.")


if __name__ == "__main__":
    main()
