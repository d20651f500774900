"""What merging does to states, in float64 on a tiny model, against runs by hand.

The expected states come from a backend that records what its scan is given, and from the recurrence in a loop; nothing
of stm/explain/states.py or explain.py is used for them.
"""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

import stm
from stm import backends
from stm.backends import reference
from stm.config import Config, ModelConfig, Preprocess, dense_schedule
from stm.explain.measurements import (
    RULES,
    fading,
    fit_exponential,
    groups_by_block,
    influence,
    losses,
    plan_change,
    singles,
    walk,
)
from stm.findings import Fit
from stm.merging.merge import Merge, merge
from stm.merging.plan import Plan, State, Taps
from stm.model.initialize import initialize
from stm.model.vim import ViM

MODEL = ModelConfig(image_size=6, patch=2, stride=2, in_chans=1, d_model=4, depth=4, d_state=3, dt_rank=2)
PREP = Preprocess(resize=6, crop=6, mean=(0.5,), std=(0.5,))
L, C = MODEL.tokens, MODEL.cls  # 10 tokens, the class token at 4
RECORDED: list[dict[str, Tensor]] = []


def recording_scan(u, dt, A, B, C, D, z, reverse, **more):
    RECORDED.append(
        {
            "u": u,
            "delta": reference.step_sizes(
                reference.projected(dt, more.get("dt_weight")), more.get("scale"), more.get("dt_bias")
            ),
            "A": A,
            "B": B,
        }
    )
    return reference.scan(u, dt, A, B, C, D, z, reverse, **more)


@pytest.fixture(scope="module")
def dense() -> ViM:
    recorder = dataclasses.replace(backends.choose("reference"), scan=recording_scan)
    model = ViM(Config(model=MODEL, num_classes=3, schedule=dense_schedule(MODEL), preprocessing=PREP), recorder)
    initialize(model, seed=0)
    return model.double().requires_grad_(False)


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randn(1, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def states_of(
    x: Tensor, model: ViM, start: int, cls: int, stop: int | None = None
) -> tuple[list[list[list[Tensor]]], Tensor]:
    """From a stream (1, L, D) that enters block `start`: the state after each token, [block][direction][token], and the
    stream."""
    state, out = State(x, cls=cls), []
    for block in model.blocks[start:stop]:
        RECORDED.clear()
        state, _ = block(state)
        (ran,) = RECORDED
        length = ran["u"].shape[2]
        directions = []
        for k, order in enumerate((range(length), reversed(range(length)))):
            h, seen = torch.zeros_like(ran["A"][k]), [torch.empty(0)] * length
            for t in order:
                step = ran["delta"][k, 0, t, :, None]
                h = torch.exp(step * ran["A"][k]) * h + step * ran["u"][k, 0, t, :, None] * ran["B"][k, 0, t]
                seen[t] = h
            directions.append(seen)
        out.append(directions)
    return out, state.stream


def entering(model: ViM, image: Tensor, block: int) -> Tensor:
    return states_of(model.embed(image).x, model, 0, C, block)[1] if block else model.embed(image).x


def relative(before: Tensor, after: Tensor) -> float:
    return ((before - after).norm() / before.norm()).item()


def logits(model: ViM, stream: Tensor, cls: int) -> Tensor:
    return model.head(model.norm_f(stream[:, cls]))


def merged(x: Tensor, i: int, k: int, rule: str) -> Tensor:
    """The sequence without token i, which k absorbs as pruning or the mean has it."""
    x = x.clone()
    if rule == "mean":
        x[:, k] = (x[:, i] + x[:, k]) / 2
    return torch.cat([x[:, :i], x[:, i + 1 :]], 1)


def test_every_distance_of_both_sides_once() -> None:
    found = [(each.side, each.source, each.into, each.distance) for each in singles(L, C)]
    assert found == [(0, 2, 3, 1), (0, 1, 2, 2), (0, 0, 1, 3), (1, 6, 5, 1), (1, 7, 6, 2), (1, 8, 7, 3), (1, 9, 8, 4)]
    assert [(each.side, each.distance) for each in singles(L, C, 2)] == [(0, 1), (0, 3), (1, 1), (1, 4)]
    assert singles(3, 0) == [stm.explain.measurements.Single(1, 2, 1, 1)]


@pytest.mark.parametrize("rule", ["prune", "mean"])
def test_fading_is_a_run_by_hand(dense: ViM, image: Tensor, rule: str) -> None:
    before = 2
    found = fading(dense, image, before, rule)
    x = entering(dense, image, before)
    was, stream = states_of(x, dense, before, C)
    by_hand = []
    for each in singles(L, C):
        cls, place = (C - 1, each.source) if each.side == 0 else (C, each.into)
        now, left = states_of(merged(x, each.source, each.into, rule), dense, before, cls)
        by_hand.append(
            (
                ("left", "right")[each.side],
                each.distance,
                relative(was[0][each.side][each.into], now[0][each.side][place]),
                [relative(was[block][each.side][C], now[block][each.side][cls]) for block in range(len(now))],
                relative(logits(dense, stream, C), logits(dense, left, cls)),
            )
        )
    assert [(f.side, f.distance) for f in found] == [(side, distance) for side, distance, *_ in by_hand]
    for f, (_, _, at_merge, at_cls, moved) in zip(found, by_hand, strict=True):
        assert f.merged == pytest.approx(at_merge, rel=1e-9)
        assert list(f.cls) == pytest.approx(at_cls, rel=1e-9)
        assert f.logits == pytest.approx(moved, rel=1e-9)


def test_the_prediction_is_the_change_times_the_decays(dense: ViM, image: Tensor) -> None:
    """On the border of the left side: h_c changes by prod A_j (h_k - h_k'), j from k + 1 to c, if nothing else does."""
    (found,) = [f for f in fading(dense, image, 1) if (f.side, f.distance) == ("left", 3)]
    x = entering(dense, image, 1)
    was, _ = states_of(x, dense, 1, C, 2)
    (ran,) = RECORDED
    now, _ = states_of(merged(x, 0, 1, "mean"), dense, 1, C - 1, 2)
    difference = was[0][0][1] - now[0][0][0]
    for j in range(2, C + 1):
        difference = difference * torch.exp(ran["delta"][0, 0, j, :, None] * ran["A"][0])
    assert found.predicted == pytest.approx((difference.norm() / was[0][0][C].norm()).item(), rel=1e-9)


def test_hsp_is_the_weight_of_the_compressed_model(dense: ViM, image: Tensor) -> None:
    """`losses` with hsp merges as `stm.compress` does: one dynamic border step, read in the block after it."""
    (found,) = [each for each in losses(dense, image, most=1) if (each.rule, each.after) == ("hsp", 0)]
    x = entering(dense, image, 1)
    was, _ = states_of(x, dense, 1, C, 2)
    changes = []
    for side, distance in (("left", 1), ("right", 1)):
        (each,) = [s for s in singles(L, C) if (("left", "right")[s.side], s.distance) == (side, distance)]
        RECORDED.clear()
        dense.blocks[0](dense.embed(image))
        (ran,) = RECORDED
        bar = [ran["delta"][each.side, 0, t, :, None] * ran["B"][each.side, 0, t] for t in (each.source, each.into)]
        decayed = torch.exp(ran["delta"][each.side, 0, each.into, :, None] * ran["A"][each.side]) * bar[0]
        w = (decayed * bar[1]).sum() / bar[1].square().sum()
        y = x.clone()
        y[:, each.into] += w * y[:, each.source]
        cls = C - 1 if side == "left" else C
        now, _ = states_of(torch.cat([y[:, : each.source], y[:, each.source + 1 :]], 1), dense, 1, cls, 2)
        changes.append(relative(was[0][each.side][C], now[0][each.side][cls]))
    assert found.cls == pytest.approx(sum(changes) / 2, rel=1e-9)


def test_losses_are_the_first_block_of_fading(dense: ViM, image: Tensor) -> None:
    found = losses(dense, image)
    assert [(each.after, each.rule) for each in found] == [(after, rule) for after in range(3) for rule in RULES]
    for each in found:
        rows = fading(dense, image, each.after + 1, each.rule)
        assert each.cls == pytest.approx(sum(row.cls[0] for row in rows) / len(rows), rel=1e-9)
        assert each.merged == pytest.approx(sum(row.merged for row in rows) / len(rows), rel=1e-9)


def test_influence_zeroes_one_token(dense: ViM, image: Tensor) -> None:
    found = influence(dense, image)
    others = [j for j in range(L) if j != C]
    assert [(each.side, each.distance) for each in found] == [
        ("left" if j < C else "right", abs(j - C)) for j in others
    ]
    assert influence(dense, image, most=2) == [each for each, j in zip(found, others, strict=True) if j in (0, 3, 5, 9)]
    for block in (0, 3):
        x = entering(dense, image, block)
        was, _ = states_of(x, dense, block, C, block + 1)
        for each, j in zip(found, others, strict=True):
            without = x.clone()
            without[:, j] = 0
            now, _ = states_of(without, dense, block, C, block + 1)
            assert each.blocks[block] == pytest.approx(relative(was[0][int(j > C)][C], now[0][int(j > C)][C]), rel=1e-9)


def test_a_plan_changes_nothing_before_its_first_step(dense: ViM, image: Tensor) -> None:
    small = stm.compress(dense, stages=[2], weights="mean", step_scale=0, span_conv=False)
    runs = [list(walk(model, model.embed(image))) for model in (dense, small)]
    found = plan_change(*runs)
    assert (found[:2] == 0).all() and (found[2:] > 0).all()
    x = entering(dense, image, 2)
    was, _ = states_of(x, dense, 2, C, 3)
    # Both sides pair from the border; the right one has five tokens, and the one next to the class token stays.
    groups = ((0, 1), (2, 3), (4,), (5,), (6, 7), (8, 9))
    y = torch.stack([x[:, list(group)].mean(1) for group in groups], 1)
    now, _ = states_of(y, dense, 2, 2, 3)
    for k in range(2):
        assert found[2, k].item() == pytest.approx(relative(was[0][k][C], now[0][k][2]), rel=1e-9)


def test_the_groups_of_a_run_are_those_of_its_schedule(dense: ViM, image: Tensor) -> None:
    small = stm.compress(dense, stages=[1, 3])
    found = groups_by_block(list(walk(small, small.embed(image))))
    before, between, after = small.schedule.groups
    assert found == (before, between, between, after)
    assert groups_by_block(list(walk(dense, dense.embed(image)))) == (before,) * 4


class Dropping(Plan):
    """A method that looks at data: after block 0 the patch with the smallest norm goes, after block 2 it is merged into
    the first."""

    def forward(self, block: int, state: State, taps: Taps) -> State:
        assert block < 3, "nothing acts after the last block"
        if block not in (0, 2):
            return state
        x, cls = state.stream, int(state.cls)
        norms = x.norm(dim=-1)
        norms[:, cls] = math.inf
        (gone,) = norms.argmin(-1).tolist()
        keep = torch.tensor([[position for position in range(x.shape[1]) if position != gone]])
        source = torch.tensor([[gone]] if block == 2 else [[]], dtype=torch.long)
        index = Merge(keep, source, torch.zeros_like(source))
        return State(
            merge(x, index, torch.ones_like(x[..., 0])), cls=torch.tensor([cls - (gone < cls)]), last_merge=index
        )


def test_the_groups_of_a_plan_that_looks_at_data(dense: ViM, image: Tensor) -> None:
    small = dense.with_plan(Dropping())
    run = list(walk(small, small.embed(image)))
    _, first, second, last = groups_by_block(run)
    assert first == second and len(first) == 9 and len(last) == 8
    held = [position for group in last for position in group]
    assert sorted(held) == sorted(position for group in first for position in group), (
        "what is merged is still held, what is pruned is not"
    )
    assert len(last[0]) == 2 and last[int(run[3].entered.cls)] == (C,)
    with torch.inference_mode():
        torch.testing.assert_close(small.classify(run[-1].left), small(image))
    assert (plan_change(list(walk(dense, dense.embed(image))), run)[1:] > 0).any()


def test_the_fit() -> None:
    distances = [1, 2, 3, 5, 8, 13]
    found = fit_exponential(distances, [0.5 * math.exp(-0.25 * d) for d in distances])
    assert found is not None
    assert (found.amplitude, found.rate, found.r2) == pytest.approx((0.5, 0.25, 1.0))
    assert fit_exponential([1, 2, 3, 4], [0.1, 0, 0.1, 0]) is None, "a logarithm needs a change above zero"
    level = fit_exponential([1, 2, 3], [0.5, 0.5, 0.5])
    assert level == Fit(pytest.approx(0.5), pytest.approx(0), 1.0)
