"""Groups of groups: after a cut, neighbouring tokens of a side may join once more before a later block.

A second merge changes what the first one did, so it costs the mean, over the probes, of the squared difference of their
effects: (e of the union at its block - the sum of e of its parts at theirs)^2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from stm.merging.fit import CostTable, Group, at_price

PASSES = 2
# The price is a little below that of the flat cut, because regrouping adds to what a price saves.
_BISECTIONS, _BELOW = 8, 0.05
PROBES = 96  # whose effects decide; more take longer and decide the same


class Regrouping:
    """The flat cuts of a table, and what joins their groups.

    Args:
        table: of the mean squares of `effects`.
        effects: (P, depth - 1, L, n), of P probes; see `stm.merging.costs.effects`.
    """

    def __init__(self, table: CostTable, effects: Tensor) -> None:
        self.table = table
        self.effects = effects[:PROBES].float() / table.unit**0.5

    def fitted(self, layers: int) -> list[Group]:
        """Return the groups, and the groups that hold some of them, with a saving near to so many token-layers."""
        flat, _ = at_price(self.table.cut, self.table.saved, layers)
        _, groups = at_price(
            self.cut, self.table.saved, layers, low=_BELOW * flat, high=1.01 * flat, bisections=_BISECTIONS
        )
        return self.table.adjusted(groups, layers)

    def cut(self, price: float) -> list[Group]:
        """Return the groups of the flat cut at a price, and the unions that are worth it at the same price."""
        groups = self.table.cut(price)
        at = {group.start: group for group in groups}
        for part in self.table.parts:
            tokens, position = [], part.start  # from the first to the last; a token that never merged is a group of one
            while position < part.stop:
                tokens.append(at.get(position, Group(position, 1, 0)))
                position += tokens[-1].size
            for _ in range(PASSES):
                joined = self._joined(tokens, price)
                groups += [group for group in joined if group not in tokens]
                tokens = joined
        return groups

    def _joined(self, tokens: Sequence[Group], price: float) -> list[Group]:
        """Return the tokens of one side after one pass over them."""
        worth = self._unions(tokens, price)
        best, last = [0.0], [1]  # per number of first tokens: the smallest total, and how many the last union joins
        for end in range(1, len(tokens) + 1):
            value, count = best[end - 1], 1
            for k in range(2, min(end, self.table.largest_group) + 1):
                if (end - k, k) in worth and best[end - k] + worth[end - k, k][0] < value:
                    value, count = best[end - k] + worth[end - k, k][0], k
            best.append(value)
            last.append(count)
        out, end = [], len(tokens)
        while end:
            first, k = end - last[end], last[end]
            if k == 1:
                out.append(tokens[first])
            else:
                size = sum(token.size for token in tokens[first:end])
                out.append(Group(tokens[first].start, size, worth[first, k][1]))
            end = first
        return out[::-1]

    def _unions(self, tokens: Sequence[Group], price: float) -> dict[tuple[int, int], tuple[float, int]]:
        """Return, for the first token and the number of tokens of each possible union, its best total and block."""
        starts, sizes, blocks = (
            torch.tensor([getattr(token, name) for token in tokens]) for name in ("start", "size", "before")
        )
        own = self.effects[:, (blocks - 1).clamp_min(0), starts, sizes]  # (P, M); of a group of one it is 0
        effect_before = torch.nn.functional.pad(own.cumsum(1), (1, 0))  # (P, M + 1)
        size_before = torch.nn.functional.pad(sizes.cumsum(0), (1, 0))  # (M + 1,)
        later = torch.arange(1, self.table.depth)[:, None]
        out = {}
        for k in range(2, min(len(tokens), self.table.largest_group) + 1):
            first = torch.arange(len(tokens) - k + 1)
            union = size_before[first + k] - size_before[first]
            first, union = (values[union <= self.table.largest_group] for values in (first, union))
            if not len(first):
                break
            latest = torch.stack([blocks[first + i] for i in range(k)]).amax(0)  # of the parts
            parts = effect_before[:, first + k] - effect_before[:, first]  # (P, A)
            difference = self.effects[:, :, starts[first], union] - parts[:, None]  # (P, depth - 1, A)
            total = difference.square().mean(0).double() - price * (k - 1) * (self.table.depth - later)
            total = total.where(later > latest, torch.inf)  # (depth - 1, A)
            values, best = total.min(0)
            for token, value, block in zip(first.tolist(), values.tolist(), (best + 1).tolist(), strict=True):
                out[token, k] = (value, block)
        return out
