"""`stm plan`: the cost of each rate, and its agreement with the dense model."""

import shlex
from pathlib import Path

from stm.bench import rate_table as rates
from stm.bench.timing import threads as on_threads
from stm.commands.draw_model import draw_model
from stm.data.open import open_samples
from stm.errors import UsageError
from stm.findings import PlanReport
from stm.loading import open_model
from stm.measure.environment import environment_of
from stm.options import MergeOptions, ModelOptions
from stm.progress import OnProgress


def plan(
    model: str,
    source: ModelOptions = ModelOptions(),
    merge: MergeOptions = MergeOptions(),
    *,
    data: str | Path | None = None,
    limit: int | None = None,
    seconds: float | None = None,
    batch_size: int = 1,
    seed: int = 0,
    threads: int | None = None,
    rounds: int | None = None,
    random_weights: bool = False,
    on_progress: OnProgress | None = None,
) -> PlanReport:
    """Run `stm plan`: return the cost of rates from 10% to 60% on this machine, and the agreement that each keeps.

    Args:
        model, source: a dense MODEL, and how to open it; see `stm.load`.
        merge: how to merge at each rate, without a budget.
        data: a folder of images, labelled or not; None: the embedded images.
        limit: the number of images, drawn by the seed; None: as many as the time allows.
        seconds: the time for the images; None: `rates.IMAGE_SECONDS`, or no bound if `limit` is given.
        batch_size: of the forwards that are timed.
        threads, rounds, random_weights: as for `bench`.

    Raises:
        UsageError: an impossible option, or a model that is compressed already.
        StmError: what reading raises.
    """
    if batch_size < 1:
        raise UsageError(f"batch size is {batch_size}, expected at least 1")
    if merge.rate is not None or merge.saving is not None or merge.stages is not None:
        raise UsageError("a budget was given, and the plan is there to find one")
    if random_weights and (data is not None or limit is not None or seconds is not None):
        raise UsageError(
            "images were given, and random weights agree with nothing",
            "leave out --random-weights, or --data, --limit and --seconds",
        )
    if seconds is not None and not seconds > 0:
        raise UsageError(f"seconds is {seconds:g}, expected more than 0")
    # A number of images is a bound of its own, so a time is set only if neither is given.
    if seconds is None and limit is None:
        seconds = rates.IMAGE_SECONDS
    with on_threads(threads):
        vim = draw_model(model, source) if random_weights else open_model(model, source, on_progress)
        if vim.plan is not None:
            raise UsageError(f"{model} is already compressed", "plan with its dense source")
        samples = None
        # Agreement needs no labels, so any images do. They are shuffled, because time may run out after any of them,
        # and those seen so far must be a random draw.
        if not random_weights:
            samples = open_samples(
                data, config=vim.config, limit=limit, seed=seed, need_labels=False, token=source.token
            ).shuffled(seed)
        # Each printed command reads the model and merges as this run did; only the rate differs.
        again = (*source.words(), *merge.words())
        rows, n = rates.table(
            vim,
            merge,
            samples,
            seconds=seconds,
            batch_size=batch_size,
            rounds=rounds,
            command=lambda rate: shlex.join(["stm", "compress", model, "--rate", f"{rate:g}", *again]),
            on_progress=on_progress,
        )
        environment = environment_of(vim)  # within the block, so that it records the threads that were timed
    reasons = {} if samples is not None else dict.fromkeys(("agreement", "kl"), "the weights are random")
    return PlanReport(
        command="plan",
        model=model,
        environment=environment,
        random_weights=random_weights,
        data=None if samples is None else samples.name,
        n=n,
        of=0 if samples is None else len(samples),
        seconds=None if samples is None else seconds,
        batch_size=batch_size,
        rows=rows,
        notes=vim.config.extra_texts("notes"),
        reasons=reasons,
        **({} if samples is None else samples.of_set),
    )
