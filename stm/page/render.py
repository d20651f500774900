"""Render findings as the page, one HTML file.

File names, labels and settings come from outside. The template escapes every value, and quotes those that people copy
into a shell or into Python, so no name can act on a page, a terminal or a program.
"""

import shlex
from functools import partial
from pathlib import Path

from stm import __version__
from stm.artifact.provenance import tuned
from stm.config import Config
from stm.errors import ArtifactError
from stm.evaluations import Evaluation, figure_rows
from stm.hub.card import fit_sentences, recipe_command
from stm.install import install_command
from stm.measure import flops
from stm.page import charts
from stm.page import content as facts
from stm.page.charts import Point
from stm.page.content import Findings
from stm.recipe import Recipe
from stm.units import operations, percent
from stm.verdicts import goal_text

HERE = Path(__file__).parent
_PERCENT = partial(percent, digits=2)
FIGURES = {"top1": "top-1", "agreement": "agreement with dense"}
LABELS = {
    "dense_top1": "top-1, dense",
    "top1": "top-1",
    "top5": "top-5",
    "drop": "top-1 lost, in points",
    "mcnemar_p": "McNemar's exact p",
    "agreement": "same answer as dense",
    "kl": "KL(dense, compressed), nats",
    "feature_change": "change of the features",
}


def render(config: Config, findings: Findings) -> str:
    """Return the page of a compressed model, from its folder's config and the findings about it.

    Raises:
        ArtifactError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment as Templates
        from jinja2 import FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise ArtifactError("writing a report needs jinja2, which is not installed", "pip install jinja2") from error
    # StrictUndefined: a name that the template misspells is an error, not an empty place on the page.
    templates = Templates(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters |= {
        "percent": _PERCENT,
        "share": _share,
        "operations": operations,
        "shell": shlex.join,
        "python": repr,
    }
    shape, schedule, evaluation, cost = config.model, config.schedule, findings.evaluation, flops.count(config)
    tokens, command = schedule.tokens_per_block(shape.depth), recipe_command(config)
    # Without labels there is no accuracy, so the curves are of agreement.
    figure = "agreement" if evaluation.top1 is None else "top1"
    ours, dense = _ends(evaluation, figure, cost.paper, cost.paper_saving)
    by_flops, by_time = facts.points(findings.sweep.rows if findings.sweep else (), figure)
    drawn = None if findings.costs is None else charts.costs(findings.costs)
    last = schedule.groups[-1]
    return templates.get_template("page.html.j2").render(
        version=__version__,
        install=install_command(),
        config=config,
        findings=findings,
        evaluation=evaluation,
        model=shape,
        command=None if command is None else shlex.join(command),
        asked=None if config.recipe is None else _asked(config.recipe),
        tuned=tuned(config),
        flops=cost,
        parameters=flops.parameters(shape, config.num_classes),
        tokens=tokens,
        saving=schedule.saving(shape.depth),
        stairs=charts.staircase(tokens),
        photograph=facts.photograph(shape.image_size),
        photograph_by=facts.PHOTOGRAPH_BY,
        down=charts.CELL * shape.grid[0],
        across=charts.CELL * shape.grid[1],
        panels=[
            {"caption": caption} | charts.outlines(held, schedule.cls, shape.grid[1])
            for caption, held in facts.merged_patches(config)
        ],
        costs=drawn,
        costs_picture=None if drawn is None else facts.as_picture(drawn["pixels"]),
        placed=None if findings.costs is None else charts.first_merges(findings.costs, last, shape.grid[1]),
        fit=fit_sentences(config),
        spans=None if findings.dense_ci is None else charts.intervals(evaluation, findings.dense_ci),
        accuracy=figure_rows(evaluation, LABELS, findings.dense_ci),
        # One sentence may explain several figures. The speed has a section of its own, with its own sentence.
        reasons=dict.fromkeys(why for key, why in evaluation.reasons.items() if key != "images_per_second"),
        speed=facts.speed_text(evaluation),
        figure=FIGURES[figure],
        by_flops=charts.pareto(by_flops, ours, dense) if by_flops else None,
        # No marks of this model here: its speed was measured on another run, maybe on another machine.
        by_time=charts.pareto(by_time) if by_time else None,
    )


def _ends(evaluation: Evaluation, figure: str, paper: int, saving: float) -> tuple[Point, Point]:
    """Return this model and the dense one as points over their operations."""
    value = getattr(evaluation, figure)
    low, high = getattr(evaluation, f"{figure}_ci", None) or (value, value)
    dense = evaluation.dense_top1 if evaluation.dense_top1 is not None else 1.0  # the dense model agrees with itself
    # A saving s leaves 1 - s of the operations, so dividing gives the dense model's.
    return Point("", paper / 1e9, value, low, high), Point("", paper / 1e9 / (1 - saving), dense, dense, dense)


def _asked(recipe: Recipe) -> str:
    """Return the budget that was asked for, in words."""
    if recipe.stages is not None:
        return f"stages before blocks {', '.join(map(str, recipe.stages))}"
    if recipe.rate is not None:
        return f"rate {recipe.rate:g}"
    goal, saving = goal_text(recipe.fit), f"a saving of {_PERCENT(recipe.saving or 0)}"
    return saving if goal is None else f"{goal}: {saving}"


def _share(share: float) -> str:
    """Return the label of a tick, with no more digits than its value has."""
    return f"{100 * share:.4g}%"
