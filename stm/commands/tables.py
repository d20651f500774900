"""What `stm compare` and `stm sweep` do: the paper's tables for a model and images of one's own, as rows, CSV and figures."""

import csv
import io
from collections.abc import Iterable, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from stm.artifact import atomic
from stm.codec import encode
from stm.commands.open_model import From, name_of, open_model
from stm.data.sets import open_samples
from stm.distributed import ALONE, World
from stm.errors import CheckpointError, Question
from stm.findings import CompareReport, SweepReport
from stm.measure import compare as comparison
from stm.measure.compare import entrants, race, rows
from stm.measure.environment import environment_of
from stm.measure.records import fingerprint
from stm.measure.sweep import Grid, measure_cells, planned
from stm.measure.sweep_file import CellFile, SweepIdentity, check_folder, write_whole
from stm.model.vim import ViM
from stm.plots import compare as plots_compare
from stm.plots import pareto as plots_pareto
from stm.plots import style as plots
from stm.reports import Evaluation, OnProgress

SWEPT = ("sweep.csv", "sweep.json", "sweep.png", "sweep.svg")
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
        methods, saving, rate, at: see `stm.measure.compare.entrants`.
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
    entered = entrants(dense, methods=methods, saving=saving, rate=rate, at=at, also=_siblings(also, options, on_progress), seed=seed)
    samples = open_samples(data, config=dense.config, limit=limit, seed=seed, token=options.token, world=world, on_progress=on_progress)
    runs = race(entered, samples, batch_size=batch_size, workers=workers, world=world, on_progress=on_progress).runs
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


def sweep(
    model: str,
    *,
    data: str | Path | None = None,
    also: Sequence[str] = (),
    limit: int | None = 100,
    batch_size: int = 32,
    seed: int = 0,
    workers: int | None = None,
    world: World = ALONE,
    out: str | Path | None = None,
    on_progress: OnProgress | None = None,
    **options: Any,
) -> SweepReport:
    """`stm sweep`: Table 3 and the Pareto curve. Every finished cell is stored at once; the same command continues a killed run.

    Args:
        model, data, also, batch_size, workers, world, seed: as for `compare`.
        limit: the most images; None: all.
        out: the folder of the cells, the table and the figure, named after the model by default.
        options: the fields of `stm.measure.sweep.Grid` (None: its default) and of `stm.commands.open_model.From`.

    Raises:
        UsageError: a grid or a folder that cannot be had.
        DataError: the folder holds the cells of another run.
        StmError: what reading and measuring raise; matplotlib is not installed.
    """
    plots.require()
    output = Path(out) if out is not None else Path(f"{name_of(model)}-sweep")
    if world.first:
        check_folder(output, SWEPT)
    axes = {name: value for name in Grid.__dataclass_fields__ if (value := options.pop(name, None)) is not None}
    grid, source = Grid(**axes), From(**options)
    dense, siblings = open_model(model, source, on_progress), _siblings(also, source, on_progress)
    plan = list(planned(dense, grid, siblings, seed))
    samples = open_samples(data, config=dense.config, limit=limit, seed=seed, token=source.token, world=world, on_progress=on_progress)
    environment = environment_of(dense, world)
    identity = SweepIdentity(
        model=fingerprint(dense),
        data=samples.fingerprint,
        preprocessing=dense.config.preprocessing,
        limit=limit,
        seed=seed,
        batch_size=batch_size,
        environment=encode(environment),
    )
    file = CellFile(output, identity, SWEPT) if world.first else None
    with nullcontext() if file is None else closing(file):
        keys = [each.key for each in plan if each.model is not None]
        resumed = 0 if file is None else sum(key in file.done for key in keys)
        done = measure_cells(plan, samples, file, batch_size=batch_size, workers=workers, world=world, on_progress=on_progress)
        table = tuple(done[key] for key in keys)
        report = SweepReport(
            command="sweep",
            model=model,
            environment=environment,
            data=samples.name,
            n=table[0].n,
            seed=seed,
            limit=limit,
            rows=table,
            refused={str(each.cell): each.refused for each in plan if each.refused is not None},
            resumed=resumed,
            output=str(output),
            files=SWEPT,
            **samples.of_set,
        )
        if world.first:
            write_whole(output / "sweep.csv", as_csv(table))
            write_whole(output / "sweep.json", report.to_json() + "\n")
            with plots.style():
                title = f"{model} on {report.n:,} images of {samples.name}; the points of a curve are rates"
                plots.save(plots_pareto.swept(table, title), output, "sweep")
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


def as_csv(table: Iterable[Evaluation]) -> str:
    """Rows as CSV: nested values in columns of their own, lists as words."""
    flat = [_flat(encode(row)) for row in table]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in flat for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in row.items():
        if key in ("reasons", "notes"):
            out[key] = "; ".join(dict.fromkeys(value.values() if isinstance(value, dict) else value))
        elif isinstance(value, dict):
            out |= {f"{key}_{name}": part for name, part in value.items()}
        elif key.endswith("_ci"):
            low, high = value or (None, None)
            out |= {f"{key[:-3]}_low": low, f"{key[:-3]}_high": high}
        else:
            out[key] = " ".join(map(str, value)) if isinstance(value, list) else value
    return out
