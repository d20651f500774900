"""Groups: for each block the original positions merged into each of its tokens, and their outlines on the grid.

Groups describe every method alike, so that one drawing serves all. They follow from the `Merge` that a plan leaves on
the state (`State.last_merge`), whether its indices are constants of a schedule or differ per image. No torch.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

from stm.merging.schedule import Fixed, fixed

Groups = tuple[tuple[int, ...], ...]  # per token, the original positions merged into it; pruned positions are in none


class Stage(NamedTuple):
    """A run of blocks that see the same tokens.

    Args:
        first, last: the first and the last block of the run.
        groups: the groups of each of its blocks.
    """

    first: int
    last: int
    groups: Groups

    @property
    def blocks(self) -> str:
        """The blocks in words, for a title."""
        return f"block {self.first}" if self.first == self.last else f"blocks {self.first} to {self.last}"


class Formed(NamedTuple):
    """A token that was made of several.

    Args:
        before: the first block that sees it.
        group: the original positions that it holds, ascending.
    """

    before: int
    group: tuple[int, ...]


def formed(per_block: Sequence[Groups]) -> list[Formed]:
    """Return the tokens that merging makes before each block, in the order of the blocks.

    Args:
        per_block: the groups that enter each block.
    """
    return [
        Formed(block, group)
        for block, (was, now) in enumerate(pairwise(per_block), start=1)
        for group in now
        if len(group) > 1 and group not in set(was)
    ]


def follow(groups: Groups, keep: Iterable[int], src: Iterable[int], dst: Iterable[int]) -> Groups:
    """Return the groups of one image after a merge, whose indices are those of `stm.merging.merge.Merge`."""
    held = [list(groups[position]) for position in keep]
    for source, destination in zip(src, dst, strict=True):
        held[destination] += groups[source]
    return tuple(tuple(sorted(group)) for group in held)


def stages(per_block: Sequence[Groups]) -> list[Stage]:
    """Return the groups of all blocks as runs of blocks with equal groups."""
    out: list[Stage] = []
    for block, groups in enumerate(per_block):
        if out and out[-1].groups == groups:
            out[-1] = out[-1]._replace(last=block)
        else:
            out.append(Stage(block, block, groups))
    return out


def patch_number(position: int, cls: Fixed) -> int:
    """Return the number of the patch at a position: each class token before it makes the position one larger."""
    return position - sum(c < position for c in fixed(cls))


def patches(groups: Groups, cls: Fixed) -> list[tuple[int, ...]]:
    """Return the groups as numbers of patches, row by row, without the groups of class tokens."""
    places = fixed(cls)
    held = (tuple(patch_number(position, cls) for position in group if position not in places) for group in groups)
    return [group for group in held if group]


def runs(group: Sequence[int]) -> list[list[int]]:
    """Return the positions of a group, ascending, as runs of neighbours."""
    numbered = groupby(enumerate(group), key=lambda pair: pair[1] - pair[0])
    return [[position for _, position in run] for _, run in numbered]


def pruned(groups: Groups, tokens: int, cls: Fixed) -> tuple[int, ...]:
    """Return the patches that are in no group, because a method removed them instead of merging them."""
    left = {patch for group in patches(groups, cls) for patch in group}
    return tuple(patch for patch in range(tokens - len(fixed(cls))) if patch not in left)


def scattered(group: Iterable[int], grid: int) -> bool:
    """Return whether the patches of a group do not form one piece, connected by edges."""
    # A flood fill from any patch of the group: what it does not reach is another piece.
    rest = set(group)
    reached = [rest.pop()]
    while reached:
        patch = reached.pop()
        row, column = divmod(patch, grid)
        beside = {(row + 1) * grid + column, (row - 1) * grid + column}
        # The next number in a row's last column is the first patch of the next row: no neighbour.
        beside |= {patch + step for step in (-1, 1) if 0 <= column + step < grid}
        reached += beside & rest
        rest -= beside
    return bool(rest)


def edges(group: Iterable[int], grid: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return the outline of a group as segments ((x, y), (x, y)), in patches from the top left corner.

    A straight run is one segment: a drawing of unit edges would be many times as large.
    """
    cells = {divmod(patch, grid) for patch in group}
    out = []
    # The four sides of a patch: the step to the neighbour, and the grid line of the side, relative to the patch.
    for dr, dc, line in ((-1, 0, 0), (1, 0, 1), (0, -1, 0), (0, 1, 1)):
        # A horizontal side is on the line between two rows and runs along the columns; a vertical one the other way.
        border = sorted(
            ((row + line, column) if dr else (column + line, row))
            for row, column in cells
            if (row + dr, column + dc) not in cells
        )
        run: list[int] = []
        for number, (across, along) in enumerate(border):
            run = [*run, along] if run else [along]
            if number + 1 == len(border) or border[number + 1] != (across, along + 1):
                ends = (run[0], run[-1] + 1)
                out.append(((ends[0], across), (ends[1], across)) if dr else ((across, ends[0]), (across, ends[1])))
                run = []
    return sorted(out)
