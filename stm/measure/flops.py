"""Count the multiply-accumulates of one image in two conventions, and the parameters, from the shapes alone.

The paper's convention is R-MeeTo's counter (NUS-HPC-AI-Lab/R-MeeTo): one direction of convolution, projections and
scan, every token in every block, the class token among the patches. Its figures compare with published tables. The
honest count is of what runs: both directions, the merges and their weights, and of the last block only what reaches the
class token. Neither counts norms, biases or activations.

A plan states its lengths and its own work before any run (`stm.merging.outline`), so a count needs no images and no
torch, and works for any model and plan.
"""

from collections.abc import Sequence
from functools import lru_cache

from stm.config import Config, ModelConfig
from stm.merging.outline import Dense, Outline, Scheduled
from stm.merging.schedule import fixed
from stm.reports import Flops


def count(config: Config, plan: Outline | None = None) -> Flops:
    """Return both counts of a model, and the shares that they save against the same model without a plan.

    Args:
        plan: another method's plan. None: the schedule of the config.
    """
    model, classes = config.model, config.num_classes
    if plan is None:
        plan = Dense() if config.protection is None else Scheduled(config.schedule, config.protection)
    ours, honest_ours = paper(model, classes, plan), honest(model, classes, plan)
    theirs, honest_theirs = _dense(model, classes)
    return Flops(
        paper=ours, honest=honest_ours, paper_saving=1 - ours / theirs, honest_saving=1 - honest_ours / honest_theirs
    )


@lru_cache  # a search counts hundreds of plans of one model
def _dense(model: ModelConfig, num_classes: int) -> tuple[int, int]:
    return paper(model, num_classes, Dense()), honest(model, num_classes, Dense())


def against(counted: Flops, base: Flops) -> Flops:
    """Return the counts of one model with the shares that they save against another."""
    paper_saving, honest_saving = 1 - counted.paper / base.paper, 1 - counted.honest / base.honest
    return Flops(paper=counted.paper, honest=counted.honest, paper_saving=paper_saving, honest_saving=honest_saving)


def paper(model: ModelConfig, num_classes: int, plan: Outline) -> int:
    """Return the count in the paper's convention; a span convolution counts as the plain one."""
    D, E, N, R, W = model.d_model, model.d_inner, model.d_state, model.dt_rank, model.d_conv
    projections = 2 * D * E + E * (R + 2 * N) + R * E + E * D
    scan = 9 * E * N + 2 * E
    # The official convolution computes L + W - 1 outputs and cuts the last W - 1 off; the counter counts them all.
    blocks = sum((projections + scan) * L + W * E * (L + W - 1) for L, _, _ in plan.entering(model))
    own = sum(plan.flops(block, model).paper for block in range(model.depth - 1))
    return model.in_chans * model.patch**2 * D * model.tokens + blocks + own + _classifier(model, num_classes)


def honest(model: ModelConfig, num_classes: int, plan: Outline) -> int:
    """Return the count of everything that has to be computed, the plan's own work included."""
    D, E, last = model.d_model, model.d_inner, model.depth - 1
    total = model.in_chans * model.patch**2 * D * model.patches + _classifier(model, num_classes)
    n = model.class_tokens
    for block, (L, c, span) in enumerate(plan.entering(model)):
        # Evaluations of the convolution per token. A merged token stands for its first W repeats: from then on the
        # window holds that token alone, and the result stays the same.
        windows = [1] * L if span is None else [min(size, model.d_conv) for size in span]
        if block < last or not n or not num_classes:  # the features of a backbone are those of every token
            total += 2 * D * E * L + 2 * _direction(model, windows, L) + E * D * L + plan.flops(block, model).honest
        else:
            # Only the class tokens are read: z, y and out_proj are computed at them alone. Each direction walks up to
            # its last one if their positions are the same in every image, and over all tokens otherwise.
            passed = (windows, windows) if c is None else (windows[: fixed(c)[-1] + 1], windows[fixed(c)[0] :])
            total += D * E * (L + n) + sum(_direction(model, part, n) for part in passed) + n * E * D
    return total


def parameters(model: ModelConfig, num_classes: int) -> int:
    """Return the number of trained parameters; a schedule adds none."""
    D, E, N, R, W = model.d_model, model.d_inner, model.d_state, model.dt_rank, model.d_conv
    direction = (W + 1) * E + (R + 2 * N) * E + (R + 1) * E + N * E + E  # conv1d, x_proj, dt_proj, A_log, D
    block = D + 2 * E * D + 2 * direction + D * E + (2 * E if model.scan_norm else 0)
    # Patches, class tokens, positions.
    embedding = (model.in_chans * model.patch**2 + 1) * D + model.class_tokens * D + model.tokens * D
    neck = 0 if model.neck is None else D * model.neck + model.d_head
    return embedding + model.depth * block + D + neck + (model.d_head + 1) * num_classes


def _classifier(model: ModelConfig, num_classes: int) -> int:
    if not num_classes:
        return 0
    neck = 0 if model.neck is None else model.class_tokens * model.d_model * model.neck
    return neck + model.d_head * num_classes


def _direction(model: ModelConfig, windows: Sequence[int], outputs: int) -> int:
    """Return the count of one direction over len(windows) tokens, of which `outputs` are read: y, skip and gate."""
    E, N, R, W = model.d_inner, model.d_state, model.dt_rank, model.d_conv
    # x_proj, dt_proj and the recurrence. The counter's scan is 9 E N; the ninth is y = C h, which only outputs need.
    state = E * (R + 2 * N) + R * E + 8 * E * N
    return W * E * sum(windows) + state * len(windows) + (E * N + 2 * E) * outputs
