"""Step scale and span convolution at the scan's input, in float64, by the properties that they exist for."""

import torch
from torch import Tensor

from stm.backends.reference import conv_silu, scan

K, B, E, N = 2, 2, 3, 4
REVERSE = (False, True)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_at_p_1_the_decay_over_a_merged_span_is_the_unmerged_spans() -> None:
    """Four tokens of equal Delta become one of size 4 with Delta times 4: what came before decays over it as it did
    over the four."""
    tokens, span = 7, slice(2, 6)
    dt = random(K, B, tokens, E, seed=0)
    dt[:, :, span] = dt[:, :, 2:3]
    A, Cs, D = -random(K, E, N, seed=1).exp(), random(K, B, tokens, N, seed=2), torch.zeros(K, E, dtype=torch.float64)
    u, Bs = random(K, B, tokens, E, seed=3), random(K, B, tokens, N, seed=4)
    u[:, :, span] = 0  # the span injects nothing: only its decay is left
    keep = [0, 1, 2, 6]
    scale = torch.tensor([1.0, 1.0, 4.0, 1.0], dtype=torch.float64)
    full = scan(u, dt, A, Bs, Cs, D, None, REVERSE, split=True)
    merged = scan(
        u[:, :, keep], dt[:, :, keep], A, Bs[:, :, keep], Cs[:, :, keep], D, None, REVERSE, scale=scale, split=True
    )
    torch.testing.assert_close(merged[:, :, [0, 1, 3]], full[:, :, [0, 1, 6]])
    # and after the whole span, on either side of it
    torch.testing.assert_close(merged[0, :, 3], full[0, :, 6])
    torch.testing.assert_close(merged[1, :, 1], full[1, :, 1])


def test_merging_equal_inputs_leaves_every_span_convolution_as_it_was() -> None:
    """Tokens 2, 3, 4 and 6, 7 are equal and become one each: the others' outputs stay, the merged ones' are the means
    of their own."""
    groups = [(0,), (1,), (2, 3, 4), (5,), (6, 7), (8,), (9, 10, 11, 12, 13, 14)]
    x = random(B, len(groups), E, seed=5)
    owner = [number for number, group in enumerate(groups) for _ in group]
    w, b = random(K, E, 4, seed=6), random(K, E, seed=7)
    full = conv_silu(x[:, owner], w, b, REVERSE)  # (K, B, 15, E)
    merged = conv_silu(x, w, b, REVERSE, sizes=tuple(map(len, groups)))
    for number, group in enumerate(groups):
        torch.testing.assert_close(merged[:, :, number], full[:, :, list(group)].mean(2))
