"""How a compressed model compares, and the report of it."""

import shlex
from pathlib import Path
from typing import NamedTuple

from stm.artifact import folder as artifact
from stm.commands.recipe import asked_saving
from stm.config import Config
from stm.config_file import to_json
from stm.data.images import MODES
from stm.data.open import CROPS
from stm.errors import Infeasible
from stm.evaluations import CLASSIFIER, Assessment
from stm.measure import flops
from stm.measure.environment import environment_of
from stm.model.vim import ViM
from stm.model_names import model_of
from stm.reports import CompressReport, Criterion, Gate, InfeasibleReport, KlGate, ServedSpeed
from stm.verdicts import BACKBONE, INFEASIBLE, judged, no_gain


class Outcome(NamedTuple):
    """How the compressed model compares: None for what was not measured, or not asked for.

    `moved` is a backbone's change of features.
    """

    figures: Assessment | None = None
    moved: float | None = None
    gate: Gate | None = None
    kl_gate: KlGate | None = None
    served: ServedSpeed | None = None

    @property
    def accepted(self) -> bool:
        """Whether every gate that there is was passed."""
        return all(gate is None or gate.passed for gate in (self.gate, self.kl_gate))


def reported(
    small: ViM, model: str, output: Path, dry_run: bool, outcome: Outcome, recorded: Config | None
) -> CompressReport:
    config = small.config
    assert config.recipe is not None and config.protection is not None  # bake has written both
    verdict, decided = judged(outcome.figures, outcome.gate, outcome.kl_gate)
    return CompressReport(
        command="compress",
        model=model,
        environment=environment_of(small),
        output=model_of(str(output)),
        dry_run=dry_run,
        verdict=verdict,
        decided=decided,
        source=config.source,
        recipe=config.recipe,
        protection=config.protection,
        schedule=to_json(config)["schedule"],
        asked_saving=asked_saving(config.recipe, config),
        saving=config.schedule.saving(config.model.depth),
        flops=flops.count(config),
        parameters=flops.parameters(config.model, config.num_classes),
        bytes=artifact.weights_size(small.state_dict()),
        eval=outcome.figures,
        served=outcome.served,
        gate=outcome.gate,
        rounding=config.rounding,
        kl_gate=outcome.kl_gate,
        feature_change=outcome.moved,
        notes=(*config.extra_texts("notes"), *_notes(config, output, outcome, recorded)),
        reasons=_reasons(small, dry_run, outcome),
    )


def refused(model: str, error: Infeasible) -> InfeasibleReport:
    """Return the report of what no schedule of a model reaches."""
    limit = Criterion(name=error.asked, bound=error.value, measured=error.best, met=False, n=error.n)
    return InfeasibleReport(
        command="compress",
        model=model,
        verdict=INFEASIBLE,
        decided=(limit,),
        reason=error.message,
        hint=error.hint,
    )


def _notes(config: Config, output: Path, outcome: Outcome, recorded: Config | None) -> list[str]:
    """Return what a reader of the figures should know of them."""
    notes, figures = [], outcome.figures
    if outcome.served is not None and outcome.served.gain_quartiles[0] <= 1 and config.protection is not None:
        notes.append(no_gain(outcome.served, config.protection))
    if figures is not None and figures.top1 is None:
        where = shlex.quote(model_of(str(output)))
        notes.append(
            f"accuracy was not measured, as {figures.data} has no labels; measure it: stm eval {where} --data DIR"
        )
    channels = config.model.in_chans
    if figures is not None and figures.data == CROPS and channels not in MODES:
        notes.append(
            f"the model takes {channels} channels and the photographs of the check have three, which repeat: images of"
            " your own say more"
        )
    if recorded is not None and figures is not None and recorded.measured:
        data = recorded.measured[0].data
        if figures.data != data:
            notes.append(f"the recipe's folder was measured on {data}, this one on {figures.data}: --data DIR chooses")
    return notes


def _reasons(small: ViM, dry_run: bool, outcome: Outcome) -> dict[str, str]:
    """Return why each part of the report that is null is null."""
    why = "a dry run compares nothing" if dry_run else "the comparison was switched off"
    if not small.config.num_classes:
        moved = {} if outcome.moved is not None else {"feature_change": why}
        return dict.fromkeys(("eval", "served", "gate", "rounding", "kl_gate"), BACKBONE) | moved
    if outcome.figures is None:
        nothing = ("eval", "gate", "rounding", "kl_gate", *(() if outcome.served is not None else ("served",)))
        return dict.fromkeys(nothing, why) | {"feature_change": CLASSIFIER}
    reasons = {"feature_change": CLASSIFIER}
    reasons |= {} if outcome.gate is not None else {"gate": "no max drop was given"}
    if small.config.rounding is None:
        reasons["rounding"] = f"the dtype is {small.config.dtype}"
    if outcome.kl_gate is None:
        reasons["kl_gate"] = "no max kl was given"
    if outcome.served is None:
        reasons["served"] = "nothing is merged" if small.plan is None else "the gate was not passed"
    return reasons
