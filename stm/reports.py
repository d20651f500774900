"""What commands return: frozen dataclasses whose sorted dict is what `--json` prints.

Rates, accuracies, intervals and savings are fractions; operations are multiply-accumulates; what was not measured is
null, and `reasons` says why.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from stm.codec import encode
from stm.config import Measured, Protection, Recipe, Source
from stm.errors import listed

REPORT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What a figure was measured on. `device` as torch names it, `name` the processor's or card's; fallbacks are
    sentences.

    `threads` are each process's; a speed is that of all `processes` together.
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
        """All that matters for a figure, in one line."""
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        on = self.name if self.device == "cpu" else f"{self.name} ({self.device})"
        each = "" if self.processes == 1 else f"{self.processes} processes, each "
        return f"{on}, {each}{threads}, {self.dtype}, backend {self.backend}"


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Multiply-accumulates of one image: in the paper's convention and honestly counted, and the shares saved."""

    paper: int
    honest: int
    paper_saving: float
    honest_saving: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """What every report carries. `model` is the name that the user gave."""

    schema_version: int = REPORT_VERSION
    command: str
    model: str
    environment: Environment

    def to_json(self) -> str:
        """The report as one JSON document, keys sorted."""
        return json.dumps(encode(self), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True, kw_only=True)
class Evaluation(Measured):
    """One evaluation with what a folder does not record: its speed, and why the first few images could not be read."""

    images_per_second: float | None = None
    broken: tuple[str, ...] = ()

    def recorded(self) -> Measured:
        """What a folder records of it."""
        return Measured(**{field.name: getattr(self, field.name) for field in fields(Measured)})


@dataclass(frozen=True, kw_only=True)
class OfSet:
    """What a report says of the sample set that was opened: how many of its files were not taken for images, and the
    first few's names."""

    skipped: int = 0
    skipped_files: tuple[str, ...] = ()

    @property
    def skipped_notes(self) -> tuple[str, ...]:
        """The sentence about them, if there are any."""
        return skipped_notes(self.skipped, self.skipped_files)


def skipped_notes(count: int, files: Sequence[str]) -> tuple[str, ...]:
    """How many files were not taken for images, and which: one sentence, or none."""
    if not count:
        return ()
    taken = "files were not taken for images" if count > 1 else "file was not taken for an image"
    return (f"{count:,} {taken}: {listed(files, count)}",)


@dataclass(frozen=True, kw_only=True)
class Assessment(OfSet, Evaluation):
    """The evaluation of one model on one set."""


@dataclass(frozen=True, kw_only=True)
class EvalReport(Report, Assessment):
    """`stm eval`."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The accuracy gate: the drop that was allowed and the drop that was found, as fractions."""

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
        gain_quartiles: of those ratios.
    """

    batch_size: int
    ms_per_image: float
    dense_ms_per_image: float
    gain: float
    gain_quartiles: tuple[float, float]
    rounds: int


@dataclass(frozen=True, kw_only=True)
class PushedFile:
    """A file of a push and what becomes of it there: added, changed, unchanged, kept (somebody wrote another) or
    deleted."""

    name: str
    bytes: int
    change: str


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """A folder on the Hub. `created`: the repository is new; `commit` is null where nothing was written."""

    repo: str
    url: str
    revision: str | None = None
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
class CompressReport(Report):
    """`stm compress`. `bytes` are those of model.safetensors; savings are shares of the token-layers.

    `saving` was reached; `asked_saving` is what was asked for, which under `staged` a rate stands for (null where none
    does).
    """

    output: str
    dry_run: bool = False
    source: Source
    recipe: Recipe
    protection: Protection
    schedule: dict[str, Any]
    asked_saving: float | None
    saving: float
    flops: Flops
    parameters: int
    bytes: int
    eval: Assessment | None = None
    served: ServedSpeed | None = None
    gate: Gate | None = None
    push: Pushed | None = None
    notes: tuple[str, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class InfoReport(Report):
    """`stm info`: `config` is the document that the folder holds, or would hold."""

    config: dict[str, Any]
    tokens_per_block: tuple[int, ...]
    flops: Flops
    parameters: int
    source: Source
    measured: tuple[Measured, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ExportReport(Report):
    """`stm export`: the file, and what of the model it does not hold. `reading`: the options that read an official file
    as this model."""

    output: str
    format: str
    source: Source
    tensors: int
    bytes: int
    notes: tuple[str, ...] = ()
    reading: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ListedModel:
    """A model with a short name. `top1` is its authors'; `bytes` are those of the file in the cache, null where it is
    not there."""

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
    packages: dict[str, str | None]
    devices: tuple[str, ...]
    backends: tuple[BackendStatus, ...]
