"""stm/merging/merge.py against sums written out token by token."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stm.merging.merge import Merge, add_at, merge, take


@st.composite
def merges(draw: st.DrawFn) -> tuple[Tensor, Merge, Tensor]:
    """A batch, a merge of some of its tokens into others, shared or per image, and weights."""
    batch, tokens, absorbed = draw(st.integers(1, 3)), draw(st.integers(2, 9)), draw(st.integers(0, 4))
    absorbed, shared = min(absorbed, tokens - 1), draw(st.booleans())
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    rows = []
    for _ in range(1 if shared else batch):
        order = torch.randperm(tokens, generator=g)
        src, keep = order[:absorbed].sort().values, order[absorbed:].sort().values
        rows.append((keep, src, torch.randint(len(keep), (absorbed,), generator=g)))
    keep, src, dst = (rows[0][i] if shared else torch.stack([row[i] for row in rows]) for i in range(3))
    x = torch.randn(batch, tokens, 3, generator=g, dtype=torch.float64)
    w = torch.randn((tokens,) if draw(st.booleans()) else (batch, tokens), generator=g, dtype=torch.float64)
    return x, Merge(keep, src, dst), w


@given(merges())
def test_merge_is_the_weighted_sum_of_what_a_token_absorbs(case: tuple[Tensor, Merge, Tensor]) -> None:
    x, m, w = case
    batch = x.shape[0]
    weights = w.expand(batch, -1)
    keep, src, dst = (v.expand(batch, -1) for v in m)
    expected = torch.zeros(batch, keep.shape[1], x.shape[2], dtype=x.dtype)
    for b in range(batch):
        for place, position in enumerate(keep[b].tolist()):
            expected[b, place] = weights[b, position] * x[b, position]
        for position, place in zip(src[b].tolist(), dst[b].tolist(), strict=True):
            expected[b, place] += weights[b, position] * x[b, position]
    torch.testing.assert_close(merge(x, m, w), expected)


@given(merges())
def test_a_sum_loses_nothing(case: tuple[Tensor, Merge, Tensor]) -> None:
    x, m, _ = case
    torch.testing.assert_close(merge(x, m, torch.ones(x.shape[1], dtype=x.dtype)).sum(1), x.sum(1))


def test_indices_per_image_reach_every_leading_axis() -> None:
    x = torch.arange(2 * 2 * 3 * 1.0).view(2, 2, 3, 1)  # (K, B, L, 1)
    index = torch.tensor([[2, 0], [1, 1]])  # (B, 2)
    assert take(x, index)[..., 0].tolist() == [[[2, 0], [4, 4]], [[8, 6], [10, 10]]]
    added = add_at(torch.zeros_like(x), index, torch.ones(2, 2, 2, 1))
    assert added[..., 0].tolist() == [[[1, 0, 1], [0, 2, 0]]] * 2
