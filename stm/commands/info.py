"""`stm info`: what a model is, what it costs and where it came from."""

from typing import Any

from stm.artifact.provenance import tuned
from stm.commands.open_model import From, open_model
from stm.config_file import to_json
from stm.measure import flops
from stm.measure.environment import environment_of
from stm.progress import OnProgress
from stm.reports import InfoReport


def info(model: str, *, on_progress: OnProgress | None = None, **source: Any) -> InfoReport:
    """`stm info`: what a model is, what it costs and where it came from; arguments as for `evaluate`."""
    vim = open_model(model, From(**source), on_progress)
    config = vim.config
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
        notes=(*config.extra_texts("notes"), *filter(None, (tuned(config),))),
    )
