"""Hidden States Protection in float64, at the scan's input, where the paper's equations are exact.

Expected values are worked out here from the recurrence itself, never from stm/merging/hsp.py.
"""

import math

import pytest
import torch
from torch import Tensor

from stm.merging import hsp
from stm.merging.schedule import Step

E, N, L, C = 3, 4, 9, 4  # the class token is in the middle


@pytest.fixture
def ssm() -> tuple[Tensor, Tensor, Tensor]:
    """A random SSM: Delta (K, B, L, E), B (K, B, L, N), A (K, E, N)."""
    g = torch.Generator().manual_seed(3)
    delta = torch.rand(2, 2, L, E, generator=g, dtype=torch.float64)
    return (
        delta,
        torch.randn(2, 2, L, N, generator=g, dtype=torch.float64),
        -torch.rand(2, E, N, generator=g, dtype=torch.float64),
    )


def state(delta: Tensor, B: Tensor, A: Tensor, inputs: Tensor, order: list[int]) -> Tensor:
    """The state (E, N) after walking `order`: h = exp(Delta A) h + inputs_t, with inputs (L, E, N) already Delta B
    x."""
    h = torch.zeros(E, N, dtype=torch.float64)
    for t in order:
        h = torch.exp(delta[t, :, None] * A) * h + inputs[t]
    return h


@pytest.mark.parametrize(("direction", "sources", "into"), [(0, [0, 1], 2), (0, [0], 1), (1, [8, 7], 6), (1, [8], 7)])
def test_the_full_rank_merge_keeps_the_state_exactly(
    ssm: tuple[Tensor, Tensor, Tensor], direction: int, sources: list[int], into: int
) -> None:
    """At the border, B_k x~_k = B_k x_k + sum_i [prod A_j] B_i x_i leaves the state at k as it was, in full rank (E,
    N)."""
    delta, B, A = ssm[0][direction, 0], ssm[1][direction, 0], ssm[2][direction]
    x = torch.randn(L, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs = delta[:, :, None] * B[:, None, :] * x[:, None, None]  # (L, E, N)
    walk = list(range(L)) if direction == 0 else list(reversed(range(L)))
    upto = walk[: walk.index(into) + 1]
    merged = inputs.clone()
    for i in sources:
        passed = upto[upto.index(i) + 1 :]
        merged[into] += torch.exp(sum(delta[j, :, None] * A for j in passed)) * inputs[i]
    kept = [t for t in upto if t not in sources]
    torch.testing.assert_close(state(delta, B, A, merged, kept), state(delta, B, A, inputs, upto))


@pytest.mark.parametrize("absorb", [((0, 2), (1, 2), (7, 6), (8, 6)), ((0, 1), (5, 6)), ((3, 2), (8, 7))])
def test_least_squares_is_the_projection_of_what_is_left_in_the_state(
    ssm: tuple[Tensor, Tensor, Tensor], absorb: tuple[tuple[int, int], ...]
) -> None:
    """w_i = <P_i, B_k> / <B_k, B_k>, so that the error of the rank-one form is orthogonal to B_k.

    The direction is the one that passes i before k. The decays between: i + 1 .. k forward, k .. i - 1 backward.
    """
    delta, B, A = ssm
    found = hsp.least_squares(delta, B, A, hsp.absorbed(Step(0, absorb), L))
    for b in range(2):
        for column, (i, k) in enumerate(absorb):
            d = int(i > k)
            passed = range(i + 1, k + 1) if i < k else range(k, i)
            bar_i, bar_k = (delta[d, b, t, :, None] * B[d, b, t, None, :] for t in (i, k))  # (E, N)
            left = torch.exp(sum(delta[d, b, j, :, None] * A[d] for j in passed)) * bar_i
            assert found[b, column].item() == pytest.approx(
                ((left * bar_k).sum() / (bar_k * bar_k).sum()).item(), rel=1e-12
            )
            residual = left - found[b, column] * bar_k
            assert (residual * bar_k).sum().abs() < 1e-12 * (bar_k * bar_k).sum()


def test_a_token_without_input_gives_no_nan(ssm: tuple[Tensor, Tensor, Tensor]) -> None:
    delta, B, A = ssm
    w = hsp.least_squares(delta, torch.zeros_like(B), A, hsp.absorbed(Step(0, ((0, 1),)), L))
    assert w.tolist() == [[0.0], [0.0]]


def test_inputs_of_half_precision_are_taken_as_they_are(ssm: tuple[Tensor, Tensor, Tensor]) -> None:
    """The matrix products that make B may run in half precision; the sums here do not."""
    delta, B, A = ssm
    a = hsp.absorbed(Step(0, ((0, 2), (8, 6))), L)
    half = B.bfloat16()
    assert torch.equal(hsp.least_squares(delta, half, A, a), hsp.least_squares(delta, half.double(), A, a))


def test_weights_are_one_elsewhere_and_normalized_by_group() -> None:
    """Groups {0, 1 -> 2} and {8 -> 6}: (x_k + sum w_i x_i) / (1 + sum w_i)."""
    absorbed = hsp.absorbed(Step(0, ((0, 2), (1, 2), (8, 6))), L)
    weights = hsp.token_weights(torch.tensor([[0.5, 0.25, -0.5]], dtype=torch.float64), absorbed)
    assert weights.tolist() == [[0.5, 0.25, 1, 1, 1, 1, 1, 1, -0.5]]
    found = hsp.normalize(weights, absorbed)[0].tolist()
    assert found == pytest.approx([0.5 / 1.75, 0.25 / 1.75, 1 / 1.75, 1, 1, 1, 2, 1, -1])
    assert math.isclose(sum(found[:3]), 1)
    assert math.isclose(found[6] + found[8], 1)
