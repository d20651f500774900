"""`stm info`: a model's shape, cost and origin."""

from stm.artifact.provenance import tuned
from stm.config_file import to_json
from stm.loading import open_model
from stm.measure import flops
from stm.measure.environment import environment_of
from stm.options import ModelOptions
from stm.progress import OnProgress
from stm.reports import InfoReport
from stm.verdicts import unsure


def info(model: str, source: ModelOptions = ModelOptions(), *, on_progress: OnProgress | None = None) -> InfoReport:
    """Run `stm info`: return a model's shape, cost and origin. The arguments are those of `stm.load`."""
    vim = open_model(model, source, on_progress)
    config = vim.config
    fit = None if config.recipe is None else config.recipe.fit
    doubt = unsure(fit, config.schedule.saving(config.model.depth))
    # All counts follow from the config, and nothing runs. The model is opened all the same: a checkpoint's config is
    # inferred from its tensors, and a folder with broken weights should fail here.
    return InfoReport(
        command="info",
        model=model,
        environment=environment_of(vim),
        config=to_json(config),
        tokens_per_block=config.schedule.tokens_per_block(config.model.depth),
        flops=flops.count(config),
        parameters=flops.parameters(config.model, config.num_classes),
        source=config.source,
        measured=config.measured,
        notes=(*config.extra_texts("notes"), *filter(None, (tuned(config), doubt))),
    )
