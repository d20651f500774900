"""States and hidden attention in float64 against the paper's sums and products, written out in loops."""

import pytest
import torch
from torch import Tensor

from stm.explain.states import Scan, attention, change, decay_to, state_at, state_norms, states

K, B, L, E, N = 2, 3, 6, 4, 5


def scan(batch: int = B) -> Scan:
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    delta = draw(K, batch, L, E).abs()
    gap = draw(K, batch, L, E).abs() * (torch.arange(L) == 2)[:, None]  # tokens were removed before token 2
    return Scan(
        draw(K, batch, L, E),
        delta,
        delta + gap,
        -draw(K, E, N).abs(),
        draw(K, batch, L, N),
        draw(K, batch, L, N),
    )


def passed(direction: int, t: int) -> list[int]:
    """The tokens of the walk up to t, t included."""
    return list(range(t + 1)) if direction == 0 else list(reversed(range(t, L)))


def product(s: Scan, direction: int, image: int, j: int, t: int) -> Tensor:
    """prod of A_i over the tokens after j up to t, (E, N)."""
    walk = passed(direction, t)
    out = torch.ones(E, N, dtype=torch.float64)
    for i in walk[walk.index(j) + 1 :]:
        out = out * torch.exp(s.elapsed[direction, image, i, :, None] * s.A[direction])
    return out


def bar_b(s: Scan, direction: int, image: int, j: int) -> Tensor:
    return s.delta[direction, image, j, :, None] * s.B[direction, image, j, None, :]


def equation_4(s: Scan, direction: int, image: int, t: int) -> Tensor:
    h = torch.zeros(E, N, dtype=torch.float64)
    for j in passed(direction, t):
        h = h + product(s, direction, image, j, t) * bar_b(s, direction, image, j) * s.u[direction, image, j, :, None]
    return h


@pytest.mark.parametrize("direction", [0, 1])
def test_the_state_is_equation_4(direction: int) -> None:
    s = scan()
    for t, h in states(s, direction):
        torch.testing.assert_close(h, torch.stack([equation_4(s, direction, image, t) for image in range(B)]))
    at = [4, 0, 3]
    expected = torch.stack([equation_4(s, direction, image, t) for image, t in enumerate(at)])
    torch.testing.assert_close(state_at(s, direction, at), expected)


def test_one_image_is_read_at_many_tokens() -> None:
    s = scan(batch=1)
    at = [5, 2, 2]
    torch.testing.assert_close(state_at(s, 0, at), torch.stack([equation_4(s, 0, 0, t) for t in at]))


@pytest.mark.parametrize("direction", [0, 1])
def test_the_decays_are_the_products(direction: int) -> None:
    s = scan()
    for t in range(L):
        found = decay_to(s, direction, t)
        for j in range(L):
            for image in range(B):
                seen = j in passed(direction, t)
                expected = product(s, direction, image, j, t) if seen else torch.zeros(E, N, dtype=torch.float64)
                torch.testing.assert_close(found[image, j], expected)


def test_the_norms_are_frobenius_norms() -> None:
    s = scan()
    expected = [
        [[equation_4(s, k, image, t).square().sum().sqrt() for t in range(L)] for image in range(B)] for k in range(K)
    ]
    torch.testing.assert_close(state_norms(s), torch.tensor(expected, dtype=torch.float64))


def test_hidden_attention_is_equation_5() -> None:
    s = scan(batch=1)
    found = attention(s)
    for direction in range(K):
        for t in range(L):
            for j in range(L):
                if j not in passed(direction, t):
                    assert found[direction, t, j] == 0
                    continue
                left = product(s, direction, 0, j, t) * bar_b(s, direction, 0, j)  # (E, N)
                channels = (left * s.C[direction, 0, t]).sum(-1).abs()
                assert found[direction, t, j].item() == pytest.approx(channels.mean().item(), rel=1e-12)


def test_a_relative_change() -> None:
    before, after = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]], [[6.0, 8.0]]])
    assert change(before, after).tolist() == [0, 1, 1]
    assert change(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2)).tolist() == [0]
