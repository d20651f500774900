"""Which patches went where: for each block the groups of positions that its tokens hold, and their outlines on the
grid.

A method is described by nothing but these groups, so that one drawing serves all. They follow from the maps that a plan
leaves on the state, whether they are constants of a schedule or another's for each image. No torch.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

Groups = tuple[tuple[int, ...], ...]  # of each token, the original positions that it holds; what was pruned is in none


class Stage(NamedTuple):
    """A run of blocks that see the same tokens: the first and the last of them, and the groups."""

    first: int
    last: int
    groups: Groups

    @property
    def blocks(self) -> str:
        """The blocks in words."""
        return f"block {self.first}" if self.first == self.last else f"blocks {self.first} to {self.last}"


def follow(groups: Groups, keep: Iterable[int], src: Iterable[int], dst: Iterable[int]) -> Groups:
    """The groups after one merge of one image, given as the indices of `stm.merging.merge.Merge`."""
    held = [list(groups[position]) for position in keep]
    for source, destination in zip(src, dst, strict=True):
        held[destination] += groups[source]
    return tuple(tuple(sorted(group)) for group in held)


def stages(per_block: Sequence[Groups]) -> list[Stage]:
    """The groups of every block as runs of equal ones."""
    out: list[Stage] = []
    for block, groups in enumerate(per_block):
        if out and out[-1].groups == groups:
            out[-1] = out[-1]._replace(last=block)
        else:
            out.append(Stage(block, block, groups))
    return out


def patches(groups: Groups, cls: int) -> list[tuple[int, ...]]:
    """The groups as numbers of patches, row by row, without the class token's own."""
    held = (tuple(position - (position > cls) for position in group if position != cls) for group in groups)
    return [group for group in held if group]


def pruned(groups: Groups, tokens: int, cls: int) -> tuple[int, ...]:
    """The patches that no token holds any more."""
    left = {patch for group in patches(groups, cls) for patch in group}
    return tuple(patch for patch in range(tokens - 1) if patch not in left)


def scattered(group: Iterable[int], grid: int) -> bool:
    """Whether the patches of a group are not one piece, edge by edge."""
    rest = set(group)
    reached = [rest.pop()]
    while reached:
        patch = reached.pop()
        row, column = divmod(patch, grid)
        beside = {(row + 1) * grid + column, (row - 1) * grid + column}
        beside |= {patch + step for step in (-1, 1) if 0 <= column + step < grid}
        reached += beside & rest
        rest -= beside
    return bool(rest)


def edges(group: Iterable[int], grid: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The outline of a group: segments ((x, y), (x, y)) in patches from the top left corner, straight runs as one."""
    cells = {divmod(patch, grid) for patch in group}
    out = []
    for dr, dc, line in ((-1, 0, 0), (1, 0, 1), (0, -1, 0), (0, 1, 1)):
        # Across a horizontal line the run goes along the columns, across a vertical one along the rows.
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
