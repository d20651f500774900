"""`stm report`: one HTML page about a compressed model."""

from pathlib import Path
from typing import Any

from stm.artifact import atomic
from stm.commands.open_model import From, name_of, open_model
from stm.data.open import open_samples
from stm.errors import ArtifactError, UsageError
from stm.findings import PageReport
from stm.measure.environment import environment_of
from stm.measure.evaluate import assess_each
from stm.measure.records import check_path
from stm.page import content as facts
from stm.page.render import render
from stm.progress import OnProgress

PICTURE_PIXELS = 448  # pixels of a side that a picture has at least


def report(
    folder: str | Path,
    *,
    data: str | Path | None = None,
    records: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    workers: int | None = None,
    sweep: str | Path | None = None,
    bench: str | Path | None = None,
    out: str | Path | None = None,
    force: bool = False,
    on_progress: OnProgress | None = None,
    **source: Any,
) -> PageReport:
    """`stm report`: one HTML page about a compressed model, measured against the dense one whose weights it holds.

    Args:
        folder: of the model, here or on the Hub.
        data, limit, batch_size, seed, workers: the sample set; see `stm.evaluate`.
        records: the file of an earlier `stm eval` with the same model and images, of which nothing is measured again.
        sweep, bench: what those commands printed with `--json`.
        out: the page; named after the folder, in the current one, by default.
        force: replace a page that is there.
        source: how to read it, the fields of `stm.commands.open_model.From`.

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
    options = From(**source)
    model = open_model(named, options, on_progress)
    if model.plan is None:
        raise UsageError(f"{folder} holds a dense model, expected a compressed one", "make one: stm compress MODEL")
    samples = open_samples(
        data, config=model.config, limit=limit, seed=seed, token=options.token, on_progress=on_progress
    )
    evaluation, found_records = assess_each(
        model,
        samples,
        reference=model.with_plan(None),
        limit=limit,
        batch_size=batch_size,
        seed=seed,
        records=records,
        workers=workers,
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
    """Whole or not at all."""
    try:
        with atomic.drafted(path, force=force) as draft:
            draft.write_bytes(page)
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be written: {error.strerror}", "make room, or choose another place with --out"
        ) from error
