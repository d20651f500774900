"""The base class of every peer: a Plan that removes a set number of tokens after certain blocks.

How many tokens leave, and after which blocks, is fixed when the peer is made. Which tokens leave, each peer decides
from the data. Fixed counts give every image of a batch the same length, and let a budget be costed before any run.
"""

from collections.abc import Iterator, Mapping, Sequence

from stm.config import ModelConfig
from stm.errors import UsageError
from stm.merging.outline import Cost, Entry
from stm.merging.plan import Plan, State, Taps
from stm.merging.schedule import Fixed

Removals = Mapping[int, int]  # block, counted from 0, to the number of tokens that leave after it


class Peer(Plan):
    """A method that is compared with ours.

    A peer overrides `reduce`, and what applies of `taps`, `place`, `most`, `budgets` and `cost`.

    Args:
        model: the shape of the model.
        removals: how many tokens leave, keyed by the block after which they leave.
    """

    static = False  # whether it removes the same tokens of every image
    several = False  # whether it takes a model with several class tokens

    def __init__(self, model: ModelConfig, removals: Removals) -> None:
        super().__init__()
        if model.class_tokens > 1 and not self.several:
            raise UsageError(
                f"{type(self).__name__} takes models with one class token, and this one has {model.class_tokens}",
                "leave it out: --methods stm,staged,paper,random",
            )
        self.model = model
        # Without blocks that remove nothing, so that no tap is computed for them.
        self.removals = {block: count for block, count in sorted(removals.items()) if count}

    def reduce(self, block: int, state: State, taps: Taps, count: int) -> State:
        """Return the state with `count` tokens fewer."""
        raise NotImplementedError

    def taps(self) -> tuple[str, ...]:
        """Return the names of the taps that `reduce` needs of the block before it."""
        return ()

    def place(self, block: int, cls: Fixed, tokens: int) -> Fixed | None:
        """Return the class token's place after the removal behind a block that leaves it at `cls` of `tokens` tokens.

        None if the place differs from image to image.
        """
        return None

    def cost(self, tokens: int, count: int, model: ModelConfig) -> Cost:
        """Return what choosing and removing `count` of `tokens` tokens costs per image."""
        return Cost()

    @classmethod
    def most(cls, tokens: int) -> int:
        """Return how many of so many tokens can leave at once. Several class tokens count as one."""
        # Methods that merge pairs can remove every second patch; the class token has no partner.
        return (tokens - 1) // 2

    @classmethod
    def budgets(cls, model: ModelConfig, places: Sequence[int]) -> Iterator[Removals]:
        """Yield every budget from the smallest to the largest.

        In each, r tokens leave after each of the blocks `places`, and r + 1 after the first m of them. Fewer leave
        after a block that does not have as many.
        """
        yielded: Removals = {}
        for total in range(1, cls.most(model.patches + 1) * len(places) + 1):
            r, m = divmod(total, len(places))
            removals = cls.fitted(model, {block: r + (number < m) for number, block in enumerate(places)})
            if removals != yielded:  # once every block gives what it has, a larger total changes nothing
                yield removals
            yielded = removals

    @classmethod
    def fitted(cls, model: ModelConfig, removals: Removals) -> Removals:
        """Return the removals with each count lowered to what can leave there."""
        tokens, fitted = model.patches + 1, {}
        for block, count in sorted(removals.items()):
            fitted[block] = min(count, cls.most(tokens))
            tokens -= fitted[block]
        return fitted

    def wants(self, block: int) -> tuple[str, ...]:
        return self.taps() if block in self.removals else ()

    def forward(self, block: int, state: State, taps: Taps) -> State:
        return self.reduce(block, state, taps, self.removals[block]) if block in self.removals else state

    def entering(self, model: ModelConfig) -> tuple[Entry, ...]:
        entries = [Entry(model.tokens, model.cls)]
        for block in range(model.depth - 1):
            tokens, cls, _ = entries[-1]
            if count := self.removals.get(block, 0):
                # Once the place differs between images it stays unknown, whatever a later removal does.
                cls = None if cls is None else self.place(block, cls, tokens)
            entries.append(Entry(tokens - count, cls))
        return tuple(entries)

    def flops(self, block: int, model: ModelConfig) -> Cost:
        if not self.removals.get(block):
            return Cost()
        tokens, count = self.before(block)
        return self.cost(tokens, count, model)

    def before(self, block: int) -> tuple[int, int]:
        """Return the tokens that leave a block, before the removal after it, and how many of them that removal
        takes."""
        tokens = self.model.tokens - sum(count for after, count in self.removals.items() if after < block)
        return tokens, self.removals.get(block, 0)


def every(start: int, step: int, depth: int) -> tuple[int, ...]:
    """Return the blocks after which a method acts that acts at the entry of blocks start, start + step, ..."""
    # What enters a block is what left the one before. The last block is left out: no block reads what it leaves.
    return tuple(range(start - 1, depth - 1, step))


def scaled(places: Sequence[int], depth: int) -> tuple[int, ...]:
    """Return blocks that were published for 24 blocks at the same share of another depth."""
    # A set, because a shallow model may send two published blocks to one. Nothing acts after the last block.
    return tuple(sorted({min(block * depth // 24, depth - 2) for block in places}))
