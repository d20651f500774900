"""What every peer is: a Plan that removes a set number of tokens after certain blocks. Which ones, each peer
decides."""

from collections.abc import Iterator, Mapping, Sequence

from stm.config import ModelConfig
from stm.merging.plan import Entry, Plan, State, Taps

Removals = Mapping[int, int]  # after which block (from 0), how many tokens


class Peer(Plan):
    """A method that is compared with ours.

    Args:
        model: the shape of the model.
        removals: how many tokens leave, by the block after which they do.
    """

    static = False  # whether it removes the same tokens of every image

    def __init__(self, model: ModelConfig, removals: Removals) -> None:
        super().__init__()
        self.model = model
        self.removals = {block: count for block, count in sorted(removals.items()) if count}

    def reduce(self, block: int, state: State, taps: Taps, count: int) -> State:
        """The state with `count` tokens fewer."""
        raise NotImplementedError

    def taps(self) -> tuple[str, ...]:
        """The taps of a block that is followed by a removal."""
        return ()

    def place(self, block: int, cls: int, tokens: int) -> int | None:
        """Where the class token goes after a block that leaves it at `cls` of `tokens`; None where that differs from
        image to image."""
        return None

    @classmethod
    def most(cls, tokens: int) -> int:
        """How many of so many tokens can leave at once."""
        return (tokens - 1) // 2

    @classmethod
    def budgets(cls, model: ModelConfig, places: Sequence[int]) -> Iterator[Removals]:
        """From the smallest to the largest: r tokens after each of the blocks `places`, the first m of them r + 1, or
        what there is."""
        yielded: Removals = {}
        for total in range(1, cls.most(model.tokens) * len(places) + 1):
            r, m = divmod(total, len(places))
            removals = cls.fitted(model, {block: r + (number < m) for number, block in enumerate(places)})
            if removals != yielded:
                yield removals
            yielded = removals

    @classmethod
    def fitted(cls, model: ModelConfig, removals: Removals) -> Removals:
        """Removals with no more tokens than can leave at each place."""
        tokens, out = model.tokens, {}
        for block, count in sorted(removals.items()):
            out[block] = min(count, cls.most(tokens))
            tokens -= out[block]
        return out

    def wants(self, block: int) -> tuple[str, ...]:
        return self.taps() if block in self.removals else ()

    def forward(self, block: int, state: State, taps: Taps) -> State:
        return self.reduce(block, state, taps, self.removals[block]) if block in self.removals else state

    def entering(self, model: ModelConfig) -> tuple[Entry, ...]:
        entries = [Entry(model.tokens, model.cls)]
        for block in range(model.depth - 1):
            tokens, cls, _ = entries[-1]
            if count := self.removals.get(block, 0):
                cls = None if cls is None else self.place(block, cls, tokens)
            entries.append(Entry(tokens - count, cls))
        return tuple(entries)

    def before(self, block: int) -> tuple[int, int]:
        """The tokens that leave a block, before the removal after it, and how many of them are then removed."""
        tokens = self.model.tokens - sum(count for after, count in self.removals.items() if after < block)
        return tokens, self.removals.get(block, 0)


def every(start: int, step: int, depth: int) -> tuple[int, ...]:
    """The blocks after which a method acts that acts at the entry of blocks start, start + step, ..."""
    return tuple(range(start - 1, depth - 1, step))


def scaled(places: Sequence[int], depth: int) -> tuple[int, ...]:
    """Blocks that were published for 24 blocks, at the same share of another depth."""
    return tuple(sorted({min(place * depth // 24, depth - 2) for place in places}))
