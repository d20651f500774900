"""Return which tokens go where, as index tensors with one row per image: the pure functions that the peers share.

Letters: B images, L tokens, P = L - 1 patches, L' tokens that stay, S tokens that leave. A position is an index into
the sequence before a merge, a place an index into the sequence after it.

Every function is a fixed number of tensor operations without a branch on values. So a batch needs no loop over its
images, and one image's result cannot depend on another's. All sorts are stable: on ties the earlier token wins on every
device and backend, which keeps results reproducible.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from stm.merging.merge import Merge, merge, take
from stm.merging.plan import State
from stm.merging.schedule import Fixed


def cls_of(state: State) -> Tensor:
    """Return the class token's position in each image, (B,)."""
    if isinstance(state.cls, Tensor):
        return state.cls
    assert isinstance(state.cls, int)  # a peer that asks takes one class token
    return torch.full((state.x.shape[0],), state.cls, device=state.x.device)


def patches(cls: Tensor, tokens: int) -> Tensor:
    """Return the positions of the patches in order, (B, P), given the class token's cls (B,)."""
    positions = torch.arange(tokens - 1, device=cls.device)
    # The patches behind the class token stand one position further on than their number among the patches.
    return positions + (positions >= cls[:, None])


def staying(gone: Tensor, tokens: int) -> Tensor:
    """Return the positions that are left when `gone` (B, S) leave, in order: (B, L - S)."""
    stays = gone.new_ones(gone.shape[0], tokens).scatter(1, gone, 0)
    # A stable sort of ones before zeros lists the staying positions in order. A boolean mask would do the same, but its
    # result has no static shape, and its rows could not be stacked without a loop.
    return stays.argsort(dim=1, descending=True, stable=True)[:, : tokens - gone.shape[1]]


def with_cls(order: Tensor, cls: Tensor, new_cls: int) -> Tensor:
    """Return the patches in their new order (B, P') with the class token cls (B,) inserted at `new_cls`:
    (B, P' + 1)."""
    return torch.cat([order[:, :new_cls], cls[:, None], order[:, new_cls:]], 1)


def places(keep: Tensor, tokens: int) -> Tensor:
    """Return each position's place in the new sequence `keep` (B, L'), and 0 for positions that leave: (B, L)."""
    new = torch.arange(keep.shape[1], device=keep.device).expand_as(keep)  # (B, L')
    return keep.new_zeros(keep.shape[0], tokens).scatter(1, keep, new)


def absorbing(keep: Tensor, src: Tensor, into: Tensor, tokens: int) -> Merge:
    """Return the merge that keeps `keep` (B, L') and adds the positions `src` (B, S) to the staying positions `into`
    (B, S)."""
    return Merge(keep, src, places(keep, tokens).gather(1, into))


def pruning(keep: Tensor) -> Merge:
    """Return the merge that keeps `keep` (B, L') and absorbs nothing."""
    return Merge(keep, keep[:, :0], keep[:, :0])


def holders(m: Merge, tokens: int) -> Tensor:
    """Return the place that holds each position after a merge, (B, L). Every position must stay or be absorbed."""
    # Tokens that leave have no place of their own, and `places` gives them 0: overwrite it.
    return places(m.keep, tokens).scatter(1, m.src, m.dst)


def shares(mass: Tensor, m: Merge) -> Tensor:
    """Return each token's share of its group's mass (B, L): the weights that make a merge a mean."""
    return mass / sums(mass, m).gather(1, holders(m, mass.shape[1]))


def sums(mass: Tensor, m: Merge) -> Tensor:
    """Return the mass (B, L) of each group after a merge, (B, L')."""
    return merge(mass[..., None], m, torch.ones_like(mass))[..., 0]


def sizes(state: State) -> Tensor:
    """Return how many original tokens each token holds, (B, L)."""
    return state.x.new_ones(state.x.shape[:2]) if state.size is None else state.size


def composed(first: Merge, second: Merge, tokens: int) -> Merge:
    """Return the one merge of `tokens` tokens that equals `first` followed by `second`."""
    then = holders(second, first.keep.shape[1])
    # Sources of the second merge are places of the first sequence: look up the positions that they came from.
    src = torch.cat([first.src, first.keep.gather(1, second.src)], 1)
    return Merge(first.keep.gather(1, second.keep), src, torch.cat([then.gather(1, first.dst), second.dst], 1))


def merged(state: State, m: Merge, weights: Tensor, cls: Fixed | None = None) -> State:
    """Return the state after a merge of the stream; the sizes of merged tokens add up.

    Args:
        weights: (B, L), the factor of each token.
        cls: the class token's place. None: look it up in each image.
    """
    return State(merge(state.stream, m, weights), cls=_moved(state, m, cls), size=sums(sizes(state), m), last_merge=m)


def pruned(state: State, m: Merge, cls: Fixed | None = None) -> State:
    """Return the state after a pruning of the stream; arguments as in `merged`."""
    return State(take(state.stream, m.keep), cls=_moved(state, m, cls), last_merge=m)


def _moved(state: State, m: Merge, cls: Fixed | None) -> Fixed | Tensor:
    return places(m.keep, state.x.shape[1]).gather(1, cls_of(state)[:, None])[:, 0] if cls is None else cls


def clipped(y: Tensor) -> Tensor:
    """Return the sum over channels and directions of max(0, y), given the scan's output y (K, B, L, E): (B, L)."""
    return _at_least_float32(y).clamp_min(0).sum((0, -1))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine of each row of a (B, n, D) with each row of b (B, m, D): (B, n, m)."""
    return F.normalize(_at_least_float32(a), dim=-1) @ F.normalize(_at_least_float32(b), dim=-1).mT


def _at_least_float32(x: Tensor) -> Tensor:
    # In half precision many tokens have exactly the same score, and the tie rule would decide instead of the method.
    return x.to(torch.promote_types(x.dtype, torch.float32))


def cosine_operations(n: int, m: int, width: int) -> int:
    """Return the multiply-accumulates of `cosine` per image: the products, and squares and divisions of the norms."""
    return n * m * width + 2 * (n + m) * width


def bipartite(metric: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Match the r even tokens that are most alike to an odd token, as ToMe does.

    Splitting the tokens into two sets makes one pass enough: no token is both a source and a destination, so there are
    no chains of merges to resolve.

    Args:
        metric: (B, P, D), compared by cosine.
        r: at most P // 2.

    Returns:
        Sources by falling likeness and their destinations, (B, r) each, as positions in the metric. On a tie the
        earlier source comes first.
    """
    likeness, partner = cosine(metric[:, ::2], metric[:, 1::2]).max(-1)  # (B, ceil(P / 2)) each
    best = likeness.argsort(dim=1, descending=True, stable=True)[:, :r]  # (B, r)
    return 2 * best, 2 * partner.gather(1, best) + 1


def bipartite_operations(patches: int, width: int) -> int:
    """Return the multiply-accumulates of `bipartite` per image."""
    return cosine_operations(patches - patches // 2, patches // 2, width)


def middle(cls: str, patches: int) -> int:
    """Return where the official models put the class token among so many patches; cls as in
    `ModelConfig.class_token`."""
    return patches // 2 if cls == "middle" else 0
