"""The reports that commands return: frozen dataclasses whose sorted dict is what `--json` prints.

Rates, accuracies, intervals and savings are fractions. Operations are multiply-accumulates. A value that was not
measured is null, and `reasons` says why.

A screen is drawn from the same report, so a screen never shows what `--json` does not hold. Field names are JSON keys:
renaming one breaks scripts.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from stm.codec import encode
from stm.config import Measured, Protection, Source
from stm.errors import listed
from stm.recipe import Recipe
from stm.units import interval, percent

REPORT_VERSION = 1  # the `schema_version` of every document; a key that is renamed or removed needs another one


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The environment in which a figure was measured.

    Args:
        device: as torch names it.
        name: of the processor or card.
        fallbacks: sentences that say which backend could not be used, and why.
        threads: per process.
        processes: that shared the work; a speed is that of all of them together.
    """

    stm: str
    torch: str
    device: str
    name: str
    dtype: str
    backend: str
    fallbacks: tuple[str, ...] = ()
    threads: int
    processes: int = 1

    @property
    def in_words(self) -> str:
        """Return all that matters for a figure, in one line."""
        # One format for screens, cards and pages, so that two figures of one machine can be told to be of one machine.
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        # A processor's name says that it is one; a card's name does not say which of several cards it is.
        on = self.name if self.device == "cpu" else f"{self.name} ({self.device})"
        processes = "" if self.processes == 1 else f"{self.processes} processes, each "
        return f"{on}, {processes}{threads}, {self.dtype}, backend {self.backend}"


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Multiply-accumulates of one image, in the paper's convention and honestly counted, and the shares saved.

    `stm.measure.flops` defines both counts.
    """

    paper: int
    honest: int
    paper_saving: float
    honest_saving: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """The fields of every report. `model` is the name that the user gave."""

    schema_version: int = REPORT_VERSION
    command: str
    model: str
    environment: Environment

    def to_json(self) -> str:
        """Return the report as one JSON document, keys sorted."""
        # NaN is not JSON: `allow_nan=False` makes it an error here instead of a document that no other reader takes.
        return json.dumps(encode(self), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True, kw_only=True)
class Evaluation(Measured):
    """One evaluation, with the values that a folder does not record.

    Speed depends on the machine, and a folder's bytes must not.

    Args:
        images_per_second: of the model's forward alone; None if nothing was timed.
        broken: why the first few images could not be read, one sentence each.
    """

    images_per_second: float | None = None
    broken: tuple[str, ...] = ()

    def recorded(self) -> Measured:
        """Return the part that a folder records."""
        # Field by field, since `vars` would also hand over the fields that a folder must not have.
        return Measured(**{field.name: getattr(self, field.name) for field in fields(Measured)})


class Figure(NamedTuple):
    """One figure that an evaluation measured.

    Args:
        name: the field of `Measured` that holds the value.
        ci: the 95% interval of the value, if it has one.
    """

    name: str
    value: float
    ci: tuple[float, float] | None = None

    def text(self, digits: int = 2) -> str:
        """Return the value in its unit: a drop in points, a p, nats, and a share in percent with so many digits."""
        match self.name:
            case "drop":
                return f"{100 * self.value:.2f}"
            case "mcnemar_p":
                return f"{self.value:.3g}"
            case "kl":
                return f"{self.value:.4f}"
            case _:
                return percent(self.value, digits)

    def interval(self) -> str:
        """Return the interval in the unit of `text`, or nothing."""
        if self.ci is None:
            return ""
        return interval(self.ci, 2) if self.name == "drop" else " to ".join(percent(end, 2) for end in self.ci)


def figures(measured: Measured, dense_ci: tuple[float, float] | None = None) -> tuple[Figure, ...]:
    """Return the figures of an evaluation that were measured, in the order in which every screen and page has them.

    Args:
        dense_ci: the interval of the dense model's top-1, which `Measured` does not hold.
    """
    # Each list of figures for people is made of this one, so that no screen, card or page lacks a figure of another.
    every = (
        ("dense_top1", dense_ci),
        ("top1", measured.top1_ci),
        ("top5", measured.top5_ci),
        ("drop", measured.drop_ci),
        ("mcnemar_p", None),
        ("agreement", None),
        ("kl", None),
    )
    values = ((name, getattr(measured, name), ci) for name, ci in every)
    return tuple(Figure(name, value, ci) for name, value, ci in values if value is not None)


def figure_rows(
    measured: Measured, labels: Mapping[str, str], dense_ci: tuple[float, float] | None = None
) -> list[tuple[str, str, str]]:
    """Return the rows of a table of figures: label, value and interval.

    Args:
        labels: by the name of the figure.
        dense_ci: see `figures`.
    """
    return [(labels[figure.name], figure.text(), figure.interval()) for figure in figures(measured, dense_ci)]


# Kept apart from `Evaluation`: a comparison has one set and many evaluations, and names the files of its set once.
@dataclass(frozen=True, kw_only=True)
class OfSet:
    """What an opened sample set leaves out.

    Args:
        skipped, skipped_files: files that were not taken for images: how many, and the names of the first few.
        fitted_on: images that decided the model's schedule, and so are in no number.
    """

    skipped: int = 0
    skipped_files: tuple[str, ...] = ()
    fitted_on: int = 0

    @property
    def skipped_notes(self) -> tuple[str, ...]:
        """Return a sentence about each kind that there is."""
        fitted = (f"{self.fitted_on:,} more images decided the schedule, and are in no number",)
        return skipped_notes(self.skipped, self.skipped_files) + (fitted if self.fitted_on else ())


def skipped_notes(count: int, files: Sequence[str]) -> tuple[str, ...]:
    """Return one sentence about `count` files that were not taken for images, or none if `count` is 0."""
    if not count:
        return ()
    taken = "files were not taken for images" if count > 1 else "file was not taken for an image"
    return (f"{count:,} {taken}: {listed(files, count)}",)


@dataclass(frozen=True, kw_only=True)
class Assessment(OfSet, Evaluation):
    """The evaluation of one model on one set."""


@dataclass(frozen=True, kw_only=True)
class Warned(Report):
    """A report that may warn of a loss beyond chance. `milder` is then a command line that loses less, if known."""

    warnings: tuple[str, ...] = ()
    milder: str | None = None


@dataclass(frozen=True, kw_only=True)
class EvalReport(Warned, Assessment):
    """`stm eval`."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The accuracy gate: the allowed drop of top-1 and the measured one, as fractions."""

    max_drop: float
    drop: float
    passed: bool


@dataclass(frozen=True, kw_only=True)
class ServedSpeed:
    """A compressed model beside its dense one, both after `optimize`, timed in turns on this machine.

    Args:
        batch_size: images per forward.
        ms_per_image, dense_ms_per_image: medians over the rounds.
        gain: how many times as fast as the dense model: the median over the rounds of the ratio within a round.
        gain_quartiles: the first and the third quartile of those ratios.
    """

    batch_size: int
    ms_per_image: float
    dense_ms_per_image: float
    gain: float
    gain_quartiles: tuple[float, float]
    rounds: int


@dataclass(frozen=True, kw_only=True)
class PushedFile:
    """A file of a push.

    `change` is added, changed, unchanged, deleted, or kept, if somebody else edited the file on the Hub.
    """

    name: str
    bytes: int
    change: str


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """A folder on the Hub. `created`: the repository is new. `commit` is null if nothing was written."""

    repo: str
    url: str
    revision: str | None = None
    # A commit, or a pull request with its commit; both are null after a dry run, or if every file was there already.
    commit: str | None = None
    pull_request: str | None = None
    created: bool = False
    dry_run: bool = False
    files: tuple[PushedFile, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PushReport(Report, Pushed):
    """`stm push`: `model` is the folder."""


@dataclass(frozen=True, kw_only=True)
class CompressReport(Warned):
    """`stm compress`. Savings are shares of the token-layers: the sum over blocks of the tokens that enter each.

    Args:
        asked_saving: the saving that was asked for. Under `staged` a rate stands for the paper's saving at that rate.
            Null if neither was given.
        saving: the saving that was reached.
        bytes: of model.safetensors.
    """

    output: str
    dry_run: bool = False
    # Copied from the config that the folder holds, so that a script need not open the folder.
    source: Source
    recipe: Recipe
    protection: Protection
    schedule: dict[str, Any]
    # What was asked for beside what was reached: tokens are whole, so the two may differ.
    asked_saving: float | None
    saving: float
    flops: Flops
    parameters: int
    bytes: int
    # Null if it was not measured or not asked for; `reasons` says which.
    eval: Assessment | None = None
    served: ServedSpeed | None = None
    gate: Gate | None = None
    push: Pushed | None = None
    notes: tuple[str, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class InfoReport(Report):
    """`stm info`: `config` is the document that the folder holds, or would hold if the model were saved."""

    config: dict[str, Any]
    tokens_per_block: tuple[int, ...]
    flops: Flops
    parameters: int
    source: Source
    measured: tuple[Measured, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ExportReport(Report):
    """`stm export`: the file, and in `notes` what it does not hold of the model.

    `reading` has the options that read an official file as this model.
    """

    output: str
    format: str
    source: Source
    tensors: int
    bytes: int
    notes: tuple[str, ...] = ()
    reading: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ListedModel:
    """A model with a short name.

    Args:
        top1: as its authors report it.
        bytes: of the file in the cache; null if it is not there.
    """

    name: str
    repo: str | None
    file: str | None
    license: str | None
    parameters: int
    tokens: int
    image_size: int
    top1: float | None
    cached: bool
    bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class ModelsReport(Report):
    """`stm models`."""

    models: tuple[ListedModel, ...]


@dataclass(frozen=True, kw_only=True)
class Guess:
    """One class of a prediction."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The most likely classes of one image, or why it could not be read."""

    file: str
    top5: tuple[Guess, ...] = ()
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class PredictReport(Report):
    """`stm predict`."""

    predictions: tuple[Prediction, ...]


@dataclass(frozen=True, kw_only=True)
class BackendStatus:
    """Whether a backend can be used here, and why or why not."""

    name: str
    available: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class EnvReport(Report):
    """`stm env`: versions of what is installed, devices, and each backend with its reason."""

    python: str
    platform: str
    packages: dict[str, str | None]  # null: not installed
    devices: tuple[str, ...]
    backends: tuple[BackendStatus, ...]
