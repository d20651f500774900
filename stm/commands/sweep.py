"""`stm sweep`: measure a grid of schedules, and draw the curve of accuracy over cost."""

import dataclasses
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path

from stm.codec import encode
from stm.commands.compare import open_siblings
from stm.commands.fit_set import fit_once
from stm.data.open import open_chosen
from stm.distributed import ALONE, World
from stm.findings import SweepReport
from stm.loading import open_classifier
from stm.measure.environment import environment_of
from stm.measure.records import fingerprint
from stm.measure.sweep import Grid, deciding, measure_cells, planned
from stm.measure.sweep_file import CellFile, SweepIdentity, check_folder, write_whole
from stm.measure.table import as_csv
from stm.model_names import name_of
from stm.options import EvalOptions, FitOptions, ModelOptions
from stm.plots import pareto as plots_pareto
from stm.plots import style as plots
from stm.progress import OnProgress

SWEPT = ("sweep.csv", "sweep.json", "sweep.png", "sweep.svg")


def sweep(
    model: str,
    source: ModelOptions = ModelOptions(),
    images: EvalOptions = EvalOptions(limit=100),
    grid: Grid = Grid(),
    fit: FitOptions = FitOptions(),
    *,
    also: Sequence[str] = (),
    world: World = ALONE,
    out: str | Path | None = None,
    on_progress: OnProgress | None = None,
) -> SweepReport:
    """Run `stm sweep`: measure the paper's Table 3 and the Pareto curve.

    Every finished cell is stored at once. The same command continues a killed run.

    Args:
        model, source, images, fit, also, world: as for `compare`. One fit is for all fitted schedules of the grid.
        grid: the cells.
        out: the folder of the cells, the table and the figure, named after the model by default.

    Raises:
        UsageError: a grid without any cell, or a folder that cannot be written.
        DataError: the folder holds the cells of another run: of another fit, too.
        StmError: what reading and measuring raise; matplotlib is not installed.
    """
    plots.require()  # before hours of measuring, and not when the figure is drawn
    output = Path(out) if out is not None else Path(f"{name_of(model)}-sweep")
    if world.first:
        check_folder(output, SWEPT)
    measured, how = images.shared(fit.fit_on)
    seed = images.draws_by
    dense, siblings = open_classifier(model, source, on_progress), open_siblings(also, source, on_progress)
    # A grid that no schedule can fill is refused before the fit, and before a set is opened.
    plan = planned(
        dense,
        grid,
        siblings,
        seed,
        fitting=fit_once(fit, dense, seed=seed, how=how, token=source.token, on_progress=on_progress),
        world=world,
        on_progress=on_progress,
    )
    decided = deciding(plan)
    samples = open_chosen(
        measured, decided, need_labels=False, token=source.token, world=world, on_progress=on_progress
    )
    environment = environment_of(dense, world)
    # Each cell has its own cut; what decided them is the same.
    decided_by = None if decided.recipe is None else decided.recipe.fit
    about = None if decided_by is None else dataclasses.replace(decided_by, cut="flat", tried=())
    # All that a cell's numbers depend on, machine and batch size included: the cells of a folder must be comparable, so
    # another run may not continue it.
    identity = SweepIdentity(
        model=fingerprint(dense),
        data=samples.fingerprint,
        preprocessing=dense.config.preprocessing,
        limit=images.limit,
        seed=seed,
        batch_size=images.batch_size,
        environment=encode(environment),
        fit=about,
    )
    file = CellFile(output, identity, SWEPT) if world.first else None
    # The first process alone holds the file; the others measure and write nothing.
    with nullcontext() if file is None else closing(file):
        keys = [entry.key for entry in plan if entry.model is not None]
        resumed = 0 if file is None else sum(key in file.done for key in keys)
        done = measure_cells(
            plan,
            samples,
            file,
            batch_size=images.batch_size,
            workers=images.workers,
            world=world,
            on_progress=on_progress,
        )
        table = tuple(done[key] for key in keys)  # in the order of the grid, however often the run was continued
        report = SweepReport(
            command="sweep",
            model=model,
            environment=environment,
            data=samples.name,
            n=table[0].n,
            seed=seed,
            limit=images.limit,
            rows=table,
            refused={str(entry.cell): entry.refused for entry in plan if entry.refused is not None},
            resumed=resumed,
            fit=about,
            output=str(output),
            files=SWEPT,
            **samples.of_set,
        )
        if world.first:  # while the file is held, so that no other run replaces the table meanwhile
            write_whole(output / "sweep.csv", as_csv(table).encode())
            write_whole(output / "sweep.json", (report.to_json() + "\n").encode())
            with plots.style():
                title = f"{model} on {report.n:,} images of {samples.name}; the points of a curve are rates"
                plots.save(plots_pareto.swept(table, title), output, "sweep", write_whole)
    return report
