"""What the peers share: which tokens go where, as index tensors, one row an image. Pure functions.

B images, L tokens, P = L - 1 patches, L' tokens that stay, S that leave. Positions are those before the merge, places
those after.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from stm.merging.merge import Merge, merge, take
from stm.merging.plan import State


def cls_of(state: State) -> Tensor:
    """(B,): the class token's position in each image."""
    if isinstance(state.cls, Tensor):
        return state.cls
    return torch.full((state.x.shape[0],), state.cls, device=state.x.device)


def patches(cls: Tensor, tokens: int) -> Tensor:
    """(B, P): the positions of the patches, in order; cls (B,)."""
    positions = torch.arange(tokens - 1, device=cls.device)
    return positions + (positions >= cls[:, None])


def staying(gone: Tensor, tokens: int) -> Tensor:
    """(B, L - S): the positions that are left when `gone` (B, S) leave, in order."""
    stays = gone.new_ones(gone.shape[0], tokens).scatter(1, gone, 0)
    return stays.argsort(dim=1, descending=True, stable=True)[:, : tokens - gone.shape[1]]


def with_cls(order: Tensor, cls: Tensor, place: int) -> Tensor:
    """(B, P' + 1): patches in their new order (B, P'), with the class token (B,) put in at `place`."""
    return torch.cat([order[:, :place], cls[:, None], order[:, place:]], 1)


def places(keep: Tensor, tokens: int) -> Tensor:
    """(B, L): the place of each position in the new sequence `keep` (B, L'); 0 for those that leave."""
    new = torch.arange(keep.shape[1], device=keep.device).expand_as(keep)
    return keep.new_zeros(keep.shape[0], tokens).scatter(1, keep, new)


def absorbing(keep: Tensor, src: Tensor, into: Tensor, tokens: int) -> Merge:
    """The merge that keeps `keep` (B, L') and adds the positions `src` (B, S) to the positions `into` (B, S), which
    stay."""
    return Merge(keep, src, places(keep, tokens).gather(1, into))


def pruning(keep: Tensor) -> Merge:
    """The merge that absorbs nothing."""
    return Merge(keep, keep[:, :0], keep[:, :0])


def holders(m: Merge, tokens: int) -> Tensor:
    """(B, L): the place that holds each position after a merge in which every position stays or is absorbed."""
    return places(m.keep, tokens).scatter(1, m.src, m.dst)


def shares(mass: Tensor, m: Merge) -> Tensor:
    """(B, L): each token's share of its group's mass (B, L): the weights of a mean."""
    return mass / sums(mass, m).gather(1, holders(m, mass.shape[1]))


def sums(mass: Tensor, m: Merge) -> Tensor:
    """(B, L'): the mass of each group."""
    return merge(mass[..., None], m, torch.ones_like(mass))[..., 0]


def sizes(state: State) -> Tensor:
    """(B, L): how many of the first tokens each token holds."""
    return state.x.new_ones(state.x.shape[:2]) if state.size is None else state.size


def composed(first: Merge, second: Merge, tokens: int) -> Merge:
    """The merge that is `first` and then `second`; of `tokens` tokens."""
    then = holders(second, first.keep.shape[1])
    src = torch.cat([first.src, first.keep.gather(1, second.src)], 1)
    return Merge(first.keep.gather(1, second.keep), src, torch.cat([then.gather(1, first.dst), second.dst], 1))


def merged(state: State, m: Merge, weights: Tensor, cls: int | None = None) -> State:
    """The state after a merge of the stream, sizes added.

    Args:
        weights: (B, L), what each token is multiplied by.
        cls: the class token's place; None: wherever it went in each image.
    """
    return State(merge(state.stream, m, weights), cls=_moved(state, m, cls), size=sums(sizes(state), m), last_merge=m)


def pruned(state: State, m: Merge, cls: int | None = None) -> State:
    """The state after a pruning of the stream; arguments as in `merged`."""
    return State(take(state.stream, m.keep), cls=_moved(state, m, cls), last_merge=m)


def _moved(state: State, m: Merge, cls: int | None) -> int | Tensor:
    return places(m.keep, state.x.shape[1]).gather(1, cls_of(state)[:, None])[:, 0] if cls is None else cls


def clipped(y: Tensor) -> Tensor:
    """(B, L): the sum over channels and directions of max(0, y), of the scan's output y (K, B, L, E)."""
    return _exact(y).clamp_min(0).sum((0, -1))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """(B, n, m): the cosine of each of a (B, n, D) with each of b (B, m, D)."""
    return F.normalize(_exact(a), dim=-1) @ F.normalize(_exact(b), dim=-1).mT


def _exact(x: Tensor) -> Tensor:
    """In at least float32: what is compared may be in half precision, where many tokens are equally alike."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def cosine_operations(n: int, m: int, width: int) -> int:
    """The multiply-accumulates of `cosine` for one image: the products, and squares and divisions of the norms."""
    return n * m * width + 2 * (n + m) * width


def bipartite(metric: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """ToMe's matching: of the r even tokens that are most alike to an odd one, which they are and which they go to.

    Args:
        metric: (B, P, D), compared by cosine.
        r: at most P // 2.

    Returns:
        Sources by falling likeness and their destinations, (B, r) each, as positions in the metric. A tie goes to the
        earlier one.
    """
    likeness, partner = cosine(metric[:, ::2], metric[:, 1::2]).max(-1)  # (B, number of even ones)
    best = likeness.argsort(dim=1, descending=True, stable=True)[:, :r]
    return 2 * best, 2 * partner.gather(1, best) + 1


def bipartite_operations(patches: int, width: int) -> int:
    """The multiply-accumulates of `bipartite` for one image."""
    return cosine_operations(patches - patches // 2, patches // 2, width)


def middle(cls: str, patches: int) -> int:
    """Where the official models put a class token among so many patches; cls as in `ModelConfig.class_token`."""
    return patches // 2 if cls == "middle" else 0
