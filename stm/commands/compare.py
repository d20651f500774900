"""`stm compare`: every method on the same images, at the same saving."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stm.artifact import atomic
from stm.commands.open_model import From, open_model
from stm.data.open import open_samples
from stm.distributed import ALONE, World
from stm.errors import CheckpointError, Question
from stm.findings import CompareReport
from stm.measure import compare as comparison
from stm.measure.compare import contenders, rows, run_all
from stm.measure.environment import environment_of
from stm.measure.table import as_csv
from stm.model.vim import ViM
from stm.plots import compare as plots_compare
from stm.plots import style as plots
from stm.progress import OnProgress

COMPARED = ("compare.csv", "compare.json", "compare.png", "compare.svg")


def compare(
    model: str,
    *,
    data: str | Path | None = None,
    methods: Sequence[str] | None = None,
    saving: float | None = None,
    rate: float | None = None,
    at: str = "published",
    also: Sequence[str] = (),
    limit: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    workers: int | None = None,
    world: World = ALONE,
    out: str | Path | None = None,
    force: bool = False,
    on_progress: OnProgress | None = None,
    **source: Any,
) -> CompareReport:
    """`stm compare`: Table 2. Every method on the same images, at the same saving.

    Args:
        model: a dense MODEL as `stm.commands.open_model.open_model` takes it.
        data, limit, batch_size, workers: the sample set; see `stm.evaluate`. None: what is embedded.
        methods, saving, rate, at: see `stm.measure.compare.contenders`.
        also: other dense MODELs: smaller siblings, which a compressed model should beat.
        seed: chooses images, and draws what random pruning removes.
        world: the processes that share the images and return the same report; the first one writes.
        out: a folder for the table and its figure.
        force: replace a folder that holds nothing but these.
        source: how to read the models, the fields of `stm.commands.open_model.From`.

    Raises:
        UsageError: options that exclude each other or cannot be had, or an output that cannot be written.
        StmError: what reading and measuring raise; matplotlib is not installed and a figure is wanted.
    """
    if out is not None and world.first:
        plots.require()
        atomic.check(out, COMPARED, force=force)
    options = From(**source)
    dense = open_model(model, options, on_progress)
    entered = contenders(
        dense, methods=methods, saving=saving, rate=rate, at=at, also=_siblings(also, options, on_progress), seed=seed
    )
    samples = open_samples(
        data, config=dense.config, limit=limit, seed=seed, token=options.token, world=world, on_progress=on_progress
    )
    runs = run_all(entered, samples, batch_size=batch_size, workers=workers, world=world, on_progress=on_progress).runs
    table = rows(entered, runs, data=samples.name, seed=seed)
    report = CompareReport(
        command="compare",
        model=model,
        environment=environment_of(dense, world),
        data=samples.name,
        n=table[0].n,
        seed=seed,
        limit=limit,
        rate=rate,
        saving=comparison.DEFAULT_SAVING if rate is None and saving is None else saving,
        at=at,
        target=next(row for row in table if row.method == "stm").flops.honest_saving,
        rows=table,
        output=None if out is None else str(out),
        files=() if out is None else COMPARED,
        **samples.of_set,
    )
    if out is not None and world.first:
        with atomic.replacing(out, COMPARED, force=force) as folder, plots.style():
            title = f"{model} on {report.n:,} images of {samples.name}, {report.target:.1%} of the operations saved"
            plots.save(plots_compare.compared(table, title), folder, "compare")
            (folder / "compare.csv").write_text(as_csv(table), encoding="utf-8")
            (folder / "compare.json").write_text(report.to_json() + "\n", encoding="utf-8")
    return report


def _siblings(names: Sequence[str], options: From, on_progress: OnProgress | None) -> dict[str, ViM]:
    """Other dense models, on the same device and in the same dtype."""
    same = From(token=options.token, device=options.device, dtype=options.dtype, backend=options.backend)
    found = {}
    for name in names:
        try:
            found[name] = open_model(name, same, on_progress)
        except Question as error:  # the options of a checkpoint are the first model's; a folder needs none
            answers = {what: [*words, "--format", "folder"] for what, words in error.answers.items()}
            hint = f"make a folder of it first, and name that; {error.hinted(answers, ('stm', 'export', name))}"
            raise CheckpointError(error.message, hint) from error
    return found
