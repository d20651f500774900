"""`stm models`: the models that have a short name."""

from stm.artifact import folder as artifact
from stm.assets import EMBEDDED_MODEL, FOLDER
from stm.hub.aliases import ALIASES
from stm.hub.fetch import cached
from stm.measure import flops
from stm.reports import ListedModel, ModelsReport


def list_models() -> ModelsReport:
    """Run `stm models`: list every model with a short name, and whether it is in the cache.

    The Hub is not asked, so the command works offline.
    """
    # The embedded model describes itself in its config. Those of the Hub are described by a table, since their
    # checkpoints would have to be downloaded and read.
    embedded = artifact.read_config(FOLDER / EMBEDDED_MODEL)
    models = [
        ListedModel(
            name=EMBEDDED_MODEL,
            repo=None,
            file=None,
            license=embedded.source.license,
            parameters=flops.parameters(embedded.model, embedded.num_classes),
            tokens=embedded.model.tokens,
            image_size=embedded.model.image_size,
            top1=None,  # the column is of ImageNet accuracies, and this model reads digits
            cached=True,
            bytes=embedded.files[artifact.WEIGHTS].bytes,
        )
    ]
    for name, alias in ALIASES.items():
        path = cached(alias.repo, alias.file)
        about = {
            key: getattr(alias, key)
            for key in ("repo", "file", "license", "parameters", "tokens", "image_size", "top1")
        }
        models.append(
            ListedModel(
                name=name, **about, cached=path is not None, bytes=None if path is None else path.stat().st_size
            )
        )
    return ModelsReport(command="models", model="", models=tuple(models))
