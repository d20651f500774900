"""The rule of each peer, held to a loop that a reader can check."""

import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stm.backends.reference import scan, step_sizes
from stm.config import ModelConfig
from stm.merging.plan import State, Taps
from stm.model.vim import ViM
from stm.peers import evit, hsa, mame, mtr, rmeeto, storm, tokens, tome, utr
from stm.peers.random_pruning import RandomPruning
from tests.unit import peer_cases
from tests.unit.peer_cases import MODEL

vim, images = peer_cases.vim, peer_cases.images  # pytest finds fixtures among a module's names


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("r", [1, 3, 5])
def test_bipartite_is_the_best_pairs_of_even_and_odd(r: int) -> None:
    metric = features(2, 11, 4)
    src, into = tokens.bipartite(metric, r)
    for image in range(2):
        likeness = [
            [torch.cosine_similarity(metric[image, i], metric[image, j], dim=0).item() for j in range(1, 11, 2)]
            for i in range(0, 11, 2)
        ]
        best = sorted(((max(row), 2 * i, 2 * row.index(max(row)) + 1) for i, row in enumerate(likeness)), reverse=True)[
            :r
        ]
        assert list(zip(src[image].tolist(), into[image].tolist(), strict=True)) == [(i, j) for _, i, j in best]


def test_rmeeto_is_a_size_weighted_mean() -> None:
    x, h, size = (
        features(1, 9, 4),
        features(1, 9, 4, seed=1),
        torch.tensor([[1.0, 2, 1, 3, 1, 1, 2, 1, 1]], dtype=torch.float64),
    )
    model = ModelConfig(image_size=8, patch=2, stride=2, d_model=4, depth=8, dt_rank=1)
    plan = rmeeto.RMeeTo(model, {1: 2})
    after = plan(1, State(x, h, cls=4, size=size), Taps())
    m = after.last_merge
    stream = (x + h)[0]
    for place, position in enumerate(m.keep[0].tolist()):
        group = [position, *(s for s, d in zip(m.src[0].tolist(), m.dst[0].tolist(), strict=True) if d == place)]
        weights = size[0, group]
        torch.testing.assert_close(after.stream[0, place], (weights[:, None] * stream[group]).sum(0) / weights.sum())
        assert after.size[0, place] == weights.sum()


@pytest.mark.parametrize("metric", ["B", "C", "delta"])
def test_rmeetos_other_metrics(metric: str, vim: ViM, images: Tensor) -> None:
    plans = [rmeeto.RMeeTo(MODEL, {1: 4}, metric=name) for name in ("X", metric)]
    assert not torch.equal(vim.with_plan(plans[0])(images), vim.with_plan(plans[1])(images))


@given(st.integers(0, 12), st.integers(0, 3))
def test_aligned_pruning_is_a_dense_scan_of_zeroed_inputs(count: int, seed: int) -> None:
    """Float64, at the scan: the tokens that stay see what they would see if the pruned ones had injected nothing."""
    K, B, L, E, N = 2, 2, 14, 3, 4
    u, dt, Bs, Cs = (features(K, B, L, X, seed=10 * seed + i) for i, X in enumerate((E, E, N, N)))
    A, D = -features(K, E, N, seed=8).exp(), features(K, E, seed=9)
    keep = hsa.staying(hsa.lowest(features(B, L, seed=seed + 20), torch.tensor([6, 6]), count), L)
    gap = hsa.gaps(step_sizes(dt, None), keep)
    small = [torch.stack([v[:, b][:, keep[b]] for b in range(B)], 1) for v in (u, dt, Bs, Cs)]
    found = scan(small[0], small[1], A, small[2], small[3], D, None, (False, True), gap=gap, split=True)
    zeroed = torch.zeros_like(u)
    for b in range(B):
        zeroed[:, b, keep[b]] = u[:, b, keep[b]]
    full = scan(zeroed, dt, A, Bs, Cs, D, None, (False, True), split=True)
    for b in range(B):
        torch.testing.assert_close(found[:, b], full[:, b, keep[b]])


def test_gaps_of_a_second_stage_hold_those_of_the_first(vim: ViM, images: Tensor) -> None:
    """Of one image: what elapsed over all that is gone equals Delta, kept from when it was last computed, between those
    that stay."""
    last: dict[int, tuple[Tensor, Tensor]] = {}

    class Deltas(hsa.HSA):
        def forward(self, block: int, state: State, taps: Taps) -> State:
            if taps.delta is not None:
                last[block] = (taps.delta, self.alive)
            after = super().forward(block, state, taps)
            if block in self.removals:
                self.alive = self.alive[after.last_merge.keep[0]]
                self.gap = after.gap
            return after

    plan = Deltas(MODEL, {1: 9, 3: 8})
    plan.alive = torch.arange(MODEL.tokens)
    vim.with_plan(plan)(images[:1])
    delta = torch.zeros(2, MODEL.tokens, MODEL.d_inner)
    for block in sorted(last):
        delta[:, last[block][1]] = last[block][0][:, 0]
    stay = plan.alive.tolist()
    assert len(stay) == MODEL.tokens - 17
    for place, (left, right) in enumerate(pairwise([-1, *stay])):
        torch.testing.assert_close(plan.gap[0, 0, place], delta[0, left + 1 : right].sum(0))
    for place, (left, right) in enumerate(pairwise([*stay, MODEL.tokens])):
        torch.testing.assert_close(plan.gap[1, 0, place], delta[1, left + 1 : right].sum(0))


def test_hsa_keeps_the_highest_clipped_output() -> None:
    y = features(2, 1, 7, 5)
    score = [sum(max(0.0, v) for k in range(2) for v in y[k, 0, t].tolist()) for t in range(7)]
    gone = sorted((t for t in range(7) if t != 3), key=lambda t: score[t])[:2]
    assert hsa.lowest(tokens.clipped(y), torch.tensor([3]), 2)[0].tolist() == gone


def test_tome_puts_one_half_after_the_other() -> None:
    m = tome.halves(features(1, 9, 4), torch.tensor([4]), 2, 3)
    keep = m.keep[0].tolist()
    assert keep[3] == 4
    rest = [position for position in keep if position != 4]
    even, odd = [0, 2, 5, 7], [1, 3, 6, 8]  # of the patches, by turns
    assert rest == [position for position in even if position not in m.src[0]] + odd
    assert set(m.src[0].tolist()) <= set(even)


def test_evit_in_score_order_and_fused() -> None:
    model = ModelConfig(image_size=6, patch=2, stride=2, d_model=4, depth=4, dt_rank=1)  # 9 patches, class token at 4
    y, x = features(2, 1, 10, 4), features(1, 10, 4, seed=1)
    score = tokens.clipped(y)[0].tolist()
    ranked = sorted((t for t in range(10) if t != 4), key=lambda t: -score[t])
    plan = evit.EViT(model, {0: 4}, order="score")
    after = plan(0, State(x, None, cls=4), Taps(y=y))
    assert after.last_merge.keep[0].tolist() == [*ranked[:2], 4, *ranked[2:5]] and after.cls == 2
    fused = evit.EViT(model, {0: 4}, order="score", fuse=True)(0, State(x, None, cls=4), Taps(y=y))
    dropped = ranked[4:]
    weights = [score[t] / sum(score[t] for t in ranked) for t in dropped]
    torch.testing.assert_close(fused.x[0, -1], sum(w * x[0, t] for w, t in zip(weights, dropped, strict=True)))
    assert fused.x.shape == after.x.shape


def test_utr_prunes_half_on_the_hidden_branch_and_merges_all_on_the_residual() -> None:
    model = ModelConfig(image_size=6, patch=2, stride=2, d_model=4, depth=4, dt_rank=1)
    x, h, y = features(1, 10, 4), features(1, 10, 4, seed=1), features(2, 1, 10, 4, seed=2)
    after = utr.UTR(model, {0: 3})(0, State(x, h, cls=4), Taps(y=y))
    m = after.last_merge
    score = tokens.clipped(y)[0]
    ranked = sorted((t for t in range(10) if t != 4), key=lambda t: score[t].item())
    lower, upper = ranked[:4], ranked[4:]
    likeness = {i: max((torch.cosine_similarity(h[0, i], h[0, j], dim=0).item(), j) for j in upper) for i in lower}
    chosen = sorted(lower, key=lambda i: -likeness[i][0])[:3]
    into = m.keep[0, m.dst[0]].tolist()
    assert m.src[0].tolist() == chosen and into == [likeness[i][1] for i in chosen]
    for place, j in enumerate(m.keep[0].tolist()):
        sources = [i for i in chosen if likeness[i][1] == j]
        torch.testing.assert_close(after.x[0, place], x[0, [j, *sources]].mean(0))
        torch.testing.assert_close(after.h[0, place], h[0, [j, *(i for i in sources if i != chosen[0])]].mean(0))


def test_mtr_merges_the_lowest_delta_into_the_most_alike_target() -> None:
    score, feature = features(1, 8), features(1, 8, 4, seed=1)
    src, into = mtr.matched(score, feature, sources=2, targets=3)
    ranked = sorted(range(8), key=lambda t: score[0, t].item())
    assert src[0].tolist() == ranked[:2]
    for i, j in zip(src[0].tolist(), into[0].tolist(), strict=True):
        assert j == max(ranked[2:5], key=lambda t: torch.cosine_similarity(feature[0, i], feature[0, t], dim=0).item())


@given(st.integers(1, 8), st.integers(0, 5))
def test_mame_like_goes_to_the_nearest_that_stays(count: int, seed: int) -> None:
    gone = torch.tensor([sorted(random.Random(seed).sample([t for t in range(12) if t != 5], count))])
    stay = tokens.staying(gone, 12)
    into = mame.nearest(gone, stay, torch.tensor([5]))[0].tolist()
    choice = [t for t in range(12) if t != 5 and t not in gone[0]]
    assert into == [min(choice, key=lambda t: (abs(t - i), t)) for i in gone[0].tolist()]


@pytest.mark.parametrize("score", storm.SCORES)
def test_storm_merges_neighbouring_columns_and_then_rows(score: str) -> None:
    """A loop over rows and windows of five pairs against the indices; 12 x 12 patches go to 10 x 10."""
    side, new = 12, 10
    x = features(1, side * side + 1, 3)
    m = storm.grid_merge(x, torch.tensor([72]), new, score, 50)
    grid = torch.cat([x[0, :72], x[0, 73:]]).reshape(side, side, 3)

    def alike(a: Tensor, b: Tensor) -> float:
        return torch.cosine_similarity(a, b, dim=0).item() if score == "cosine" else -(a - b).abs().sum().item()

    def rows_merged(grid: list[list[Tensor]], count: int) -> list[list[Tensor]]:
        out = []
        for row in grid:
            ranked = [sorted(w, key=lambda j: -alike(row[2 * j], row[2 * j + 1])) for w in (range(5), range(5, 6))]
            taken = {2 * j for w, quota in zip(ranked, storm.quotas(6, count), strict=True) for j in w[:quota]}
            out.append([row[i] + row[i + 1] if i in taken else row[i] for i in range(len(row)) if i - 1 not in taken])
        return out

    rows = rows_merged([list(row) for row in grid], side - new)
    both = list(zip(*rows_merged([list(column) for column in zip(*rows, strict=True)], side - new), strict=True))
    found = tokens.merge(x, m, torch.ones(1, side * side + 1, dtype=x.dtype))[0]
    torch.testing.assert_close(found[50], x[0, 72])
    torch.testing.assert_close(torch.cat([found[:50], found[51:]]), torch.stack([v for row in both for v in row]))


@pytest.mark.parametrize(
    ("pairs", "count", "expected"), [(7, 1, [1, 0]), (7, 2, [1, 1]), (6, 2, [2, 0]), (13, 4, [2, 1, 1]), (5, 5, [5])]
)
def test_storms_quotas_are_in_proportion(pairs: int, count: int, expected: list[int]) -> None:
    assert storm.quotas(pairs, count) == expected


def test_random_pruning_is_drawn_by_its_seed_alone(vim: ViM, images: Tensor) -> None:
    state = torch.get_rng_state()
    plans = [RandomPruning(MODEL, {1: 6, 3: 6}, seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    a, b, c = (vim.with_plan(plan)(images) for plan in plans)
    assert torch.equal(a, b) and not torch.equal(a, c)
