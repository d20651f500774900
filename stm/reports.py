"""The reports that commands return: frozen dataclasses whose sorted dict is what `--json` prints.

Rates, accuracies, intervals and savings are fractions. Operations are multiply-accumulates. A value that was not
measured is null, and `reasons` says why.

A screen is drawn from the same report, so a screen never shows what `--json` does not hold. Field names are JSON keys:
renaming one breaks scripts.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from stm.codec import encode
from stm.config import Measured, Protection, Size, Source
from stm.evaluations import Assessment
from stm.notebook import as_html
from stm.recipe import Recipe

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
        # One format for screens, cards and pages: two figures of one machine then bear the same words.
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        # A machine has one kind of processor, but it may have several cards of one name.
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
    """The fields of every report. `model` is the name that the user gave.

    `environment` is null if nothing was run.
    """

    schema_version: int = REPORT_VERSION
    command: str
    model: str
    environment: Environment | None = None

    def to_json(self) -> str:
        """Return the report as one JSON document, keys sorted."""
        # NaN is not JSON: `allow_nan=False` makes it an error here instead of a document that no other reader takes.
        return json.dumps(encode(self), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)

    def _repr_html_(self) -> str:
        """Return the report as a notebook shows it."""
        return as_html(self)


@dataclass(frozen=True, kw_only=True)
class Ran(Report):
    """A report of a command that ran something, in the environment that it names."""

    environment: Environment


@dataclass(frozen=True, kw_only=True)
class Warned(Ran):
    """A report that may warn of a loss beyond chance. `milder` is then a command line that loses less, if known."""

    warnings: tuple[str, ...] = ()
    milder: str | None = None


@dataclass(frozen=True, kw_only=True)
class EvalReport(Warned, Assessment):
    """`stm eval`. `notes` says if the dense model beside it is the same model at another image size.

    Args:
        feature_change: of a backbone, which has no logits: how far merging moves its features; see
            `stm.measure.judge.feature_change`. Null for a classifier.
    """

    feature_change: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The accuracy gate: the allowed drop of top-1 and the measured one, as fractions."""

    max_drop: float
    drop: float
    passed: bool


@dataclass(frozen=True, kw_only=True)
class KlGate:
    """The gate on what int8 costs: the allowed KL(float32 || int8) of the compressed model and the measured one."""

    max_kl: float
    kl: float
    passed: bool


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """One number that decided a verdict, beside its bound.

    Args:
        name: max_drop or max_kl, the gates; drop_ci, chance; or the budget or outcome that is out of reach.
        bound: the number asked for, as the library takes it: a drop is a fraction. Of drop_ci it is 0.
        measured: the number that met or missed it. Of drop_ci it is the lower end of the 95% interval of the drop; of
            what is out of reach the nearest possible value, null if there is none.
        n: the images that it was measured on; null if none were needed.
    """

    name: str
    bound: float
    measured: float | None
    met: bool
    n: int | None = None


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
class PushReport(Ran, Pushed):
    """`stm push`: `model` is the folder."""


@dataclass(frozen=True, kw_only=True)
class CompressReport(Warned):
    """`stm compress`. Savings are shares of the token-layers: the sum over blocks of the tokens that enter each.

    Args:
        asked_saving: the saving that was asked for. Under `staged` a rate stands for the paper's saving at that rate.
            Null if neither was given.
        saving: the saving that was reached.
        bytes: of model.safetensors.
        verdict, decided: accepted, regression or not_measured, and the numbers that decided: see `stm.verdicts.judged`.
        rounding: the int8 model against the same model in float32.
        feature_change: as in `EvalReport`. A backbone has this in place of `eval`.
    """

    output: str
    dry_run: bool = False
    verdict: str
    decided: tuple[Criterion, ...] = ()
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
    rounding: Measured | None = None
    kl_gate: KlGate | None = None
    feature_change: float | None = None
    push: Pushed | None = None
    exports: tuple[str, ...] = ()  # what a recipe's key export asked for
    notes: tuple[str, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class InfeasibleReport(Report):
    """`stm compress` of what no schedule of the model reaches; nothing was written. `reason`: the error's sentence."""

    verdict: str
    decided: tuple[Criterion, ...]
    reason: str
    hint: str | None = None


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
class ExportCheck:
    """An export, run in its runtime in a process of its own, beside the model that it is of.

    Args:
        runtime, version: that ran it.
        images: photographs and noise.
        batch_sizes: in which the images came.
        difference: the largest difference of an output, as a share of the largest output.
        tolerance: that the difference keeps to.
        agreement: the share of images with the same first class; null for features.
        ms_per_image, own_ms_per_image: of the runtime and of ours, at the first batch size, with `threads` threads.
    """

    runtime: str
    version: str
    images: int
    batch_sizes: tuple[int, ...]
    difference: float
    tolerance: float
    agreement: float | None
    ms_per_image: float
    own_ms_per_image: float
    threads: int


@dataclass(frozen=True, kw_only=True)
class ExportReport(Ran):
    """`stm export`: the file, and in `notes` what it does not hold of the model.

    `reading` has the options that read an official file as this model. `input`, `result`, `opset` and `check` are of
    the formats of other runtimes.
    """

    output: str
    format: str
    source: Source
    tensors: int
    bytes: int
    notes: tuple[str, ...] = ()
    reading: dict[str, Any] = field(default_factory=dict)
    input: str | None = None
    result: str | None = None
    opset: int | None = None
    check: ExportCheck | None = None


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
    image_size: Size
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
class PredictReport(Ran):
    """`stm predict`."""

    predictions: tuple[Prediction, ...]


@dataclass(frozen=True, kw_only=True)
class BackendStatus:
    """Whether a backend can be used here, and why or why not."""

    name: str
    available: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class EnvReport(Ran):
    """`stm env`: versions of what is installed, devices, and each backend with its reason.

    Args:
        packages: versions by name; null: not installed.
        products: who multiplies matrices for a loaded model on the processor, and why.
    """

    python: str
    platform: str
    packages: dict[str, str | None]
    devices: tuple[str, ...]
    products: str
    backends: tuple[BackendStatus, ...]
