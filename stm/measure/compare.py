"""Methods side by side on the same images: the rows of the paper's Table 2, at one saving.

All models of a table see a batch before the next one is decoded, so that images are read once, the dense model runs
once, and what slows the machine down for a while slows all of them.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stm.bake import bake, bake_again
from stm.config import ModelConfig
from stm.data.sets import Batch, SampleSet, batches_of, iterate, workers_for
from stm.distributed import ALONE, World
from stm.errors import UsageError, check_choice
from stm.findings import CompareRow
from stm.fitting import Fitting, budget_of
from stm.measure import flops
from stm.measure.equal_cost import solve_peer, solve_preset
from stm.measure.evaluate import Run, Timing, evaluating, logits_of, recorded, same_work, timed
from stm.measure.records import Record
from stm.measure.stats import compared, summarize
from stm.merging.budget import NEAR
from stm.merging.plan import Plan
from stm.model.vim import ViM
from stm.options import PRESETS, MergeOptions
from stm.peers import DEFAULT, PEERS, suited
from stm.peers.peer import Peer
from stm.progress import Meter, OnProgress
from stm.recipe import PRESET_NAMES
from stm.reports import Flops

# What the presets are called in a table, ours first: the rows that all others are solved for.
TITLES = {"stm": "STM, fitted (ours)", "staged": "STM, staged", "paper": "STM, the paper's form"}
OWN_METHODS = PRESET_NAMES
assert tuple(TITLES) == OWN_METHODS
DEFAULT_SAVING = 0.2
AT = ("published", "stm", "both")


@dataclasses.dataclass(frozen=True)
class Contender:
    """A model to be measured, and the part of its row that is known beforehand."""

    model: ViM
    known: dict[str, Any]

    @property
    def method(self) -> str:
        name: str = self.known["method"]
        return name


class Race(NamedTuple):
    """The run of each contender, and the dense model's logits: one tensor per batch of this process."""

    runs: list[Run]
    logits: list[Tensor]


def contenders(
    dense: ViM,
    *,
    methods: Sequence[str] | None = None,
    saving: float | None = None,
    rate: float | None = None,
    at: str = "published",
    also: Mapping[str, ViM] | None = None,
    seed: int = 0,
    fitting: Callable[[], Fitting] | None = None,
    world: World = ALONE,
    on_progress: OnProgress | None = None,
) -> list[Contender]:
    """Return the dense model, our presets, the peers, and other dense models, in the order of the table.

    Args:
        dense: what all of them are made of.
        methods: names of `OWN_METHODS` and `PEERS`; by default all of ours and the peers of `DEFAULT`. The method stm
            and random pruning are always rows.
        saving: the share of the token-layers that ours saves. The honest saving that this reaches is what all others
            are solved for. `DEFAULT_SAVING` if no rate is given.
        rate: instead of a saving, the paper's rate, for all presets; peers are solved for the honest saving that ours
            reaches.
        at: where peers act: "published", "stm" (after the blocks after which ours merges), or "both": one row each.
        also: other dense models, by name.
        seed: draws what random pruning removes, and the pictures that ours is fitted on.
        fitting: makes the fit of ours, once all else is checked; None: on pictures that need no data.
        world: the processes that make the same contenders; the first one fits.

    Raises:
        UsageError: an unknown name, a budget out of reach, or another model that takes other images.
    """
    names = _names(methods, dense.config.model)
    check_choice("at", at, AT)
    if rate is not None and saving is not None:
        raise UsageError("rate and saving were given, expected only one of them")
    check_dense(dense)
    for name, other in (also or {}).items():
        check_sibling(dense, name, other)
    budget = MergeOptions(rate=rate, saving=DEFAULT_SAVING if rate is None and saving is None else saving)
    if budget_of(dense.config.model, budget)[1] == 0:
        raise UsageError("a saving of 0 leaves nothing to compare", "give a saving above 0")
    (ours,) = baked_alike(
        dense,
        lambda: [bake(dense, budget, fitting=fitting() if fitting else None, seed=seed, on_progress=on_progress)],
        world,
    )
    target = flops.count(ours.config).honest_saving
    places = [step.after for step in ours.schedule.steps]
    out = [_contender("dense", "dense", dense, Plan(), flops.count(dense.config))]
    for name in names:
        if name == "stm":
            out.append(_of_preset("stm", ours, target))
        elif name in OWN_METHODS:
            if rate is None:
                out.append(_of_preset(name, solve_preset(dense, name, target)[0], target))
            else:
                out.append(_of_preset(name, bake(dense, dataclasses.replace(budget, method=name)), target, rate))
        else:
            for where in ("published", "stm") if at == "both" else (at,):
                out.append(_of_peer(dense, name, where, target, places, seed))
    for name, other in (also or {}).items():
        out.append(_sibling(dense, name, other))
    return out


def baked_alike(dense: ViM, make: Callable[[], list[ViM]], world: World) -> list[ViM]:
    """Return what the first process makes of the dense model, in every process.

    Another machine may round the costs of a fit otherwise, and then merge other tokens.
    """
    made = make() if world.first else []
    configs = world.broadcast([small.config for small in made])
    return made if world.first else [bake_again(dense, config) for config in configs]


class _Runner:
    """One contender on its way through the batches: its records in the set's order, and its time in each process."""

    def __init__(self, contender: Contender, processes: int) -> None:
        self.contender = contender
        self._records: list[Record] = []
        self._timings: list[list[Timing]] = [[] for _ in range(processes)]
        self._warm = False

    def score(
        self, samples: SampleSet, batch: Batch, dense_logits: Tensor | None, on_images: Callable[[int, str], None]
    ) -> tuple[list[Record], Timing, Tensor | None]:
        """Return the records of a batch, its time, and its logits (B, classes).

        Args:
            dense_logits: what the records are compared with; None: these are the dense model's own.
            on_images: called with a number of images, whenever some have passed, and with the method.
        """
        logits, seconds = None, 0.0
        if batch.indices:
            files = [samples.samples[index].file for index in batch.indices]
            if not self._warm:  # the first forward allocates and compiles: once, untimed
                logits_of(self.contender.model, batch.images[:1], files[:1], self.contender.method)
                self._warm = True
            logits, seconds = logits_of(self.contender.model, batch.images, files, self.contender.method, on_images)
        records = recorded(samples, batch, logits, logits if dense_logits is None else dense_logits)
        return records, (len(batch.indices), seconds), logits

    def add(self, rank: int, records: list[Record], timing: Timing) -> None:
        """Take what one of the processes found of one batch."""
        self._records += records
        if timing[0]:
            self._timings[rank].append(timing)

    def run(self) -> Run:
        """Return all records, and the time of the slowest process."""
        return Run(self._records, *timed(self._timings))


def run_all(
    entered: Sequence[Contender],
    samples: SampleSet,
    *,
    batch_size: int = 32,
    workers: int | None = None,
    reference: Sequence[Tensor] | None = None,
    world: World = ALONE,
    on_progress: OnProgress | None = None,
) -> Race:
    """Run the contenders over a sample set. Every image is decoded once and shown to all of them.

    Args:
        reference: the dense model's logits, one tensor per batch of this process; None: the first contender is the
            dense model.
        world: the processes that share the batches; all of them return the same runs.
    """
    same_work(world, entered[0].model, samples)
    runners = [_Runner(contender, world.size) for contender in entered]
    workers = workers_for(samples, world) if workers is None else workers
    done, meter = 0, Meter(on_progress, "compare", len(samples) * len(entered))
    kept: list[Tensor] = []
    with torch.inference_mode(), evaluating(*(contender.model for contender in entered)):
        preprocessing = entered[0].model.config.preprocessing
        batches = iterate(samples, preprocessing, batch_size=batch_size, workers=workers, world=world)
        for batch in world.in_rounds(batches, batches_of(len(samples), batch_size)):
            scored: list[tuple[list[Record], Timing]] = []
            if batch is not None:
                dense_logits = reference[len(kept)] if reference is not None else None
                for runner in runners:
                    meter.tell(runner.contender.method)  # before it runs: the first batch may take long
                    records, timing, logits = runner.score(
                        samples, batch, dense_logits, lambda images, who: meter.passed(world.size * images, who)
                    )
                    dense_logits = logits if dense_logits is None else dense_logits
                    scored.append((records, timing))
                    done += world.size * len(records)
                    meter.finished(done, runner.contender.method)
                kept.append(torch.empty(0) if dense_logits is None else dense_logits)
            for rank, from_rank in enumerate(world.gather(scored)):
                # a process without a batch in this round has found nothing
                for runner, (records, timing) in zip(runners, from_rank, strict=False):
                    runner.add(rank, records, timing)
    return Race([runner.run() for runner in runners], kept)


def rows(entered: Sequence[Contender], runs: Sequence[Run], *, data: str, seed: int = 0) -> tuple[CompareRow, ...]:
    """Return the table: every contender against the dense model and, if ours is among them, against ours."""
    ours = next((run.records for contender, run in zip(entered, runs, strict=True) if contender.method == "stm"), None)
    out = []
    for contender, run in zip(entered, runs, strict=True):
        speed = run.images / run.seconds if run.images else None
        row: dict[str, Any] = (
            vars(summarize(run.records, data=data, seed=seed)) | contender.known | {"images_per_second": speed}
        )
        versus = compared(ours, run.records) if ours is not None and run.records is not ours else None
        if versus is not None:
            row |= {"stm_ahead": versus.difference, "stm_ahead_ci": versus.ci, "stm_p": versus.p}
        else:
            why = row["reasons"].get("top1", "this is ours")
            row["reasons"] = row["reasons"] | dict.fromkeys(("stm_ahead", "stm_ahead_ci", "stm_p"), why)
        out.append(CompareRow(**row))
    return tuple(out)


def _names(methods: Sequence[str] | None, model: ModelConfig) -> list[str]:
    """Return the methods that were asked for in the table's order. Ours and random pruning are always among them."""
    asked = (*OWN_METHODS, *suited(DEFAULT, model)) if methods is None else ("stm", "random", *methods)
    known = (*OWN_METHODS, *PEERS)
    if unknown := [name for name in asked if name not in known]:
        raise UsageError(f"unknown method {unknown[0]!r}, expected some of {', '.join(known)}")
    return [name for name in known if name in asked]


def _contender(method: str, title: str, model: ViM, plan: Plan, counted: Flops, **known: Any) -> Contender:
    per_block = plan.lengths(model.config.model)
    facts = {
        "method": method,
        "title": title,
        "flops": counted,
        "tokens_per_block": per_block,
        "tokens_left": per_block[-1],
    }
    return Contender(model, facts | {"static": True} | known)


def _of_preset(name: str, model: ViM, target: float, rate: float | None = None) -> Contender:
    config, counted = model.config, flops.count(model.config)
    protection = config.protection
    assert model.plan is not None and protection is not None  # it merges
    return _contender(
        name,
        TITLES[name],
        model,
        model.plan,
        counted,
        static=protection.mode == "static",
        schedule=PRESETS[name].order,
        weights=protection.weights,
        acts_after=tuple(step.after for step in config.schedule.steps),
        notes=_far(counted, target, rate),
    )


def _of_peer(dense: ViM, name: str, where: str, target: float, stm_places: Sequence[int], seed: int) -> Contender:
    solved = solve_peer(dense.config, name, target, places=stm_places if where == "stm" else None, seed=seed)
    plan = solved.plan.to(dense.cls_token.device)
    return _contender(
        name,
        PEERS[name].title,
        dense.with_plan(plan),
        plan,
        solved.flops,
        static=plan.static,
        schedule=where,
        acts_after=tuple(plan.removals),
        notes=_far(solved.flops, target) + _few(solved.plan, stm_places if where == "stm" else ()),
    )


def _far(reached: Flops, target: float, rate: float | None = None) -> tuple[str, ...]:
    """Say of a method that it saves another share than ours, if it does.

    Args:
        rate: what it was made for, if not for the share.
    """
    if abs(reached.honest_saving - target) <= NEAR:
        return ()
    if rate is not None:
        return (f"saves {reached.honest_saving:.1%} at rate {rate:g}, where stm saves {target:.1%}",)
    return (f"saves {reached.honest_saving:.1%}, the nearest to {target:.1%} that it can have",)


def _few(plan: Peer, places: Sequence[int]) -> tuple[str, ...]:
    """Say of a peer that it has nothing to remove in some of the given places, if it has not."""
    acts, given = len(plan.removals), len(places)
    return (f"removes tokens in {acts} of these {given} places: more would save too much",) if acts < given else ()


def check_dense(model: ViM) -> None:
    """Refuse (UsageError) a model that is compressed already."""
    if model.plan is not None:
        raise UsageError("the model is already compressed", "name its dense source")


def check_sibling(dense: ViM, name: str, other: ViM) -> None:
    """Refuse (UsageError) a model that cannot stand beside what is made of another one."""
    for what in ("num_classes", "preprocessing"):
        if getattr(dense.config, what) != getattr(other.config, what):
            raise UsageError(
                f"{name} has other {what} than the model, expected one that takes the same images to the same classes"
            )
    if other.plan is not None:
        raise UsageError(f"{name} is compressed, expected a dense model beside the compressed ones")


def _sibling(dense: ViM, name: str, other: ViM) -> Contender:
    """Another dense model, its savings against the one that is compressed."""
    counted = flops.against(flops.count(other.config), flops.count(dense.config))
    return _contender(name, f"{name}, dense", other, Plan(), counted, sibling=True)
