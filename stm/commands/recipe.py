"""Run a recipe again: the options that a folder records, and the check that they make the same model."""

import dataclasses
from pathlib import Path
from typing import Any, get_type_hints

from stm.artifact import folder as artifact
from stm.artifact.folder import CONFIG
from stm.artifact.provenance import own_source, tuned
from stm.codec import decode
from stm.config import REWRITE_HINT, Config
from stm.errors import ArtifactError, UsageError, said
from stm.merging.bnnm import DEFAULT_RATE, capacity_of
from stm.merging.budget import paper_saving
from stm.model_names import is_repo
from stm.options import CHECKPOINT_OPTIONS, MergeOptions, ModelOptions
from stm.recipe import Recipe
from stm.resolving import download


def recorded(config: Config, folder: str | Path) -> MergeOptions:
    """Return the merge options by which a folder was made.

    Raises:
        ArtifactError: the folder holds a dense model, or a model without a recipe.
    """
    recipe, protection = config.recipe, config.protection
    # A model that was trained or cast after merging keeps its schedule and loses its recipe: the recipe would not make
    # these weights again.
    if recipe is None and config.schedule.steps:
        why = tuned(config) or "its weights have another dtype than they were made in"
        raise ArtifactError(
            f"{folder} holds no recipe: {why}", "compress a dense model with the options of your choice instead"
        )
    if recipe is None or protection is None:
        raise ArtifactError(f"{folder} holds no recipe: its model is dense", "name a folder that stm compress wrote")
    # Every option is spelled out, defaults too: a later version may change what a preset means.
    return MergeOptions(
        rate=recipe.rate,
        saving=recipe.saving,
        stages=recipe.stages,
        method=recipe.method,
        schedule=recipe.schedule,
        sides=recipe.sides,
        tokens_per_side=recipe.tokens_per_side,
        weights=protection.weights,
        hsp=protection.mode if protection.weights == "hsp" else None,
        normalize=protection.normalized,
        step_scale=protection.step_scale,
        span_conv=protection.span_conv,
    )


def read_recipe(folder_or_repo: str | Path, options: ModelOptions) -> Config:
    """Return what a model's folder says of itself, on this machine or in a Hub repository."""
    text = str(folder_or_repo)
    # A folder wins over a repository of the same name, as everywhere where a MODEL is named.
    if not Path(text).exists() and is_repo(text):
        return artifact.read_config(download(text, token=options.token).path.parent)
    return artifact.read_config(text)


def default_name(name: str, options: MergeOptions) -> str:
    """Name the folder of a compressed model: `{name}-{method}{percent}`, for a saving `-s{percent}`, for stages
    `-b10-16`."""
    method = options.method or "stm"
    if options.stages is not None:
        return f"{name}-{method}-b{'-'.join(map(str, options.stages))}"
    if options.saving is not None:
        return f"{name}-{method}-s{_percent(options.saving)}"
    return f"{name}-{method}{_percent(DEFAULT_RATE if options.rate is None else options.rate)}"


def as_recorded(source: ModelOptions, again: Config, recipe: str | Path) -> ModelOptions:
    """Return the options of the source, completed by those with which the recipe's source was read.

    Raises:
        ArtifactError: a recorded option has another type than its field.
    """
    # `extra` is free JSON that anybody may have edited, so each value is decoded as strictly as a field of the config.
    kinds = get_type_hints(ModelOptions)
    try:
        asked = decode(dict[str, Any], again.extra.get("asked", {}), "extra.asked")
        recorded = {
            name: decode(kinds[name], asked[name], f"extra.asked.{name}")
            for name in CHECKPOINT_OPTIONS
            if name in asked
        }
    except ValueError as error:
        raise ArtifactError(f"{Path(recipe) / CONFIG}: {said(error)}", REWRITE_HINT) from error
    # An option that the user gives now wins over the recorded one.
    known = {
        name: value
        for name, value in (recorded | {"dtype": again.dtype}).items()
        if value is not None and not source.given(name)
    }
    return dataclasses.replace(source, **known)


def check_source(dense: Config, again: Config, model: str, recipe: str | Path | None) -> None:
    """Refuse to run a recipe on other weights than its own.

    Raises:
        UsageError: the hashes differ, or the recipe does not record one.
    """
    # By the hash and not by the name: a branch moves, and a file of the same name may hold other weights.
    if again.source.sha256 is None:
        raise UsageError(
            f"{recipe} does not name the file that it was made of, so nobody can tell whether {model} is that one",
            "compress with the options of your choice instead",
        )
    if (sha256 := own_source(dense).source.sha256) != again.source.sha256:
        raise UsageError(
            f"{model} is not the source of {recipe}: its sha256 is {str(sha256)[:12]}..., the recipe's"
            f" {str(again.source.sha256)[:12]}...",
            f"name the source {again.source.repo or again.source.file} at revision"
            f" {again.source.revision or 'that was used'}",
        )


def check_made(made: Config, again: Config, recipe: str | Path | None) -> None:
    """Refuse a result that differs from the recipe's folder.

    Raises:
        ArtifactError: the schedule or its protection differs.
        UsageError: the calibration images differ, or are missing.
    """
    # The schedule first: no choice of calibration images could mend a difference there.
    if (made.schedule, made.protection) != (again.schedule, again.protection):
        raise ArtifactError(
            f"{recipe} does not hold what its own recipe makes: it was edited, or made by another version of stm"
            f" ({again.stm_version})",
            "compress with the options of your choice instead",
        )
    averaged, recorded = (config.recipe.calibration if config.recipe else None for config in (made, again))
    if averaged == recorded:
        return
    if averaged is None and recorded is not None:
        raise UsageError(
            f"{recipe} was calibrated on {recorded.n} images of {recorded.data}, and none were given",
            "give them: --calibration DIR",
        )
    raise UsageError(
        f"the calibration images are not those that {recipe} was made with",
        "give the same folder, or leave --calibration out",
    )


def asked_saving(recipe: Recipe, config: Config) -> float | None:
    """Return the saving that was asked for: under `fitted` and `staged` a rate stands for the paper's saving at it.

    None under a gradual order, whose rate is a share of tokens and no saving.
    """
    if recipe.schedule not in ("fitted", "staged") or recipe.rate is None:
        return recipe.saving
    capacity = capacity_of(config.model, recipe.sides)
    return paper_saving(capacity, recipe.rate) / capacity.token_layers if recipe.rate else 0.0


def _percent(share: float) -> str:
    """Return a share as it stands in the name of a folder: 40, 12.5."""
    return f"{100 * share:.1f}".removesuffix(".0")
