"""Write the embedded model's card again after a change of the template: python -m tools.embedded_card"""

from stm.artifact import folder as artifact
from stm.assets import EMBEDDED_MODEL, FOLDER
from stm.hub.card import card
from stm.measure import flops


def embedded_card() -> str:
    """Return the embedded model's card, made from its folder."""
    config = artifact.read_config(FOLDER / EMBEDDED_MODEL)
    return card(
        config,
        name=EMBEDDED_MODEL,
        flops=flops.count(config),
        parameters=flops.parameters(config.model, config.num_classes),
        weights_bytes=config.files[artifact.WEIGHTS].bytes,
    )


if __name__ == "__main__":
    (FOLDER / EMBEDDED_MODEL / artifact.CARD).write_text(embedded_card(), encoding="utf-8")
