"""Multiply-accumulates of one image, in two conventions, and parameters: counted from the shapes alone, for any model
and plan.

The paper's convention is R-MeeTo's counter (NUS-HPC-AI-Lab/R-MeeTo): one direction of convolution, projections and
scan, every token in every block, the class token among the patches. The honest count has both directions, what the
merges and their weights cost, and of the last block only what reaches the class token. Neither counts norms, biases or
activations.
"""

from collections.abc import Sequence

from stm.config import Config, ModelConfig
from stm.merging.plan import Plan, StaticPlan
from stm.reports import Flops


def count(config: Config, plan: Plan | None = None) -> Flops:
    """Both counts of a model, and the shares that they save against the same model without a plan.

    Args:
        plan: another method's; None for the schedule of the config.
    """
    model, classes, dense = config.model, config.num_classes, Plan()
    if plan is None:
        plan = dense if config.protection is None else StaticPlan(config.schedule, config.protection, model)
    ours, theirs = paper(model, classes, plan), paper(model, classes, dense)
    honest_ours, honest_theirs = honest(model, classes, plan), honest(model, classes, dense)
    return Flops(
        paper=ours, honest=honest_ours, paper_saving=1 - ours / theirs, honest_saving=1 - honest_ours / honest_theirs
    )


def against(counted: Flops, base: Flops) -> Flops:
    """The counts of one model, and what they save against another."""
    paper_saving, honest_saving = 1 - counted.paper / base.paper, 1 - counted.honest / base.honest
    return Flops(paper=counted.paper, honest=counted.honest, paper_saving=paper_saving, honest_saving=honest_saving)


def paper(model: ModelConfig, num_classes: int, plan: Plan) -> int:
    """The paper's convention; a span convolution counts as the plain one."""
    D, E, N, R, W = model.d_model, model.d_inner, model.d_state, model.dt_rank, model.d_conv
    projections = 2 * D * E + E * (R + 2 * N) + R * E + E * D
    scan = 9 * E * N + 2 * E
    blocks = sum((projections + scan) * L + W * E * (L + W - 1) for L in plan.lengths(model))
    own = sum(plan.flops(block, model).paper for block in range(model.depth - 1))
    return model.in_chans * model.patch**2 * D * model.tokens + blocks + own + D * num_classes


def honest(model: ModelConfig, num_classes: int, plan: Plan) -> int:
    """What has to be computed, the plan's own work included."""
    D, E, last = model.d_model, model.d_inner, model.depth - 1
    total = model.in_chans * model.patch**2 * D * (model.tokens - 1) + D * num_classes
    for block, (L, c, span) in enumerate(plan.entering(model)):
        windows = (
            [1] * L if span is None else [min(size, model.d_conv) for size in span]
        )  # evaluations of the convolution a token takes
        if block < last:
            total += 2 * D * E * L + 2 * _direction(model, windows, L) + E * D * L + plan.flops(block, model).honest
        # only the class token is read: z, y and out_proj there alone, each direction up to it where its place is known
        else:
            passed = (windows, windows) if c is None else (windows[: c + 1], windows[c:])
            total += D * E * (L + 1) + sum(_direction(model, part, 1) for part in passed) + E * D
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
