"""STORM (ICML 2026, arXiv 2606.19932): merging that leaves a rectangular grid. Ideas of its paper and code; none of its
code.

Two stages follow a block. Rows: only the columns (2j, 2j + 1) of a row form pairs. Every row merges equally many,
shared out in proportion over windows of five pairs; in each window the most alike pairs merge. Columns: the same on the
grid that is left, with rows and columns exchanged. The residual decides one plan, which acts on residual and mixer
output alike. Merged tokens are added, not averaged. On a ViM the class token leaves the grid and returns to the middle
of the scan.
"""

from collections.abc import Container, Iterator, Sequence
from itertools import combinations
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from stm.config import ModelConfig
from stm.errors import UsageError, check_choice
from stm.merging.merge import Merge, merge, take
from stm.merging.outline import Cost
from stm.merging.plan import State, Taps
from stm.merging.schedule import Fixed
from stm.peers.peer import Peer, Removals
from stm.peers.tokens import absorbing, cls_of, composed, middle, patches, sizes, staying, sums, with_cls

SCORES = ("cosine", "l1")
WINDOW = 5  # pairs
PLACES = 4  # after how many blocks it acts as published


def quotas(pairs: int, count: int) -> list[int]:
    """Return how many of `count` merges each window of five pairs gets: in proportion to its pairs, the largest
    remainders first."""
    windows = [min(WINDOW, pairs - first) for first in range(0, pairs, WINDOW)]
    whole = [count * size // pairs for size in windows]
    by_remainder = sorted(range(len(windows)), key=lambda i: -(count * windows[i] % pairs))
    for i in by_remainder[: count - sum(whole)]:
        whole[i] += 1
    return whole


def _choices(places: int) -> Iterator[Container[int]]:
    """Yield the sets of places, by number, that take one more than the others."""
    if places <= PLACES:
        for count in range(places + 1):
            yield from combinations(range(places), count)
    else:
        yield ()
        for first in range(places):
            yield from (range(first, end + 1) for end in range(first, places))


def columns_merged(x: Tensor, count: int, score: str) -> tuple[Tensor, Tensor]:
    """Return which tokens leave each row and which take them in: the stage on rows.

    Args:
        x: (B, H, W, D), the residual on the grid.
        count: merges in every row, at most W // 2.
        score: cosine, or l1 for the negative L1 distance.

    Returns:
        Flat positions in the grid, (B, H * count) each: the right token of a pair goes to the left one.
    """
    B, H, W, _ = x.shape
    # With an odd W the last column has no partner, and stays.
    left, right = x[:, :, 0 : W // 2 * 2 : 2], x[:, :, 1::2]  # (B, H, W // 2, D)
    alike = F.cosine_similarity(left, right, dim=-1) if score == "cosine" else -(left - right).abs().sum(-1)
    chosen = []
    for window, quota in enumerate(quotas(W // 2, count)):
        first = window * WINDOW
        best = alike[:, :, first : first + WINDOW].argsort(dim=-1, descending=True, stable=True)[..., :quota]
        chosen.append(first + best)
    at = torch.cat(chosen, -1)  # (B, H, count), pairs
    row = W * torch.arange(H, device=x.device)[:, None]
    return (row + 2 * at + 1).reshape(B, -1), (row + 2 * at).reshape(B, -1)


def grid_merge(x: Tensor, cls: Tensor, side: int, score: str, new_cls: int) -> Merge:
    """Return the merge of a square grid down to `side` x `side`.

    Args:
        x: (B, L, D), the residual.
        cls: (B,), the class token's position.
        new_cls: the class token's place in the new sequence.
    """
    tokens = x.shape[1]
    at, old = patches(cls, tokens), isqrt(tokens - 1)
    grid = take(x, at)  # (B, old * old, D)
    src, into = columns_merged(grid.unflatten(1, (old, old)), old - side, score)
    rows = absorbing(staying(src, old * old), src, into, old * old)
    # The second stage compares what the first one made, so the first merge is carried out here on the residual.
    grid = merge(grid, rows, torch.ones_like(grid[..., 0])).unflatten(1, (old, side))
    src, into = columns_merged(grid.transpose(1, 2), old - side, score)
    keep = staying(src, old * side).unflatten(1, (side, side)).mT.flatten(1)  # the new grid, row by row
    # These are flat positions in the transposed grid (side, old): turn them into positions in the grid (old, side).
    keep, src, into = (position % old * side + position // old for position in (keep, src, into))
    both = composed(rows, absorbing(keep, src, into, old * side), old * old)
    # From numbers of patches to positions in the sequence.
    return absorbing(
        with_cls(at.gather(1, both.keep), cls, new_cls),
        at.gather(1, both.src),
        at.gather(1, both.keep.gather(1, both.dst)),
        tokens,
    )


class STORM(Peer):
    """STORM, row and column stages.

    Args:
        score: cosine, or l1 for the negative L1 distance.
    """

    def __init__(self, model: ModelConfig, removals: Removals, score: str = "cosine") -> None:
        super().__init__(model, removals)
        check_choice("score", score, SCORES)
        self.score = score

    def reduce(self, block: int, state: State, taps: Taps, count: int) -> State:
        assert state.h is not None  # a block has run
        patches_left = state.x.shape[1] - 1 - count
        new_cls = middle(self.model.class_token, patches_left)
        m = grid_merge(state.x, cls_of(state), isqrt(patches_left), self.score, new_cls)
        ones = torch.ones_like(state.x[..., 0])
        return State(
            merge(state.x, m, ones), merge(state.h, m, ones), cls=new_cls, size=sums(sizes(state), m), last_merge=m
        )

    def place(self, block: int, cls: Fixed, tokens: int) -> int | None:
        return middle(self.model.class_token, tokens - 1 - self.removals[block])

    @classmethod
    def budgets(cls, model: ModelConfig, places: Sequence[int]) -> Iterator[Removals]:
        """Yield square grids whose sides shrink by d or d + 1 after each block of `places`, by half at most.

        Any of the places may take the one more, up to as many places as STORM has itself. Of more places, those that do
        are neighbours: their number would double with each place.
        """
        side_of_all = model.grid[0]
        if model.grid != (side_of_all, side_of_all):
            raise UsageError(
                f"storm merges square grids, and this model's is {' x '.join(map(str, model.grid))}",
                "leave it out",
            )
        drops_of_all = {
            tuple(least + (number in more) for number in range(len(places)))
            for more in _choices(len(places))
            for least in range(side_of_all)
        }
        for drops in sorted(drops_of_all):
            side, removals = side_of_all, {}
            for block, drop in zip(places, drops, strict=True):
                if drop > side // 2:  # a row of `side` tokens has no more pairs
                    break
                removals[block] = side**2 - (side - drop) ** 2
                side -= drop
            else:
                if side < side_of_all:
                    yield removals

    def cost(self, tokens: int, count: int, model: ModelConfig) -> Cost:
        old, new, D = isqrt(tokens - 1), isqrt(tokens - 1 - count), model.d_model
        compared = old * (old // 2) + new * (old // 2)  # pairs of the first stage, and of the second
        score = 3 * D * compared if self.score == "cosine" else D * compared  # a product and two norms; a difference
        work = score + 2 * D * tokens  # both branches are merged
        return Cost(work, work)
