"""The reports of the commands that measure and compare: bench, plan, compare, sweep, explain and report.

The rules of `stm.reports` hold. The two modules are apart because the runtime needs those reports, but not these.
"""

from dataclasses import dataclass, field

from stm import recipe
from stm.config import Size
from stm.evaluations import Assessment, Evaluation, OfSet
from stm.reports import Flops, Ran, Warned


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One variant at one batch size.

    Args:
        ms_per_image, ms_iqr: the median over the rounds, and the distance between the quartiles.
        peak_bytes: the most bytes that tensors held during a forward, without weights and images; None if torch cannot
            tell.
        gain: how many times as fast as the first variant: the median over the rounds.
        gemm_ms: milliseconds per image of the matrix products alone; None for a variant that is not a plain ViM.
        gemm_ratio: time of the forward over that of the matrix products alone: the median over the rounds.
    """

    variant: str
    batch_size: int
    ms_per_image: float
    ms_iqr: float
    images_per_second: float
    peak_bytes: int | None
    flops: Flops
    gain: float
    # The products are the part of the time that no scan kernel can lower, so the ratio shows what is left to gain.
    gemm_ms: float | None
    gemm_ratio: float | None
    rounds: int


@dataclass(frozen=True, kw_only=True)
class BenchReport(Ran):
    """`stm bench`. The three gains and times below are those of the first batch size.

    Args:
        flops_gain: the gain that the honest count of FLOPs promises, dense over compressed.
        wall_clock_gain: the gain that the clock shows.
        gemm_ms: milliseconds per image of the dense model's matrix products alone, of an int8 model in float32.
        runtimes: the version of each runtime that ran a rival, by name.
    """

    random_weights: bool
    image_size: Size
    tokens_per_block: tuple[int, ...]
    rows: tuple[BenchRow, ...]
    # Side by side, because the first is the promise and the second is what a user gets.
    flops_gain: float | None
    wall_clock_gain: float | None
    gemm_ms: float
    runtimes: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """One saving; 0 is the dense model. If no schedule reaches the saving, `reason` says why and the rest is null.

    All intervals (`_ci`) are at 95%.

    Args:
        asked_saving: what `--saving` asks for.
        saving: the share of the token-layers that the schedule saves.
        rate: null, because the rows are by saving.
        gain: how many times as fast as the dense model, both as they were loaded: the median over the rounds. Its
            interval is null below six rounds.
        agreement, kl: with the dense model, on the report's images.
        top1, drop: null without labels. The dense model's `drop_ci` is that of a model that loses nothing: no narrower
            interval is possible on these images.
        compress: the command line that makes this model.
    """

    asked_saving: float
    # What follows from the schedule
    saving: float | None = None
    rate: float | None = None
    tokens_per_block: tuple[int, ...] | None = None
    flops: Flops | None = None
    # What was timed
    ms_per_image: float | None = None
    ms_iqr: float | None = None
    gain: float | None = None
    gain_ci: tuple[float, float] | None = None
    # What was measured on images
    agreement: float | None = None
    agreement_ci: tuple[float, float] | None = None
    kl: float | None = None
    kl_ci: tuple[float, float] | None = None
    top1: float | None = None
    drop: float | None = None
    drop_ci: tuple[float, float] | None = None
    rounds: int | None = None
    compress: str | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Recommended:
    """The saving that `stm plan` recommends; `stm.bench.recommend` has the rule.

    Args:
        saving: what `--saving` asks for. The other figures are those of its row.
        by: the figure that decided: drop, agreement or kl.
        command: the command line that makes this model.
        why: the rule as it was applied.
    """

    saving: float
    gain: float
    gain_ci: tuple[float, float] | None
    drop: float | None
    drop_ci: tuple[float, float] | None
    agreement: float | None
    agreement_ci: tuple[float, float] | None
    kl: float | None
    kl_ci: tuple[float, float] | None
    by: str
    command: str
    why: str


@dataclass(frozen=True, kw_only=True)
class PlanReport(OfSet, Ran):
    """`stm plan`: for each saving, its cost and what it keeps, and the saving to take.

    Args:
        data, n: the set and the number of its images on which the rows were measured; None and 0 if none were.
        of: the images that the set could have given; `n` is smaller if the time ran out.
        seconds: the time limit for the images; None if their number was the limit.
        recommended: None if no saving can be recommended; `reasons` then says why.
        fit: what decided the schedules of the rows, if they are fitted. No image of it is in any figure.
        output: the folder that holds the table and its figure, if one was asked for.
    """

    random_weights: bool
    data: str | None
    n: int
    of: int
    seconds: float | None
    batch_size: int
    rows: tuple[PlanRow, ...]
    recommended: Recommended | None = None
    fit: recipe.Fit | None = None
    output: str | None = None
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CompareRow(Evaluation):
    """One method of a comparison.

    Args:
        method, title: the name on the command line, and the name for people.
        schedule: of ours, the order of its merges; of a peer, the blocks after which it acts: "published" or "stm".
        weights: of ours, the rule of its weights; None for a peer.
        acts_after: the blocks after which tokens leave.
        static: whether the same tokens leave in every image.
        sibling: whether this is another dense model.
        stm_ahead, stm_ahead_ci, stm_p: the accuracy of ours minus this method's, its interval, and McNemar's test.
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
    # Paired on the same images, which tells methods apart that two intervals beside each other would not.
    stm_ahead: float | None = None
    stm_ahead_ci: tuple[float, float] | None = None
    stm_p: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CompareReport(OfSet, Ran):
    """`stm compare`.

    Args:
        target: the share of the dense model's honest count that every method is made to save.
        fit: what decided the schedule of the method stm. None of its images is among the n.
        output: the folder that holds the table and its figure, if one was asked for.
    """

    data: str
    n: int
    seed: int
    limit: int | None
    # The request, and the saving that all methods were solved for
    rate: float | None
    saving: float | None
    at: str
    target: float
    fit: recipe.Fit | None
    rows: tuple[CompareRow, ...]
    output: str | None = None
    files: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SweepRow(Evaluation):
    """One cell of a sweep: a preset, a peer, the dense model or a sibling.

    A preset of the grid has a value on every axis. A peer, which may be another preset, has `method` and the `rate` of
    ours whose saving it matches.

    Args:
        cut: of a fitted schedule, the candidate that was taken; see `stm.recipe.Fit`.
        conv: plain or span.
        static: whether the same tokens leave in every image.
        sibling: whether this is another dense model.
    """

    # The axes; null if a row has no place on one
    method: str
    rate: float | None = None
    sides: str | None = None
    schedule: str | None = None
    weights: str | None = None
    step_scale: float | None = None
    conv: str | None = None
    tokens_per_side: int | None = None
    # What the cell is
    cut: str | None = None
    tokens_per_block: tuple[int, ...]
    tokens_left: int
    static: bool
    sibling: bool = False
    flops: Flops


@dataclass(frozen=True, kw_only=True)
class SweepReport(OfSet, Ran):
    """`stm sweep`.

    Args:
        refused: the cells that no schedule can fill, and why.
        resumed: the number of cells that an earlier run had finished.
        fit: the images that decided all fitted schedules, None if there is no such schedule. No image of it is among
            the n. Which candidate a cell took is its `cut`.
    """

    data: str
    n: int
    seed: int
    limit: int | None
    rows: tuple[SweepRow, ...]
    refused: dict[str, str]
    resumed: int
    fit: recipe.Fit | None
    output: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Fit:
    """The curve change = amplitude * exp(-rate * distance), fitted by least squares on the logarithm.

    `r2` is the fit's, on the logarithm too.
    """

    amplitude: float
    rate: float
    r2: float


@dataclass(frozen=True, kw_only=True)
class ExplainReport(Ran):
    """`stm explain`. Changes are relative changes of the class token's state, |h - h'| / |h|, means over the images.

    Args:
        fading: by side of the class token, the fit of the change in `block` over the distance of one merge before it.
        losses: by rule, the change in the block after one token is removed or merged, a mean over blocks, places and
            sides.
        plan_change: the change that the whole plan makes in each block, a mean over both walks.
        costs_from: the images that the costs of merging come from, in words.
        files: the names of the files in `output`.
    """

    output: str
    data: str
    images: tuple[str, ...]
    block: int
    tokens_per_block: tuple[int, ...]
    fading: dict[str, Fit | None]  # null: too few changes to fit a curve
    losses: dict[str, float]
    plan_change: tuple[float, ...]
    costs_from: str = ""
    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PageReport(Warned):
    """`stm report`: the page that was written, and its findings.

    `missing` tells, for each empty section, which command would fill it.
    """

    output: str
    bytes: int
    eval: Assessment
    changed: tuple[str, ...]
    missing: dict[str, str]
