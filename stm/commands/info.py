"""`stm info`: a model's shape, cost and origin."""

from stm.artifact.provenance import tuned
from stm.config_file import to_json
from stm.describing import describe
from stm.measure import flops
from stm.options import ModelOptions
from stm.progress import OnProgress
from stm.reports import InfoReport
from stm.verdicts import unsure


def info(model: str, source: ModelOptions = ModelOptions(), *, on_progress: OnProgress | None = None) -> InfoReport:
    """Run `stm info`: return a model's shape, cost and origin. The arguments are those of `stm.load`."""
    # All counts follow from the config, and nothing runs. A folder with broken weights fails here all the same.
    config = describe(model, source, on_progress)
    fit = None if config.recipe is None else config.recipe.fit
    doubt = unsure(fit, config.schedule.saving(config.model.depth))
    return InfoReport(
        command="info",
        model=model,
        config=to_json(config),
        tokens_per_block=config.schedule.tokens_per_block(config.model.depth),
        flops=flops.count(config),
        parameters=flops.parameters(config.model, config.num_classes),
        source=config.source,
        measured=config.measured,
        notes=(*config.extra_texts("notes"), *filter(None, (tuned(config), doubt))),
    )
