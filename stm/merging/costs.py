"""What merging costs a dense model: the first-order effect on its logits of every merge of neighbours, before every
block, from one backward pass per image and no label.

Let x_t (L, D) be the stream that enters block t, and v a random probe of the centred logits z. One backward pass gives
g_t = d<v, z> / d x_t for all t at once. If a group of neighbours becomes its mean m before block t, <v, z> changes to
first order by

    e = sum over its members j of <g_t[j], m - x_t[j]>.

The mean of e^2 over images and probes estimates E |dz|^2 without bias. The mean stands in the place of every member,
because with the step scale and the span convolution a merged token acts as its repeats.

A backbone has no logits. Its features, those of all patches, take their place, and are not centred.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from stm.config import Config, ModelConfig
from stm.merging.plan import Plan, State, Taps
from stm.model.vim import ViM

LARGEST_GROUP = 16  # neighbours that may become one token
# What autograd keeps per token and block, in floats per channel of the mixer: measured on ViM-Ti and ViM-S.
_FLOATS_KEPT = 5.5
# Less than a forward pass of 32 images of ViM-Ti takes, so that a fit needs no more memory than the check after it.
# Two images of ViM-Ti at once take a sixth less time per image than one: larger products keep two threads busy.
_BYTES_AT_ONCE = 110e6
_IMAGES_AT_ONCE = 8  # more are no faster on a processor, because their activations leave its caches


def effects(model: ViM, images: Tensor, probes: Tensor) -> Iterator[Tensor]:
    """Yield the effect e of every group before every block, for portions of the images that bound memory.

    Args:
        model: dense. Its parameters are not touched, and get no gradient.
        images: (B, C, H, W), normalised, on any device.
        probes: one per image, standard normal values in the shape of `probe_shape`; those of logits are centred here.

    Yields:
        (b, depth - 1, L, LARGEST_GROUP + 1), float64 on the processor: [:, t - 1, i, n] is the group of the n
        neighbours i to i + n - 1 before block t. Groups of fewer than two, and those that pass the last token, are 0.
        Those that hold the class token are meaningless.
    """
    device = model.cls_token.device
    frozen = _frozen(model)
    if model.config.num_classes:
        probes = probes - probes.mean(-1, keepdim=True)
    size = images_at_once(model.config.model)
    for some, their_probes in zip(images.split(size), probes.split(size), strict=True):
        yield _effects(frozen, some.to(device), their_probes.to(device))


def probe_shape(config: Config) -> tuple[int, ...]:
    """Return the shape of what a merge changes, for one image: logits (classes,), or features (D, H', W')."""
    model = config.model
    return (config.num_classes,) if config.num_classes else (model.d_model, *model.grid)


def images_at_once(model: ModelConfig) -> int:
    """Return the number of images whose backward pass fits `_BYTES_AT_ONCE`, at least one."""
    per_image = 4 * _FLOATS_KEPT * model.depth * model.tokens * model.d_inner
    return max(1, min(_IMAGES_AT_ONCE, int(_BYTES_AT_ONCE // per_image)))


def never_dearer(cost: Tensor) -> Tensor:
    """Return the least-squares fit that does not increase in t: the later a merge, the fewer blocks see it.

    Isotonic regression by its closed form: the smallest, over the first blocks s <= t, of the largest, over the last
    blocks u >= t, of the mean over s .. u.

    Args:
        cost: (T, ...), float64.
    """
    T = cost.shape[0]
    sums = torch.cat([cost.new_zeros(1, *cost.shape[1:]), cost.cumsum(0)])  # (T + 1, ...)
    best = torch.full_like(cost, torch.inf)
    for s in range(T):
        counts = torch.arange(1, T - s + 1, dtype=cost.dtype).view(-1, *[1] * (cost.dim() - 1))
        means = (sums[s + 1 :] - sums[s]) / counts  # (T - s, ...): of s .. u for each u >= s
        largest = means.flip(0).cummax(0).values.flip(0)  # over u >= t, for each t >= s
        best[s:] = torch.minimum(best[s:], largest)
    return best


class _Watch(Plan):
    """Keeps the stream that enters each block after the first, as a leaf or an inner node of autograd's graph."""

    def __init__(self) -> None:
        super().__init__()
        self.streams: list[Tensor] = []

    def forward(self, block: int, state: State, taps: Taps) -> State:
        # The first block needs no graph: nothing before it is asked for.
        x = state.stream if self.streams else state.stream.detach().requires_grad_()
        self.streams.append(x)
        return State(x, cls=state.cls)


def _frozen(model: ViM) -> ViM:
    """Return a copy that shares the memory of the weights, and whose backward pass computes no gradient of them."""
    shared = dict[int, object]()
    with torch.inference_mode(False):
        for parameter in model.parameters():
            # What was made in inference mode has no place in a graph, and only a copy of it has.
            data = parameter.clone() if parameter.is_inference() else parameter
            shared[id(parameter)] = nn.Parameter(data.detach(), requires_grad=False)
        return copy.deepcopy(model.with_plan(None), shared)


def _effects(model: ViM, images: Tensor, probes: Tensor) -> Tensor:
    """Return the effects (B, depth - 1, L, LARGEST_GROUP + 1) of one portion."""
    watch = _Watch()
    # The numbers are kept for later runs, so they must not depend on the caller's modes.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(images.device.type, enabled=False),
    ):
        answers = model.with_plan(watch, model.config).answer(images)
        gradients = torch.autograd.grad((answers * probes.clone()).sum(), watch.streams)
        each = []
        for image in range(len(images)):  # all blocks of an image at once are few large operations, and little memory
            g, x = (torch.stack([v[image].detach() for v in values]) for values in (gradients, watch.streams))
            each.append(_of_groups(g, x))
    return torch.stack(each)


def _of_groups(g: Tensor, x: Tensor) -> Tensor:
    """Return e of every group of neighbours before every block, for one image.

    With the sums over the group's members, e = <sum g, sum x> / n - sum <g, x>: the sum of a square on the diagonal of
    the products of all pairs of tokens, over n, less the sum of that diagonal. One more token adds a border to the
    square, so squares of all sizes need the diagonals nearest to the main one, and nothing else of the products.

    Args:
        g, x: (T, L, D), T the blocks.

    Returns:
        (T, L, LARGEST_GROUP + 1), float64 on the processor.
    """
    # Only differences of tokens count. What all tokens share would only cost digits.
    x = x - x.mean(1, keepdim=True)
    products = g @ x.mT  # (T, L, L)
    tokens = x.shape[1]
    largest = min(LARGEST_GROUP, tokens)
    # [:, d, t]: the products of token t with the one d places before it, both ways; for d = 0 there is one.
    pairs = products.new_zeros(x.shape[0], largest, tokens, dtype=torch.float64)
    for d in range(largest):
        above, below = (products.diagonal(side, dim1=1, dim2=2).double() for side in (d, -d))  # (T, L - d)
        pairs[:, d, d:] = above + below if d else above
    pairs = pairs.cpu()
    own, border = pairs[:, 0], pairs.cumsum(1)  # (T, L); (T, n, L): what token t adds to the n - 1 before it
    out = own.new_zeros(*own.shape, LARGEST_GROUP + 1)
    square = total = own
    for n in range(2, largest + 1):
        square = square[:, :-1] + border[:, n - 1, n - 1 :]  # (T, L + 1 - n)
        total = total[:, :-1] + own[:, n - 1 :]
        out[:, : tokens + 1 - n, n] = square / n - total
    return out
