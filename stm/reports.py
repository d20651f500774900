"""What commands return: frozen dataclasses whose sorted dict is what `--json` prints.

Rates, accuracies, intervals and savings are fractions; operations are multiply-accumulates; what was not measured is
null, and `reasons` says why.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from stm.codec import encode
from stm.config import Measured, Protection, Recipe, Source

REPORT_VERSION = 1


class Progress(NamedTuple):
    """How far a long piece of work is. `total` is None where it is not known."""

    stage: str
    done: int
    total: int | None
    unit: str


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What a figure was measured on. `device` as torch names it, `name` the processor's or card's; fallbacks are sentences.

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
class EvalReport(Report, Evaluation):
    """`stm eval`."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The accuracy gate: the drop that was allowed and the drop that was found, as fractions."""

    max_drop: float
    drop: float
    passed: bool


@dataclass(frozen=True, kw_only=True)
class PushedFile:
    """A file of a push and what becomes of it there: added, changed, unchanged, kept (somebody wrote another) or deleted."""

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

    `saving` was reached; `asked_saving` is what was asked for, which under `staged` a rate stands for (null where none does).
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
    eval: Evaluation | None = None
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
    """`stm export`: the file, and what of the model it does not hold."""

    output: str
    format: str
    source: Source
    tensors: int
    bytes: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ListedModel:
    """A model with a short name. `top1` is its authors'; `bytes` are those of the file in the cache, null where it is not there."""

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
class BenchRow:
    """One variant at one batch size.

    Args:
        ms_per_image, ms_iqr: the median over the rounds, and the distance between the quartiles.
        peak_bytes: the most that tensors held during a forward, weights and images not counted; None where torch cannot say.
        gain: how many times as fast as the first variant: the median over the rounds.
        gemm_ms: its matrix products alone, an image; None for what is not a plain ViM.
        gemm_ratio: its forward to those: the median over the rounds.
    """

    variant: str
    batch_size: int
    ms_per_image: float
    ms_iqr: float
    images_per_second: float
    peak_bytes: int | None
    flops: Flops
    gain: float
    gemm_ms: float | None
    gemm_ratio: float | None
    rounds: int


@dataclass(frozen=True, kw_only=True)
class BenchReport(Report):
    """`stm bench`. The three figures are those of the first batch size: what FLOPs promise (the honest count) and what the clock
    says of the compressed model against the dense one, and the dense model's matrix products alone, an image."""

    random_weights: bool
    image_size: int
    tokens_per_block: tuple[int, ...]
    rows: tuple[BenchRow, ...]
    flops_gain: float | None
    wall_clock_gain: float | None
    gemm_ms: float
    notes: tuple[str, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """One rate; 0 is the dense model. Where it cannot be had, `reason` says why and the rest is null.

    Args:
        saving: the share of the token-layers, reached.
        gain: how many times as fast as the dense model: the median over the rounds.
        agreement, kl: with the dense model, on the report's images.
        compress: the command line that makes this model.
    """

    rate: float
    saving: float | None = None
    tokens_per_block: tuple[int, ...] | None = None
    flops: Flops | None = None
    ms_per_image: float | None = None
    ms_iqr: float | None = None
    gain: float | None = None
    agreement: float | None = None
    kl: float | None = None
    rounds: int | None = None
    compress: str | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class PlanReport(Report):
    """`stm plan`: `n` images of `data` for the agreement, None where it was not measured."""

    random_weights: bool
    data: str | None
    n: int
    batch_size: int
    rows: tuple[PlanRow, ...]
    notes: tuple[str, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)


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


@dataclass(frozen=True, kw_only=True)
class CompareRow(Evaluation):
    """One method of a comparison.

    Args:
        method, title: its name on the command line, and for people.
        schedule: the order of ours; for a peer where it acts: "published" or "stm".
        weights: of ours.
        acts_after: the blocks after which tokens leave.
        static: whether the same tokens leave in every image.
        sibling: whether it is another dense model.
        stm_ahead, stm_ahead_ci, stm_p: the accuracy of ours minus this one's, its interval, and McNemar's test.
    """

    method: str
    title: str
    schedule: str | None = None
    weights: str | None = None
    acts_after: tuple[int, ...] = ()
    tokens_per_block: tuple[int, ...]
    tokens_left: int
    static: bool
    sibling: bool = False
    flops: Flops
    stm_ahead: float | None = None
    stm_ahead_ci: tuple[float, float] | None = None
    stm_p: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CompareReport(Report):
    """`stm compare`. `target` is the share of the dense model's honest count that every method is solved for; `output` the
    folder that holds the table and its figure, if one was asked for."""

    data: str
    n: int
    seed: int
    limit: int | None
    rate: float | None
    saving: float | None
    at: str
    target: float
    rows: tuple[CompareRow, ...]
    output: str | None = None
    files: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SweepRow(Evaluation):
    """One cell of a sweep: a preset's (all axes), a peer's (`method` and the `rate` that it saves as much as), "dense", or a sibling's.

    Args:
        conv: plain or span.
        static: whether the same tokens leave in every image.
        sibling: whether it is another dense model.
    """

    method: str
    rate: float | None = None
    sides: str | None = None
    schedule: str | None = None
    weights: str | None = None
    step_scale: float | None = None
    conv: str | None = None
    tokens_per_side: int | None = None
    tokens_per_block: tuple[int, ...]
    tokens_left: int
    static: bool
    sibling: bool = False
    flops: Flops


@dataclass(frozen=True, kw_only=True)
class SweepReport(Report):
    """`stm sweep`. `refused` says which cells cannot be had and why; `resumed` how many an earlier run had finished."""

    data: str
    n: int
    seed: int
    limit: int | None
    rows: tuple[SweepRow, ...]
    refused: dict[str, str]
    resumed: int
    output: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Fit:
    """change = amplitude * exp(-rate * distance), by least squares on the logarithm; r2 is of the logarithm."""

    amplitude: float
    rate: float
    r2: float


@dataclass(frozen=True, kw_only=True)
class ExplainReport(Report):
    """`stm explain`. Changes are relative ones of the class token's state, |h - h'| / |h|, means over the images.

    Args:
        fading: by side of the class token, how the change in `block` falls with the distance of one merge before it.
        losses: by rule, the change in the block after one token is removed or merged, a mean over blocks, places and sides.
        plan_change: what the whole plan changes in each block, a mean over both walks.
        files: what `output` holds.
    """

    output: str
    data: str
    images: tuple[str, ...]
    block: int
    tokens_per_block: tuple[int, ...]
    fading: dict[str, Fit | None]
    losses: dict[str, float]
    plan_change: tuple[float, ...]
    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PageReport(Report):
    """`stm report`: the page that was written, and what it found. `missing` says of a section that is empty what would fill it."""

    output: str
    bytes: int
    eval: Evaluation
    changed: tuple[str, ...]
    missing: dict[str, str]
