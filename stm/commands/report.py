"""`stm report`: one HTML page about a compressed model."""

from pathlib import Path

from stm.artifact import atomic
from stm.data.open import open_chosen
from stm.data.sets import SampleSet
from stm.errors import ArtifactError, StmError, UsageError
from stm.evaluations import Assessment
from stm.explain.costs import CostMap, shown_costs
from stm.findings import PageReport
from stm.hub.card import warned
from stm.loading import open_classifier
from stm.measure.environment import environment_of
from stm.measure.evaluate import assess_each
from stm.measure.records import Record, check_path
from stm.model.vim import ViM
from stm.model_names import name_of
from stm.options import EvalOptions, ModelOptions
from stm.page import content as facts
from stm.page.content import Findings, Rows
from stm.page.render import render
from stm.progress import OnProgress

# What the page says in the place of another command's figures, by the option that gives them.
_MISSING = {
    "bench": (
        "A comparison with the dense model on the clock is not here: stm bench measures it, and stm report --bench"
        " FILE shows it."
    ),
    "sweep": (
        "A curve over other rates and methods is not here: stm sweep measures it, and stm report --sweep FILE shows it."
    ),
}


def report(
    folder: str | Path,
    source: ModelOptions = ModelOptions(),
    images: EvalOptions = EvalOptions(),
    *,
    records: str | Path | None = None,
    sweep: str | Path | None = None,
    bench: str | Path | None = None,
    out: str | Path | None = None,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> PageReport:
    """Run `stm report`: write one HTML page about a compressed model, measured against the dense one in it.

    Args:
        folder, source: of the model, here or on the Hub, and how to open it; see `stm.load`.
        images: the sample set.
        records: the file of an earlier `stm eval` with the same model and images, of which nothing is measured again.
        sweep, bench: what those commands printed with `--json`.
        out: the page; named after the folder, in the current one, by default.
        force: replace a page that is there.

    Raises:
        UsageError: the folder holds a dense model, or the page cannot be written.
        DataError: images, records, sweep or bench cannot be used.
    """
    name = name_of(str(folder))
    output = Path(out) if out is not None else Path(f"{name}-report.html")
    # Measuring takes minutes, so what was given is checked before it.
    atomic.check_file(output, force=force)
    if records is not None:
        check_path(records)
    given = _read_given(bench=bench, sweep=sweep)
    model = _open_compressed(folder, source, on_progress)
    samples = open_chosen(images, model.config, need_labels=False, token=source.token, on_progress=on_progress)
    # The records too: the page shows single images, and the dense model's interval is counted from them.
    evaluation, measured = assess_each(
        model, samples, images, reference=model.with_plan(None), records=records, on_progress=on_progress
    )
    try:
        costs, missing = shown_costs(model, facts.per_block(model.config), on_progress), dict[str, str]()
    except StmError as error:  # gradients that are no numbers, such as in float16: the rest of the page still stands
        costs, missing = None, {"costs": f"What merging costs is not here: {error.message}."}
    findings = _findings(name, model, samples, evaluation, measured, given, costs, missing)
    page = render(model.config, findings).encode()  # whole in memory, so that a template's fault leaves no file
    _write_page(output, page, force)
    return PageReport(
        command="report",
        model=str(folder),
        environment=findings.environment,
        output=str(output),
        bytes=len(page),
        eval=evaluation,
        changed=tuple(image.file for image in findings.changed),
        missing=findings.missing,
        warnings=findings.warnings,
        milder=findings.milder,
    )


def _read_given(**reports: str | Path | None) -> dict[str, Rows]:
    """Return the rows of each report of another command that was given, by the name of the command."""
    # Read before anything is measured: a file of another kind is refused within a second.
    return {command: facts.read_rows(Path(path), command) for command, path in reports.items() if path is not None}


def _open_compressed(folder: str | Path, source: ModelOptions, on_progress: OnProgress | None) -> ViM:
    """Return the model of a folder.

    Raises:
        UsageError: the model is dense.
    """
    model = open_classifier(str(folder), source, on_progress)
    # Of a dense model the page would have nothing to compare: no schedule, no drop, no changed images.
    if model.plan is None:
        raise UsageError(f"{folder} holds a dense model, expected a compressed one", "make one: stm compress MODEL")
    return model


def _findings(
    name: str,
    model: ViM,
    samples: SampleSet,
    evaluation: Assessment,
    measured: list[Record],
    given: dict[str, Rows],
    costs: CostMap | None,
    missing: dict[str, str],
) -> Findings:
    """Return what the page shows of the evaluation, of its records, and of the other commands' reports."""
    return Findings(
        name=name,
        evaluation=evaluation,
        dense_ci=None if evaluation.dense_top1 is None else facts.dense_interval(measured),
        environment=environment_of(model),
        changed=facts.changed(measured, samples, model.config),
        bench=given.get("bench"),
        sweep=given.get("sweep"),
        missing={command: why for command, why in _MISSING.items() if command not in given} | missing,
        notes=model.config.extra_texts("notes"),
        costs=costs,
        **warned(evaluation, model.config),
    )


def _write_page(path: Path, page: bytes, force: bool) -> None:
    """Write the page whole, or nothing.

    Raises:
        ArtifactError: the disk is full, or the path is not one that can be written.
    """
    with (
        atomic.refusing(path, "make room, or choose another place with --out", ArtifactError),
        atomic.drafted(path, force=force) as draft,
    ):
        draft.write_bytes(page)
