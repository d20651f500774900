"""The same saving for every method: which tokens a peer, or the paper's schedule, must remove for a share of the
operations.

The measure is the honest count, in which a method's own work is counted too. Tokens are whole: the first
merges of a method may take one token more than the others, and the nearest saving wins.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from stm.config import Config
from stm.errors import UsageError
from stm.measure import flops
from stm.merging.bnnm import capacity_of, staged, uneven
from stm.merging.budget import NEAR, all_stages
from stm.merging.plan import StaticPlan
from stm.merging.schedule import Schedule
from stm.model.vim import ViM
from stm.options import PRESETS
from stm.peers import PEERS
from stm.peers.peer import Peer
from stm.reports import Flops


class Solved(NamedTuple):
    """A plan, what it costs, and whether its saving is within half a point of what was asked."""

    plan: Peer
    flops: Flops
    near: bool


def solve_peer(
    config: Config, method: str, saving: float, *, places: Sequence[int] | None = None, seed: int = 0
) -> Solved:
    """Return a peer with the honest saving nearest to `saving`.

    Args:
        config: of the dense model.
        method: a name of `PEERS`.
        saving: a share of the dense model's honest count.
        places: the blocks after which it acts; by default those of its publication.
        seed: of a method that draws tokens at random.

    Raises:
        UsageError: there is no token that it could remove.
    """
    kind, model = PEERS[method], config.model
    acts = kind.places(model.depth) if places is None else places
    plans = (kind.make(model, removals, seed) for removals in kind.kind.budgets(model, acts))
    solved = nearest(config, plans, saving)
    if solved is None:
        problem = f"{method} finds nothing to remove from {model.tokens} tokens in {model.depth} blocks"
        raise UsageError(problem, "leave it out of --methods")
    return solved


def nearest(config: Config, plans: Iterable[Peer], saving: float) -> Solved | None:
    """Of some plans the one whose honest saving is nearest to `saving`; None of none."""
    counted = [(flops.count(config, plan), plan) for plan in plans]
    if not counted:
        return None
    best, plan = min(counted, key=lambda pair: abs(pair[0].honest_saving - saving))
    return Solved(plan, best, abs(best.honest_saving - saving) <= NEAR)


def solve_preset(dense: ViM, preset: str, saving: float) -> tuple[ViM, bool]:
    """Return a preset of ours with the honest saving nearest to `saving`, and whether that is within half a point.

    Args:
        preset: "staged", whose stages are those of some budget; or "paper", for which r is the smallest number of
            tokens per side that reaches the saving, and the first m of its K steps take one more.

    Raises:
        UsageError: there is nothing that it could merge.
    """
    schedules = _staged(dense.config) if preset == "staged" else _papers(dense.config, saving)
    made = (_under(dense.config, preset, schedule) for schedule in schedules)
    reached = [(abs(flops.count(config).honest_saving - saving), config) for config in made]
    if not reached:
        raise UsageError(f"the preset {preset} finds nothing to merge in this model", "leave it out: --methods stm,...")
    distance, config = min(reached, key=lambda pair: pair[0])
    assert config.protection is not None
    plan = StaticPlan(config.schedule, config.protection, config.model).to(dense.cls_token.device)
    return dense.with_plan(plan, config), distance <= NEAR


def _under(config: Config, preset: str, schedule: Schedule) -> Config:
    """Return the config of a model that a preset compresses by a schedule."""
    return dataclasses.replace(config, schedule=schedule, protection=PRESETS[preset].protection, measured=(), files={})


def _staged(config: Config) -> Iterator[Schedule]:
    """Yield every schedule that the preset staged makes of a budget."""
    model = config.model
    for stages in all_stages(capacity_of(model, "both")):
        yield staged(model.tokens, model.cls, stages)


def _papers(config: Config, saving: float) -> Iterator[Schedule]:
    """Yield what the paper's schedule can be around a saving."""
    model, order = config.model, PRESETS["paper"].order
    capacity = capacity_of(model, "both")
    sides = capacity.sides

    def made(counts: Sequence[int]) -> Schedule:
        return uneven(model.tokens, model.cls, order, counts)

    def saved(r: int, steps: int) -> float:
        return flops.count(_under(config, "paper", made([r] * steps))).honest_saving if steps else 0.0

    most = [(r, capacity.most_steps(r)) for r in range(1, min(sides, default=0) // 2 + 1) if capacity.most_steps(r)]
    if not most:
        return
    r, steps = next((each for each in most if saved(*each) >= saving), None) or max(most, key=lambda each: saved(*each))
    below = max(k for k in range(steps + 1) if saved(r, k) <= saving)
    for k in {max(1, below), min(steps, below + 1)}:
        fits = capacity.most_steps(r + 1) >= k  # r + 1 tokens in so many steps may be more than a side has
        for more in range(k + 1 if fits else 1):
            yield made([r + (number < more) for number in range(k)])
