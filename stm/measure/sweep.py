"""A grid of schedules: the paper's Table 3, and the curve of accuracy over cost.

A cell is one model to be measured. The axes are rates, sides, orders, weights, step scales, convolutions and, for
gradual orders, r. An empty axis takes the value of the preset. All fitted schedules come from one fit. A peer may be
another preset. It is solved at each rate for the honest saving of the first cell of that rate.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from stm.bake import bake
from stm.config import Config
from stm.data.fit_images import pictures
from stm.data.sets import SampleSet
from stm.distributed import ALONE, World
from stm.errors import UsageError
from stm.findings import SweepRow
from stm.fitting import Fitting, budget_of, fit
from stm.measure import flops
from stm.measure.compare import Contender, baked_alike, check_dense, check_sibling, run_all
from stm.measure.equal_cost import solve_peer, solve_preset
from stm.measure.records import fingerprint
from stm.measure.stats import summarize
from stm.measure.sweep_file import CellFile
from stm.merging.plan import Plan
from stm.model.vim import ViM
from stm.options import PRESETS, MergeOptions
from stm.peers import PEERS, suited
from stm.progress import OnProgress, Progress
from stm.recipe import PRESET_NAMES
from stm.reports import Flops

RATES = (0.15, 0.2, 0.3, 0.4)  # the paper's
CURVES = ("staged", "paper", "random", "hsa", "rmeeto", "mtr", "storm")
CONVS = ("plain", "span")
SOLVED = ("staged", "paper")  # the presets that need no fit, which may stand beside the grid as peers do


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The axes of a sweep. An empty axis has one value, that of the preset.

    Raises:
        UsageError: a name that is not known.
    """

    method: str = "stm"
    rates: Sequence[float] = RATES
    sides: Sequence[str] = ("both", "left", "right")
    schedules: Sequence[str] = ()
    weights: Sequence[str] = ()
    step_scales: Sequence[float] = ()
    convs: Sequence[str] = ()
    tokens_per_side: Sequence[int] = ()
    peers: Sequence[str] = CURVES

    def __post_init__(self) -> None:
        for name, given, known in (
            ("method", (self.method,), PRESET_NAMES),
            ("conv", self.convs, CONVS),
            ("peer", self.peers, (*SOLVED, *PEERS)),
        ):
            if unknown := [value for value in given if value not in known]:
                raise UsageError(f"unknown {name} {unknown[0]!r}, expected some of {', '.join(known)}")
        if not self.rates or not self.sides:
            raise UsageError("a sweep needs a rate and a side at least")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model of a sweep; `method` is a preset, a peer, "dense" or the name of a sibling. None: does not apply."""

    method: str
    rate: float | None = None
    sides: str | None = None
    schedule: str | None = None
    weights: str | None = None
    step_scale: float | None = None
    conv: str | None = None
    tokens_per_side: int | None = None

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in vars(self).items() if value is not None)


def cells(grid: Grid) -> list[Cell]:
    """The cells of a grid, rate by rate; those that mean the same model appear once."""
    preset = PRESETS[grid.method]
    assert preset.step_scale is not None  # a preset leaves nothing open
    conv = "span" if preset.span_conv else "plain"
    out = []
    for order, weights, scale, convolution, r, rate, sides in product(
        grid.schedules or (preset.schedule,),
        grid.weights or (preset.weights,),
        grid.step_scales or (preset.step_scale,),
        grid.convs or (conv,),
        grid.tokens_per_side or (None,),
        grid.rates,
        grid.sides,
    ):
        out.append(
            Cell(
                method=grid.method,
                rate=rate,
                sides=sides,
                schedule=order,
                weights=weights,
                step_scale=float(scale),
                conv=convolution,
                tokens_per_side=None if order in ("fitted", "staged") else r,
            )
        )
    return list(dict.fromkeys(out))


def options_of(cell: Cell) -> MergeOptions:
    """The options of a cell of a preset."""
    return MergeOptions(
        rate=cell.rate,
        method=cell.method,
        schedule=cell.schedule,
        sides=cell.sides,
        tokens_per_side=cell.tokens_per_side,
        weights=cell.weights,
        step_scale=cell.step_scale,
        span_conv=cell.conv == "span",
    )


@dataclass(frozen=True)
class Planned:
    """A cell, its model, and the part of its row that is known before; or why it is refused. `key` is what it is
    stored under."""

    cell: Cell
    model: ViM | None
    known: dict[str, Any]
    refused: str | None = None

    @property
    def key(self) -> str:
        """All that decides its model, the dense one given."""
        if self.model is not None and self.known["sibling"]:
            return f"{self.cell} {fingerprint(self.model)}"
        return f"{self.cell} {self.known['tokens_per_block']}" if self.model is not None else str(self.cell)


def planned(
    dense: ViM,
    grid: Grid,
    siblings: Mapping[str, ViM],
    seed: int = 0,
    *,
    fitting: Callable[[], Fitting] | None = None,
    world: World = ALONE,
    on_progress: OnProgress | None = None,
) -> list[Planned]:
    """Every cell, the dense model first, then the siblings, the grid, and the peers.

    Args:
        siblings: other dense models, by name.
        seed: draws what random pruning removes, and the pictures of the fit.
        fitting: makes the fit of all fitted cells, if there are any whose budget is possible; None: on pictures that
            need no data.
        world: the processes that plan the same; the first one fits.

    Raises:
        UsageError: every cell of the grid is refused, so that there is nothing to sweep.
    """
    check_dense(dense)
    own = flops.count(dense.config)
    out = [_planned(Cell(method="dense"), dense, Plan(), own, static=True)]
    for name, model in siblings.items():
        check_sibling(dense, name, model)
        counted = flops.against(flops.count(model.config), own)
        out.append(_planned(Cell(method=name), model, Plan(), counted, static=True, sibling=True))
    targets: dict[float, float] = {}
    for cell, small, refused in _of_grid(dense, grid, seed, fitting, world, on_progress):
        if small is None:
            out.append(Planned(cell, None, {}, refused))
            continue
        out.append(_of_preset(cell, small))
        assert cell.rate is not None
        targets.setdefault(cell.rate, out[-1].known["flops"].honest_saving)
    peers = suited(CURVES, dense.config.model) if grid.peers == CURVES else grid.peers
    for name, (rate, target) in product(peers, targets.items()):
        cell = Cell(method=name, rate=rate)
        if name in SOLVED:
            out.append(_of_preset(cell, solve_preset(dense, name, target)[0]))
        else:
            solved = solve_peer(dense.config, name, target, seed=seed)
            plan = solved.plan.to(dense.cls_token.device)
            out.append(_planned(cell, dense.with_plan(plan), plan, solved.flops, static=plan.static))
    return out


def _of_grid(
    dense: ViM,
    grid: Grid,
    seed: int,
    fitting: Callable[[], Fitting] | None,
    world: World,
    on_progress: OnProgress | None,
) -> list[tuple[Cell, ViM | None, str | None]]:
    """Return every cell of the grid with its model, or with the reason why it is refused."""
    made: dict[Cell, ViM] = {}
    refused: dict[Cell, UsageError] = {}
    todo = cells(grid)
    for cell in todo:
        options = options_of(cell)
        try:
            if options.order == "fitted":  # refused before the fit, which takes long
                _, _ = options.protection, budget_of(dense.config.model, options)
            else:
                made[cell] = bake(dense, options)
        except UsageError as error:
            refused[cell] = error
    fitted = [cell for cell in todo if cell not in made and cell not in refused]
    if not made and not fitted:
        last = refused[todo[-1]]
        raise UsageError(f"no cell of the grid can be measured; the last one: {last.message}", last.hint)

    def bake_fitted() -> list[ViM]:
        if not fitted:
            return []
        images = pictures(dense.config, seed=seed)
        once = fit(dense, images, on_progress=on_progress) if fitting is None else fitting()
        return [bake(dense, options_of(cell), fitting=once, seed=seed) for cell in fitted]

    made |= zip(fitted, baked_alike(dense, bake_fitted, world), strict=True)
    return [(cell, made.get(cell), refused[cell].message if cell in refused else None) for cell in todo]


def deciding(plan: Sequence[Planned]) -> Config:
    """Return the config of the first fitted cell, whose images decided all other cells too.

    If no cell is fitted, it is the dense model's.
    """
    cell = next((cell for cell in plan if cell.known.get("cut") is not None), plan[0])
    assert cell.model is not None
    return cell.model.config


def _of_preset(cell: Cell, small: ViM) -> Planned:
    protection, recipe = small.config.protection, small.config.recipe
    return _planned(
        cell,
        small,
        small.plan or Plan(),
        flops.count(small.config),
        static=protection is None or protection.mode == "static",
        cut=None if recipe is None or recipe.fit is None else recipe.fit.cut,
    )


def _planned(cell: Cell, model: ViM, plan: Plan, counted: Flops, **known: Any) -> Planned:
    per_block = plan.lengths(model.config.model)
    facts = {"flops": counted, "tokens_per_block": per_block, "tokens_left": per_block[-1], "sibling": False}
    return Planned(cell, model, vars(cell) | facts | known)


def measure_cells(
    plan: Sequence[Planned],
    samples: SampleSet,
    file: CellFile | None,
    *,
    batch_size: int,
    workers: int | None,
    world: World = ALONE,
    on_progress: OnProgress | None,
) -> dict[str, SweepRow]:
    """Measure what the file does not hold yet, cell by cell, and store each. The dense model, the first of the plan,
    runs once.

    Args:
        file: the first process's; None in the others.
        world: the processes that share the batches of each cell.

    Returns:
        The cells by key, those of earlier runs included.
    """
    done = world.broadcast(dict(file.done) if file is not None else {})
    todo = [each for each in plan if each.model is not None and each.key not in done]
    report = on_progress or (lambda progress: None)
    total = sum(each.model is not None for each in plan)
    report(Progress("sweep", total - len(todo), total, "cells"))
    if not todo:
        return done

    def within(cells: int, each: Planned) -> OnProgress:
        """Report the images of a cell: it may take long, and the number of cells does not move meanwhile."""
        name = each.cell.method if each.cell.rate is None else f"{each.cell.method} {each.cell.rate:g}"
        return lambda at: report(Progress("sweep", cells, total, "cells", f"{name}, {at.done:,}/{at.total:,}"))

    begun = within(total - len(todo), plan[0])
    reference = run_all(
        [_contender(plan[0])], samples, batch_size=batch_size, workers=workers, world=world, on_progress=begun
    )
    measured = {plan[0].key: reference.runs[0]}
    for number, each in enumerate(todo, start=total - len(todo) + 1):
        run = measured.get(each.key)
        if run is None:
            run = run_all(
                [_contender(each)],
                samples,
                batch_size=batch_size,
                workers=workers,
                reference=reference.logits,
                world=world,
                on_progress=within(number - 1, each),
            ).runs[0]
        figures = vars(summarize(run.records, data=samples.name, seed=0))
        done[each.key] = SweepRow(
            **figures | each.known, images_per_second=run.images / run.seconds if run.images else None
        )
        if file is not None:
            file.append(each.key, done[each.key])
        report(Progress("sweep", number, total, "cells"))
    return done


def _contender(planned: Planned) -> Contender:
    assert planned.model is not None
    return Contender(planned.model, {"method": str(planned.cell)})
