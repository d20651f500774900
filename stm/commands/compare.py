"""`stm compare`: every method on the same images, at the same saving."""

from collections.abc import Sequence
from pathlib import Path

from stm.artifact import atomic
from stm.commands.fit_set import fit_once
from stm.data.open import open_chosen
from stm.distributed import ALONE, World
from stm.errors import CheckpointError, Question
from stm.findings import CompareReport
from stm.loading import open_classifier
from stm.measure import compare as comparison
from stm.measure.compare import contenders, rows, run_all
from stm.measure.environment import environment_of
from stm.measure.table import as_csv
from stm.model.vim import ViM
from stm.options import EvalOptions, FitOptions, ModelOptions
from stm.plots import compare as plots_compare
from stm.plots import style as plots
from stm.progress import OnProgress

COMPARED = ("compare.csv", "compare.json", "compare.png", "compare.svg")


def compare(
    model: str,
    source: ModelOptions = ModelOptions(),
    images: EvalOptions = EvalOptions(),
    fit: FitOptions = FitOptions(),
    *,
    methods: Sequence[str] | None = None,
    saving: float | None = None,
    rate: float | None = None,
    at: str = "published",
    also: Sequence[str] = (),
    world: World = ALONE,
    out: str | Path | None = None,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> CompareReport:
    """Run `stm compare`, the paper's Table 2: measure every method on the same images, at the same saving.

    Args:
        model, source: a dense MODEL, and how to open it; see `stm.load`.
        images: the sample set. Its seed also draws the tokens that random pruning removes, and the images of the fit.
        fit: the images that the method stm is fitted on. By default they are pictures that need no data: every method
            is measured on all images of the set. Images of the set that `fit` names are left out for every method.
        methods, saving, rate, at: see `stm.measure.compare.contenders`.
        also: other dense MODELs: smaller siblings, which a compressed model should beat.
        world: the processes that share the images and return the same report; the first one writes.
        out: a folder for the table and its figure.
        force: replace a folder that holds nothing but these.

    Raises:
        UsageError: options that exclude each other, a budget out of reach, or an output that cannot be written.
        StmError: what reading and measuring raise; matplotlib is not installed and a figure is wanted.
    """
    # Measuring may take hours, so the place of its result is checked first. One process writes, so one looks.
    if out is not None and world.first:
        plots.require()
        atomic.check(out, COMPARED, force=force)
    measured, how = images.shared(fit.fit_on)
    seed = images.draws_by
    # An impossible budget is refused before the fit, and every method is solved before the set is read.
    dense = open_classifier(model, source, on_progress)
    entered = contenders(
        dense,
        methods=methods,
        saving=saving,
        rate=rate,
        at=at,
        also=open_siblings(also, source, on_progress),
        seed=seed,
        fitting=fit_once(fit, dense, seed=seed, how=how, token=source.token, on_progress=on_progress),
        world=world,
        on_progress=on_progress,
    )
    ours = next(entrant.model.config for entrant in entered if entrant.method == "stm")
    samples = open_chosen(measured, ours, need_labels=False, token=source.token, world=world, on_progress=on_progress)
    runs = run_all(
        entered, samples, batch_size=images.batch_size, workers=images.workers, world=world, on_progress=on_progress
    ).runs
    table = rows(entered, runs, data=samples.name, seed=seed)
    report = CompareReport(
        command="compare",
        model=model,
        environment=environment_of(dense, world),
        data=samples.name,
        n=table[0].n,
        seed=seed,
        limit=images.limit,
        rate=rate,
        saving=comparison.DEFAULT_SAVING if rate is None and saving is None else saving,
        at=at,
        # The peers were solved for what ours saves. Tokens are whole, so that is seldom exactly what was asked for.
        target=next(row for row in table if row.method == "stm").flops.honest_saving,
        fit=None if ours.recipe is None else ours.recipe.fit,
        rows=table,
        output=None if out is None else str(out),
        files=() if out is None else COMPARED,
        **samples.of_set,
    )
    if out is not None and world.first:
        # Table, report and figure appear together: a reader never sees the figure of one run beside another's table.
        with atomic.replacing(out, COMPARED, force=force) as folder, plots.style():
            title = f"{model} on {report.n:,} images of {samples.name}, {report.target:.1%} of the operations saved"
            plots.save(plots_compare.compared(table, title), folder, "compare")
            (folder / "compare.csv").write_text(as_csv(table), encoding="utf-8")
            (folder / "compare.json").write_text(report.to_json() + "\n", encoding="utf-8")
    return report


def open_siblings(names: Sequence[str], source: ModelOptions, on_progress: OnProgress | None) -> dict[str, ViM]:
    """Return other dense models by name, on the same device and in the same dtype.

    Raises:
        CheckpointError: a model is a checkpoint that leaves a question open. The hint makes a folder of it.
    """
    # Not the whole of `source`: file, revision and preprocessing belong to the first model alone.
    same = ModelOptions(token=source.token, device=source.device, dtype=source.dtype, backend=source.backend)
    siblings = {}
    for name in names:
        try:
            siblings[name] = open_classifier(name, same, on_progress)
        except Question as error:
            # The command line has one set of options for checkpoints, and the first model has it. A folder needs none.
            answers = {what: [*words, "--format", "folder"] for what, words in error.answers.items()}
            hint = f"make a folder of it first, and name that; {error.hinted(answers, ('stm', 'export', name))}"
            raise CheckpointError(error.message, hint) from error
    return siblings
