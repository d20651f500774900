"""What peers promise: tokens counted, the class token never lost, order kept where claimed, sizes that add up, images
that do not see each other. Exceptions are named, as the reference sheet gives them. test_peer_rules.py holds each rule
to a loop."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from stm.config import Config, ModelConfig, Preprocess, dense_schedule
from stm.errors import UsageError
from stm.merging.plan import Plan, State, Taps
from stm.model.initialize import initialize
from stm.model.vim import ViM
from stm.peers import DEFAULT, PEERS, evit, mtr, rmeeto, storm, tokens, tome
from stm.peers.peer import Peer
from tests.golden.upstream import UpstreamHSA, topvim_removals
from tests.unit import peer_cases
from tests.unit.peer_cases import MODEL

vim, images = peer_cases.vim, peer_cases.images  # pytest finds fixtures among a module's names

PRUNING = {
    "random",
    "hsa",
    "hsa-unaligned",
    "evit",
    "evit-similarity",
    "evit-score-order",
}  # what they drop is gone: sizes do not add up
FUSED = {"evit-fused"}  # what it drops becomes one token that stands for no place in the order
# In STORM's new grid a token is in the row and column that it has among those left, which need not be the order that
# they had.
UNORDERED = {"storm"} | {
    "evit-score-order",
    "tome",
    "tome-decreasing",
    "famba-v",
    "famba-v-all",
    "famba-v-second",
    "famba-v-lower",
}


class Watch(Plan):
    """A plan, and every state before and after it."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.seen: list[tuple[int, State, State]] = []

    def wants(self, block: int) -> tuple[str, ...]:
        return self.plan.wants(block)

    def forward(self, block: int, state: State, taps: Taps) -> State:
        after = self.plan(block, state, taps)
        self.seen.append((block, state, after))
        return after


def plan_of(name: str, model: ModelConfig = MODEL, number: int = 5) -> Peer:
    """A peer with a budget from the middle of what it can have."""
    method = PEERS[name]
    budgets = list(method.kind.budgets(model, method.places(model.depth)))
    return method.make(model, budgets[min(number, len(budgets) - 1)], 0)


def watched(vim: ViM, plan: Plan, images: Tensor) -> list[tuple[int, State, State]]:
    watch = Watch(plan)
    small = vim.with_plan(watch)
    small.run(small.embed(images), full=True)
    return watch.seen


@pytest.mark.parametrize("name", PEERS)
def test_tokens_order_class_token_and_sizes(name: str, vim: ViM, images: Tensor) -> None:
    plan = plan_of(name)
    entering = plan.entering(MODEL)
    held = torch.ones(3, MODEL.tokens)
    acted = 0
    for block, before, after in watched(vim, plan, images):
        count = plan.removals.get(block, 0)
        assert after.x.shape[1] == before.x.shape[1] - count == entering[block + 1].tokens
        if entering[block + 1].cls is not None:
            assert after.cls == entering[block + 1].cls
        if not count:
            assert after is before
            continue
        acted += 1
        m = after.last_merge
        assert m is not None
        keep = m.keep.expand(3, -1)
        assert keep.gather(1, tokens.cls_of(after)[:, None]).tolist() == tokens.cls_of(before)[:, None].tolist(), (
            "the class token stays"
        )
        assert (m.src != tokens.cls_of(before)[:, None]).all() and (m.dst != tokens.cls_of(after)[:, None]).all(), (
            "and is left alone"
        )
        torch.testing.assert_close(
            after.stream.gather(1, tokens.cls_of(after)[:, None, None].expand(-1, 1, 8)),
            before.stream.gather(1, tokens.cls_of(before)[:, None, None].expand(-1, 1, 8)),
        )
        ordered = keep[:, :-1] if name in FUSED else keep
        assert (ordered.diff(dim=1) > 0).all().item() == (name not in UNORDERED)
        everyone = torch.cat([keep, m.src.expand(3, -1)], 1).sort(1).values
        if name in PRUNING:
            assert m.src.shape[-1] == 0 and (everyone.diff(dim=1) > 0).all()
        else:
            assert (everyone == torch.arange(before.x.shape[1])).all(), "every token stays or is absorbed, once"
            held = tokens.sums(held, m)
            assert after.size is not None
            torch.testing.assert_close(after.size, held)
            assert after.size.sum(1).tolist() == [MODEL.tokens] * 3
            assert after.size.gather(1, tokens.cls_of(after)[:, None]).tolist() == [[1.0]] * 3, (
                "so the patches' sizes sum to L - 1"
            )
    assert acted == len(plan.removals) > 0


@pytest.mark.parametrize("name", PEERS)
def test_images_of_a_batch_do_not_see_each_other(name: str, vim: ViM, images: Tensor) -> None:
    """Upstream ToP-ViM is the exception: there the class token is protected in the first image alone."""
    small = vim.with_plan(plan_of(name))
    together = small(images)
    for i in range(3):
        torch.testing.assert_close(small(images[i : i + 1]), together[i : i + 1])
    torch.testing.assert_close(small(images.flip(0)), together.flip(0))


def test_upstream_topvim_depends_on_the_place_in_the_batch(vim: ViM, images: Tensor) -> None:
    small = vim.with_plan(UpstreamHSA(MODEL, topvim_removals(MODEL)))
    assert (small(images)[0] - small(images[:1])[0]).abs().max() < 1e-5
    assert (small(images)[1:] - small(images.flip(0))[:2].flip(0)).abs().max() > 1e-4


@pytest.mark.parametrize("name", PEERS)
def test_nothing_removed_is_the_dense_model(name: str, vim: ViM, images: Tensor) -> None:
    assert torch.equal(vim.with_plan(PEERS[name].make(MODEL, {}, 0))(images), vim(images))


@pytest.mark.parametrize("name", PEERS)
def test_half_precision_runs(name: str, vim: ViM, images: Tensor) -> None:
    half = copy.deepcopy(vim).cast("bfloat16")
    found, expected = half.with_plan(plan_of(name))(images), vim.with_plan(plan_of(name))(images)
    assert found.isfinite().all() and (found - expected).abs().max() < 0.2 * expected.abs().max()


@pytest.mark.parametrize("name", PEERS)
def test_the_last_block_reads_only_what_it_must(name: str, vim: ViM, images: Tensor) -> None:
    small = vim.with_plan(plan_of(name))
    torch.testing.assert_close(small(images), small.classify(small.run(small.embed(images), full=True)))


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize(("size", "depth", "class_token"), [(14, 12, "middle"), (10, 5, "head"), (6, 3, "middle")])
def test_other_shapes_run(name: str, size: int, depth: int, class_token: str) -> None:
    shape = ModelConfig(
        image_size=size, patch=2, stride=2, d_model=8, depth=depth, d_state=4, dt_rank=1, class_token=class_token
    )
    model = ViM(
        Config(
            model=shape,
            num_classes=5,
            schedule=dense_schedule(shape),
            preprocessing=Preprocess.official(shape.image_size),
        )
    )
    initialize(model, seed=0)
    method = PEERS[name]
    budgets = list(method.kind.budgets(shape, method.places(depth)))
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        for budget in (budgets[0], budgets[-1]):
            plan = method.make(shape, budget, 0)
            assert model.with_plan(plan)(images).isfinite().all()
            assert plan.lengths(shape)[-1] >= 2, "a patch is left"


@pytest.mark.parametrize("name", PEERS)
def test_budgets_rise_and_are_even(name: str) -> None:
    method = PEERS[name]
    budgets = list(method.kind.budgets(MODEL, method.places(MODEL.depth)))
    assert budgets
    if name not in ("storm", "tome-decreasing"):
        for removals in budgets:
            counts, left = list(removals.values()), MODEL.tokens
            assert counts == sorted(counts, reverse=True)
            for count in counts:
                assert counts[0] - count <= 1 or count == method.kind.most(left), (
                    "the first m take one more, or there are no more"
                )
                left -= count
        assert [sum(removals.values()) for removals in budgets[:6]] == [1, 2, 3, 4, 5, 6]
        assert all(a != b for a, b in pairwise(budgets))


def test_places_as_published() -> None:
    assert {name: PEERS[name].places(24) for name in ("rmeeto", "hsa", "evit", "utr", "storm")} == {
        "rmeeto": tuple(range(1, 22, 2)),
        "hsa": (4, 9, 14),
        "evit": (4, 9, 14),
        "utr": (10, 15, 20),
        "storm": (4, 10, 16, 22),
    }
    assert PEERS["tome"].places(24) == tuple(range(23))
    assert set(DEFAULT) <= PEERS.keys() and "random" in DEFAULT


def test_options_that_are_not_known_are_refused() -> None:
    with pytest.raises(UsageError, match="metric is 'Y'"):
        rmeeto.RMeeTo(MODEL, {}, metric="Y")
    with pytest.raises(UsageError, match="order is 'none'"):
        evit.EViT(MODEL, {}, order="none")
    with pytest.raises(UsageError, match="target_share is 0"):
        mtr.MTR(MODEL, {}, target_share=0)
    with pytest.raises(UsageError, match="feature is 'z'"):
        mtr.MTR(MODEL, {}, feature="z")
    with pytest.raises(UsageError, match="score is 'l2'"):
        storm.STORM(MODEL, {}, score="l2")


def test_storms_published_grids_can_be_had() -> None:
    shape = ModelConfig(d_model=8, depth=24, dt_rank=1)
    budgets = list(storm.STORM.budgets(shape, (4, 10, 16, 22)))
    for sides in ((14, 13, 12, 10, 9), (14, 12, 10, 8, 6)):
        removals = {place: a * a - b * b for place, (a, b) in zip((4, 10, 16, 22), pairwise(sides), strict=True)}
        assert removals in budgets


def test_decreasing_tome_falls_from_twice_the_mean_to_none() -> None:
    budget = list(tome.DecreasingToMe.budgets(ModelConfig(d_model=8, depth=24, dt_rank=1), range(23)))[91]
    counts = [budget.get(block, 0) for block in range(23)]
    assert sum(counts) == 92 and counts[0] == 8 and counts[-1] == 0
    assert all(a >= b - 1 for a, b in pairwise(counts))
