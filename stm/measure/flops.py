"""Multiply-accumulates of one image, in two conventions, and parameters: counted from the shapes alone. No torch.

The paper's convention is R-MeeTo's counter (NUS-HPC-AI-Lab/R-MeeTo): one direction of convolution, projections and scan,
every token in every block, the class token among the patches. The honest count has both directions, what the merges and
their weights cost, and of the last block only what reaches the class token. Neither counts norms, biases or activations.
"""

from collections.abc import Sequence

from stm.config import Config, ModelConfig, Protection, dense_schedule
from stm.reports import Flops
from stm.schedule import Schedule, Step


def count(config: Config) -> Flops:
    """Both counts of a model with its schedule, and the shares that they save against the same model without one."""
    model, classes, schedule, dense = config.model, config.num_classes, config.schedule, dense_schedule(config.model)
    ours, theirs = (paper(model, classes, s.tokens_per_block(model.depth)) for s in (schedule, dense))
    honest_ours, honest_theirs = honest(model, classes, schedule, config.protection), honest(model, classes, dense)
    return Flops(paper=ours, honest=honest_ours, paper_saving=1 - ours / theirs, honest_saving=1 - honest_ours / honest_theirs)


def paper(model: ModelConfig, num_classes: int, tokens_per_block: Sequence[int]) -> int:
    """The paper's convention, from the tokens that enter each block; a span convolution counts as the plain one."""
    D, E, N, R, W = model.d_model, model.d_inner, model.d_state, model.dt_rank, model.d_conv
    projections = 2 * D * E + E * (R + 2 * N) + R * E + E * D
    scan = 9 * E * N + 2 * E
    blocks = sum((projections + scan) * L + W * E * (L + W - 1) for L in tokens_per_block)
    return model.in_chans * model.patch**2 * D * model.tokens + blocks + D * num_classes


def honest(model: ModelConfig, num_classes: int, schedule: Schedule, protection: Protection | None = None) -> int:
    """What has to be computed, merging included: D for each token that a step keeps or absorbs."""
    D, E, last = model.d_model, model.d_inner, model.depth - 1
    span_conv = protection is not None and protection.span_conv
    total = model.in_chans * model.patch**2 * D * (model.tokens - 1) + D * num_classes
    for block, c in enumerate(schedule.cls_per_block(model.depth)):
        sizes = schedule.sizes[sum(step.after < block for step in schedule.steps)]
        windows = [min(size, model.d_conv) if span_conv else 1 for size in sizes]  # evaluations of the convolution a token takes
        L = len(sizes)
        if block < last:
            total += 2 * D * E * L + 2 * _direction(model, windows, L) + E * D * L
        else:  # only the class token is read: z, y and out_proj there alone, each direction up to it
            total += D * E * (L + 1) + _direction(model, windows[: c + 1], 1) + _direction(model, windows[c:], 1) + E * D
    for step in schedule.steps:
        total += D * schedule.tokens_per_block(model.depth)[step.after]
        if protection is not None and protection.mode == "dynamic":
            total += _dynamic_hsp(model, step)
    return total


def parameters(model: ModelConfig, num_classes: int) -> int:
    """The trained parameters; a schedule adds none."""
    D, E, N, R, W = model.d_model, model.d_inner, model.d_state, model.dt_rank, model.d_conv
    direction = (W + 1) * E + (R + 2 * N) * E + (R + 1) * E + N * E + E  # conv1d, x_proj, dt_proj, A_log, D
    block = D + 2 * E * D + 2 * direction + D * E
    embedding = (model.in_chans * model.patch**2 + 1) * D + D + model.tokens * D  # patches, class token, positions
    return embedding + model.depth * block + D + (D + 1) * num_classes


def _direction(model: ModelConfig, windows: Sequence[int], outputs: int) -> int:
    """One direction of a block over len(windows) tokens, of which `outputs` are read: y, skip and gate."""
    E, N, R, W = model.d_inner, model.d_state, model.dt_rank, model.d_conv
    state = E * (R + 2 * N) + R * E + 8 * E * N  # x_proj, dt_proj and the recurrence but for y = C h, the ninth EN
    return W * E * sum(windows) + state * len(windows) + (E * N + 2 * E) * outputs


def _dynamic_hsp(model: ModelConfig, step: Step) -> int:
    """The weights of stm/hsp.py from the running input: for each absorbed token the Delta that elapses on its way to
    its destination (E a token), the decay and its overlap with both inputs (EN each), and the products of E and of N."""
    E, N = model.d_inner, model.d_state
    return sum(E * abs(source - destination) + 2 * E * N + 3 * E + 2 * N for source, destination in step.absorb)
