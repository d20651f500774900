"""Configs with everything that a model card can say, and the card of one."""

import dataclasses
from typing import Any

from stm.config import Config, Measured, ModelConfig, Preprocess, Protection, Source, dense_schedule
from stm.hub.card import card
from stm.merging.schedule import Schedule, Step
from stm.recipe import Recipe
from stm.reports import Environment, Flops

MODEL = ModelConfig(image_size=4, patch=2, stride=2, d_model=2, depth=12, d_state=2, dt_rank=1)
DENSE = Config(model=MODEL, num_classes=2, schedule=dense_schedule(MODEL), preprocessing=Preprocess(resize=4, crop=4))
SMALL = dataclasses.replace(
    DENSE,
    schedule=Schedule(5, 2, (Step(0, ((0, 1), (4, 3))), Step(9, ((2, 0),)))),
    protection=Protection(),
    recipe=Recipe(method="staged", rate=0.4, removed_share=0.75, schedule="staged"),
    source=Source(repo="someone/their-vim", file="vim.pth", revision="c0ffee", sha256="5eed", license="apache-2.0"),
)
LABELLED = Measured(
    data="digits",
    n=599,
    failed=2,
    top1=0.97,
    top1_ci=(0.95, 0.98),
    top5=0.999,
    dense_top1=0.975,
    drop=0.005,
    drop_ci=(-0.01, 0.02),
    mcnemar_p=0.25,
    agreement=0.99,
    kl=0.0012,
    seed=3,
)
LABEL_FREE = Measured(
    data="photographs", n=40, agreement=0.9, kl=0.125, reasons={"top1": "no labels", "top5": "no labels"}
)
FLOPS = Flops(paper=1124802048, honest=2345678, paper_saving=0.2238, honest_saving=0.1)
HERE = Environment(
    stm="0.1.0", torch="2.13.0", device="cpu", name="A processor", dtype="float32", backend="native", threads=2
)


def written(config: Config, **more: Any) -> str:
    return card(config, **{"name": "small", "flops": FLOPS, "parameters": 12345, "weights_bytes": 67890} | more)
