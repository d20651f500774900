"""`stm report`: one HTML page about a compressed model."""

from pathlib import Path

from stm.artifact import atomic
from stm.data.open import open_samples
from stm.errors import ArtifactError, UsageError
from stm.findings import PageReport
from stm.loading import open_model
from stm.measure.environment import environment_of
from stm.measure.evaluate import assess_each
from stm.measure.records import check_path
from stm.model_names import name_of
from stm.options import EvalOptions, ModelOptions
from stm.page import content as facts
from stm.page.render import render
from stm.progress import OnProgress


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
    named = str(folder)
    name = name_of(named)
    output = Path(out) if out is not None else Path(f"{name}-report.html")
    atomic.check_file(output, force=force)
    if records is not None:
        check_path(records)
    found_bench = None if bench is None else facts.read_rows(Path(bench), "bench")
    found_sweep = None if sweep is None else facts.read_rows(Path(sweep), "sweep")
    model = open_model(named, source, on_progress)
    if model.plan is None:
        raise UsageError(f"{folder} holds a dense model, expected a compressed one", "make one: stm compress MODEL")
    samples = open_samples(
        images.data,
        config=model.config,
        limit=images.limit,
        seed=images.draws_by,
        token=source.token,
        on_progress=on_progress,
    )
    evaluation, found_records = assess_each(
        model,
        samples,
        images,
        reference=model.with_plan(None),
        records=records,
        on_progress=on_progress,
    )
    missing = {
        "bench": (
            "A comparison with the dense model on the clock is not here: stm bench measures it, and stm report --bench"
            " FILE shows it."
        ),
        "sweep": (
            "A curve over other rates and methods is not here: stm sweep measures it, and stm report --sweep FILE"
            " shows it."
        ),
    }
    findings = facts.Findings(
        name=name,
        evaluation=evaluation,
        dense_ci=None if evaluation.dense_top1 is None else facts.dense_interval(found_records),
        environment=environment_of(model),
        changed=facts.changed(found_records, samples, model.config),
        bench=found_bench,
        sweep=found_sweep,
        missing={key: why for key, why in missing.items() if {"bench": bench, "sweep": sweep}[key] is None},
        notes=model.config.extra_texts("notes"),
    )
    page = render(model.config, findings).encode()
    _write_page(output, page, force)
    return PageReport(
        command="report",
        model=str(folder),
        environment=findings.environment,
        output=str(output),
        bytes=len(page),
        eval=evaluation,
        changed=tuple(each.file for each in findings.changed),
        missing=findings.missing,
    )


def _write_page(path: Path, page: bytes, force: bool) -> None:
    """Write the page whole or not at all."""
    with (
        atomic.refusing(path, "make room, or choose another place with --out", ArtifactError),
        atomic.drafted(path, force=force) as draft,
    ):
        draft.write_bytes(page)
