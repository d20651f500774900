"""The honest count against torch.utils.flop_counter over a real run, our operators registered; and what peers add to
the paper's column."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stm import backends
from stm.config import Config, ModelConfig, Preprocess, Protection, dense_schedule
from stm.measure.flops import count, honest, paper
from stm.merging.bnnm import gradual, staged
from stm.merging.plan import Plan, StaticPlan
from stm.model.initialize import initialize
from stm.model.vim import ViM
from stm.peers import PEERS
from stm.peers.hsa import HSA
from stm.peers.peer import Peer
from stm.peers.rmeeto import RMeeTo

MODEL = ModelConfig(image_size=14, patch=2, stride=2, d_model=8, depth=8, d_state=4, dt_rank=2)  # 50 tokens
D, E, N, W = MODEL.d_model, MODEL.d_inner, MODEL.d_state, MODEL.d_conv
TI, B = (ModelConfig(d_model=width, depth=24, dt_rank=width // 16) for width in (192, 768))


def _conv(x: Any, w: Any, b: Any, reverse: list[bool], sizes: list[int] | None, *, out_shape: Any, **_: Any) -> int:
    evaluations = x[1] if sizes is None else sum(min(size, W) for size in sizes)
    return 2 * x[0] * len(reverse) * W * x[2] * evaluations


def _scan(u: Any, dt: Any, A: Any, B: Any, C: Any, skip: Any, z: Any, dt_weight: Any, *_: Any, **__: Any) -> int:
    """With Delta's projection, which the native backend computes inside where it has the weight."""
    directions, images, tokens, channels = u
    rank = 0 if dt_weight is None else dt[-1]
    return 2 * directions * images * tokens * channels * (9 * N + 2 + rank)


@pytest.fixture(scope="module")
def vim() -> ViM:
    available, reason = backends.status("native")
    if not available:
        pytest.skip(f"counts the operators of the native backend: {reason}")
    config = Config(
        model=MODEL, num_classes=10, schedule=dense_schedule(MODEL), preprocessing=Preprocess.official(MODEL.image_size)
    )
    return initialize(ViM(config, backends.choose("native"))).requires_grad_(False).eval()


def counted(vim: ViM, plan: Plan) -> int:
    """Multiply-accumulates of one image, as torch counts them: convolutions, matrix products and our operators."""
    ops = torch.ops.stm
    with (
        FlopCounterMode(display=False, custom_mapping={ops.native_conv: _conv, ops.native_scan: _scan}) as counter,
        torch.no_grad(),
    ):
        vim.with_plan(plan)(torch.zeros(1, 3, 14, 14))
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


def not_read(plan: Plan) -> int:
    """The last block's outputs that a run computes and nobody reads: y, skip and gate of all but the class token, in
    each direction."""
    tokens, cls, _ = plan.entering(MODEL)[-1]
    return (E * N + 2 * E) * (tokens - 1) * (2 if cls is None else 1)


@pytest.mark.parametrize(
    "protection", [Protection(), Protection(weights="mean", step_scale=0.0, span_conv=False)], ids=["span", "plain"]
)
@pytest.mark.parametrize(
    "schedule",
    [dense_schedule(MODEL), staged(50, 24, (2, 4)), gradual(50, 24, "border", 3, 5)],
    ids=["dense", "staged", "border"],
)
def test_what_torch_counts(schedule: Any, protection: Protection, vim: ViM) -> None:
    plan = StaticPlan(schedule, protection, MODEL)
    merging = sum(
        D * tokens for tokens, step in zip(plan.lengths(MODEL), range(8), strict=True) if plan.step(step) is not None
    )
    assert counted(vim, plan) == honest(MODEL, 10, plan) - merging + not_read(plan)


# For a removal of r among P patches (L = P + 1 tokens): the matrix products, which torch counts, and the rest, which it
# does not.
Count = Callable[[int, int], int]
HALF = {"products": lambda P, r: -(-P // 2) * (P // 2) * D, "norms": lambda P, r: 2 * P * D}
OWN: dict[str, tuple[Count, Count]] = {
    "random": (lambda P, r: 0, lambda P, r: 0),
    "hsa": (lambda P, r: 0, lambda P, r: 2 * E * (P + 1)),
    "hsa-unaligned": (lambda P, r: 0, lambda P, r: 2 * E * (P + 1)),
    "evit": (lambda P, r: 0, lambda P, r: 2 * E * (P + 1)),
    "evit-similarity": (lambda P, r: 0, lambda P, r: 3 * D * (P + 1)),
    "evit-fused": (lambda P, r: 0, lambda P, r: (2 * E + D) * (P + 1)),
    "utr": (HALF["products"], lambda P, r: 2 * E * (P + 1) + 2 * P * D + 2 * D * (P + 1)),
    "mtr": (
        lambda P, r: r * round((P - r) / 2) * D,
        lambda P, r: 2 * E * (P + 1) + 2 * (r + round((P - r) / 2)) * D + D * (P + 1),
    ),
    "mame-like": (lambda P, r: 0, lambda P, r: (2 * E + D) * (P + 1)),
    **{
        name: (HALF["products"], lambda P, r: 2 * P * D + D * (P + 1))
        for name in ("rmeeto", "tome", "tome-decreasing", "famba-v")
    },
}


@pytest.mark.parametrize("name", OWN)
def test_what_torch_counts_of_a_peer(name: str, vim: ViM) -> None:
    method = PEERS[name]
    budgets = list(method.kind.budgets(MODEL, method.places(MODEL.depth)))
    plan = method.make(MODEL, budgets[len(budgets) // 2], 0)
    products, rest = (
        sum(part(plan.before(block)[0] - 1, removed) for block, removed in plan.removals.items()) for part in OWN[name]
    )
    assert sum(plan.flops(block, MODEL).honest for block in range(8)) == products + rest
    assert counted(vim, plan) == honest(MODEL, 10, plan) - rest + not_read(plan)


def test_what_torch_counts_of_storm(vim: ViM) -> None:
    """7 x 7 patches to 6 x 6 after block 2: 7 rows and then 6 columns of three pairs each; a product and two norms a
    pair."""
    plan = PEERS["storm"].make(MODEL, {2: 13}, 0)
    own = 3 * D * (7 * 3 + 6 * 3) + 2 * D * 50
    assert plan.flops(2, MODEL).honest == own
    assert counted(vim, plan) == honest(MODEL, 10, plan) - own + not_read(plan)


def rmeeto_count(model: ModelConfig, r: int) -> int:
    return paper(model, 1000, RMeeTo(model, dict.fromkeys(range(1, 22, 2), r)))


def test_rmeetos_scoring_in_the_papers_column() -> None:
    assert rmeeto_count(TI, 5) == 1284617856  # its own counter, golden README
    assert round(1 - rmeeto_count(B, 2) / paper(B, 1000, Plan()), 3) == 0.047  # Table 2: B -4.7%


def test_a_peer_that_removes_nothing_costs_nothing() -> None:
    config = Config(
        model=MODEL, num_classes=10, schedule=dense_schedule(MODEL), preprocessing=Preprocess.official(MODEL.image_size)
    )
    for method in PEERS.values():
        assert count(config, method.make(MODEL, {}, 0)) == count(config)


def test_alignment_is_free_and_scores_are_not() -> None:
    removals = {4: 20, 9: 10}
    aligned, pruned = (HSA(TI, removals, aligned=flag) for flag in (True, False))
    silent = Peer(TI, removals)
    assert honest(TI, 1000, aligned) == honest(TI, 1000, pruned) == honest(TI, 1000, silent) + 2 * 384 * (197 + 177)
