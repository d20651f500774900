"""What the commands return that measure and compare: bench, plan, compare, sweep, explain and report. See
stm/reports.py."""

from dataclasses import dataclass, field

from stm.reports import Assessment, Evaluation, Flops, OfSet, Report


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One variant at one batch size.

    Args:
        ms_per_image, ms_iqr: the median over the rounds, and the distance between the quartiles.
        peak_bytes: the most that tensors held during a forward, weights and images not counted; None where torch cannot
            say.
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
    """`stm bench`. The three figures are those of the first batch size: what FLOPs promise (the honest count) and what
    the clock says of the compressed model against the dense one, and the dense model's matrix products alone, an
    image."""

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
        agreement, kl: with the dense model, on the report's images; beside each its 95% interval.
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
    agreement_ci: tuple[float, float] | None = None
    kl: float | None = None
    kl_ci: tuple[float, float] | None = None
    rounds: int | None = None
    compress: str | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class PlanReport(OfSet, Report):
    """`stm plan`: what rates cost and keep.

    Args:
        data, n: the set and the number of its images that the agreement was measured on; None and 0 if it was not
            measured.
        of: the images of the set that could have been used; fewer were if the time was up.
        seconds: the time that was given to the images; None if their number was.
    """

    random_weights: bool
    data: str | None
    n: int
    of: int
    seconds: float | None
    batch_size: int
    rows: tuple[PlanRow, ...]
    notes: tuple[str, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)


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
class CompareReport(OfSet, Report):
    """`stm compare`. `target` is the share of the dense model's honest count that every method is solved for; `output`
    the folder that holds the table and its figure, if one was asked for."""

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
    """One cell of a sweep: a preset's (all axes), a peer's (`method` and the `rate` that it saves as much as), "dense",
    or a sibling's.

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
class SweepReport(OfSet, Report):
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
        losses: by rule, the change in the block after one token is removed or merged, a mean over blocks, places and
            sides.
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
    """`stm report`: the page that was written, and what it found. `missing` says of a section that is empty what would
    fill it."""

    output: str
    bytes: int
    eval: Assessment
    changed: tuple[str, ...]
    missing: dict[str, str]
