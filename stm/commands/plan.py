"""`stm plan`: what each saving costs and keeps, and which one to take."""

import dataclasses
import shlex
from pathlib import Path
from typing import NamedTuple

from stm.artifact import atomic
from stm.bench import saving_table as savings
from stm.bench.recommend import Advice, advise
from stm.bench.timing import threads as on_threads
from stm.commands.draw_model import draw_model
from stm.commands.fit_set import check_fit_on, fit_set, set_notes
from stm.data.open import open_chosen
from stm.data.sets import SampleSet
from stm.errors import UsageError
from stm.findings import PlanReport
from stm.fitting import Fitting
from stm.fitting import fit as fitted
from stm.loading import open_classifier
from stm.measure.environment import environment_of
from stm.measure.table import as_csv
from stm.model.vim import ViM
from stm.options import EvalOptions, FitOptions, MergeOptions, ModelOptions, SetOptions
from stm.plots import plan as plots_plan
from stm.plots import style as plots
from stm.progress import OnProgress

PLANNED = ("plan.csv", "plan.json", "plan.png", "plan.svg")
# The options that name images: without trained weights there is nothing to look at them for.
_OF_IMAGES = (
    *("data", "split", "image_column", "label_column", "limit", "seconds"),
    *("fit_on", "fit_images", "no_cache"),
)
_NOTHING_TO_FIT = (
    "random weights have nothing to fit: the rows are those of --method staged, and the commands fit the real weights"
)
_CHOOSES = (
    "the figures are those of the flat cut; the command also tries others, on images of the fit, and may do better"
)


def plan(
    model: str,
    source: ModelOptions = ModelOptions(),
    merge: MergeOptions = MergeOptions(),
    fit: FitOptions = FitOptions(),
    *,
    data: str | Path | None = None,
    how: SetOptions = SetOptions(),
    limit: int | None = None,
    seconds: float | None = None,
    batch_size: int = 1,
    seed: int = 0,
    threads: int | None = None,
    rounds: int | None = None,
    random_weights: bool = False,
    out: str | Path | None = None,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> PlanReport:
    """Run `stm plan`: return what savings of 10% to 45% cost and keep on this machine, and the one to take.

    `stm.bench.recommend` has the rule of the recommendation, `stm.bench.saving_table` what is timed and how.

    Args:
        model, source: a dense MODEL, and how to open it; see `stm.load`.
        merge: how to merge at each saving, without a budget.
        fit: the images that a fitted schedule comes from. They are left out of every figure.
        data: a folder of images, with labels for the drop, or a set on the Hub; None: the embedded images. If `fit`
            names no others and there are enough, a fitted schedule comes from a part of them.
        how: which part of the set is read, and which columns.
        limit: the number of images, drawn by the seed; None: as many as the time allows.
        seconds: the time for the images, without the fit; None: `IMAGE_SECONDS`, or no bound if `limit` is given.
        batch_size: of the forwards that are timed.
        seed: draws the images, and those of the fit.
        threads, rounds, random_weights: as for `bench`. Random weights are timed only, by the preset staged.
        out: a folder for the table and its figure.
        force: replace a folder that holds nothing but these.

    Raises:
        UsageError: an impossible option, a model that is compressed already, or an output that cannot be written.
        StmError: what reading and fitting raise; matplotlib is not installed and a figure is wanted.
    """
    given = {"data": data, "limit": limit, "seconds": seconds, **vars(how), **vars(fit)}
    _check(merge, fit, given, batch_size, random_weights)
    # Measuring may take minutes, so the place of its result is checked first.
    if out is not None:
        plots.require()
        atomic.check(out, PLANNED, force=force)
    # A number of images is a bound of its own, so a time is set only if neither is given.
    if seconds is None and limit is None:
        seconds = savings.IMAGE_SECONDS
    images = EvalOptions(data=data, limit=limit, seed=seed or None, **vars(how))
    # Each printed command reads the model, merges, fits and measures as this run did; only the saving differs.
    again = (*source.words(), *merge.words(), *fit.words(), *images.words())
    with on_threads(threads):
        vim = draw_model(model, source) if random_weights else open_classifier(model, source, on_progress)
        if vim.plan is not None:
            raise UsageError(f"{model} is already compressed", "plan with its dense source")
        taken = _Images() if random_weights else _images(vim, source, merge, fit, images, on_progress)
        made = savings.table(
            vim,
            _without_fit(merge) if random_weights else merge,
            taken.samples,
            fitting=taken.fitting,
            seconds=seconds,
            batch_size=batch_size,
            rounds=rounds,
            command=lambda saving: shlex.join(["stm", "compress", model, "--saving", f"{saving:g}", *again]),
            on_progress=on_progress,
        )
        environment = environment_of(vim)  # within the block, so that it records the threads that were timed
    samples = taken.samples
    advice = advise(made.rows, made.n) if samples is not None else Advice(None, "the weights are random")
    report = PlanReport(
        command="plan",
        model=model,
        environment=environment,
        random_weights=random_weights,
        data=None if samples is None else samples.name,
        n=made.n,
        of=0 if samples is None else len(samples),
        seconds=None if samples is None else seconds,
        batch_size=batch_size,
        rows=made.rows,
        recommended=advice.recommended,
        fit=made.fit,
        output=None if out is None else str(out),
        files=() if out is None else PLANNED,
        notes=(
            *vim.config.extra_texts("notes"),
            *taken.notes,
            *_notes(merge, taken, random_weights),
        ),
        reasons=_reasons(samples, advice),
        **({} if samples is None else samples.of_set),
    )
    if out is not None:
        # Table, report and figure appear together: a reader never sees the figure of one run beside another's table.
        with atomic.replacing(out, PLANNED, force=force) as folder, plots.style():
            plots.save(plots_plan.planned(report), folder, "plan")
            measured = [row for row in report.rows if row.reason is None]
            (folder / "plan.csv").write_text(as_csv(measured), encoding="utf-8")
            (folder / "plan.json").write_text(report.to_json() + "\n", encoding="utf-8")
    return report


class _Images(NamedTuple):
    """The images to measure on, in random order, the fit, and notes about its images. Random weights have none."""

    samples: SampleSet | None = None
    fitting: Fitting | None = None
    notes: tuple[str, ...] = ()


def _check(
    merge: MergeOptions, fit: FitOptions, given: dict[str, object], batch_size: int, random_weights: bool
) -> None:
    """Raise UsageError for options that exclude each other, or a value that is none."""
    if batch_size < 1:
        raise UsageError(f"batch size is {batch_size}, expected at least 1")
    if merge.rate is not None or merge.saving is not None or merge.stages is not None:
        raise UsageError("a budget was given, and the plan is there to find one")
    if random_weights and any(given[name] for name in _OF_IMAGES):
        raise UsageError(
            "images were given, and random weights agree with nothing",
            "leave out --random-weights, or --data, --limit, --seconds and the options of the fit",
        )
    seconds = given["seconds"]
    if isinstance(seconds, int | float) and not seconds > 0:
        raise UsageError(f"seconds is {seconds:g}, expected more than 0")
    for name in fit.images_given:
        merge.check_fitted(name)
    data = given["data"]
    check_fit_on(data if isinstance(data, str | Path) else None, fit)


def _images(
    vim: ViM,
    source: ModelOptions,
    merge: MergeOptions,
    fit: FitOptions,
    images: EvalOptions,
    on_progress: OnProgress | None,
) -> _Images:
    """Return the images to measure on, and the fit on others if the schedule is a fitted one."""
    fits = merge.order == "fitted"
    splits = fits and images.data is not None and fit.fit_on is None
    # The limit is for the images that are left to measure on.
    opened, how = images.shared(fit.fit_on)
    if splits:
        opened = dataclasses.replace(opened, limit=None)
    samples = given = open_chosen(opened, vim.config, need_labels=False, token=source.token, on_progress=on_progress)
    fitting, notes = None, tuple[str, ...]()
    if fits:
        fit_images, left = fit_set(
            fit,
            vim.config,
            samples,
            split=splits,
            limit=images.limit,
            seed=images.draws_by,
            how=how,
            token=source.token,
            on_progress=on_progress,
        )
        assert left is not None  # something was given to measure on
        samples = left
        fitting = fitted(vim, fit_images, keep=not fit.no_cache, on_progress=on_progress)
        notes = set_notes(fit_images, given if splits else None)
    # Shuffled, because time may run out after any of them, and those seen so far must be a random draw.
    return _Images(samples.shuffled(images.draws_by), fitting, notes)


def _without_fit(merge: MergeOptions) -> MergeOptions:
    """Return the options with the order staged instead of a fitted one, which is the preset staged instead of stm."""
    return dataclasses.replace(merge, schedule="staged") if merge.order == "fitted" else merge


def _notes(merge: MergeOptions, taken: _Images, random_weights: bool) -> tuple[str, ...]:
    """Return what a reader of the rows should know."""
    if random_weights:
        return (_NOTHING_TO_FIT,) if merge.order == "fitted" else ()
    chooses = taken.fitting is not None and taken.fitting.images.judges is not None
    return (*taken.notes, *([_CHOOSES] if chooses else []))


def _reasons(samples: SampleSet | None, advice: Advice) -> dict[str, str]:
    """Return why each part of the report that is null is null."""
    reasons = {} if advice.reason is None else {"recommended": advice.reason}
    if samples is None:
        return reasons | dict.fromkeys(("agreement", "kl", "top1", "drop"), "the weights are random")
    if not samples.labelled:
        reasons |= dict.fromkeys(("top1", "drop"), f"{samples.name} has no labels")
    return reasons
