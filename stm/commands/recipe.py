"""What was wished for: its name, and running it again from the recipe that a folder records."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from stm.artifact.folder import CONFIG
from stm.artifact.provenance import own_source, tuned
from stm.codec import decode
from stm.commands.open_model import From
from stm.config import REWRITE_HINT, Config
from stm.errors import ArtifactError, UsageError
from stm.merging.bnnm import DEFAULT_RATE
from stm.options import CHECKPOINT_OPTIONS, words


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What to bake: the options of `stm.compress`, None where the preset decides."""

    rate: float | None = None
    saving: float | None = None
    stages: Sequence[int] | None = None
    method: str | None = None
    schedule: str | None = None
    sides: str | None = None
    tokens_per_side: int | None = None
    weights: str | None = None
    hsp: str | None = None
    normalize: bool = False
    step_scale: float | None = None
    span_conv: bool | None = None

    @classmethod
    def recorded(cls, config: Config, folder: Path) -> "Wish":
        """The wish that a folder was made by.

        Raises:
            ArtifactError: it holds a dense model, or one without a recipe.
        """
        recipe, protection = config.recipe, config.protection
        if recipe is None and config.schedule.steps:
            why = tuned(config) or "its weights have another dtype than they were made in"
            raise ArtifactError(
                f"{folder} holds no recipe: {why}", "compress a dense model with the options of your choice instead"
            )
        if recipe is None or protection is None:
            raise ArtifactError(
                f"{folder} holds no recipe: its model is dense", "name a folder that stm compress wrote"
            )
        return cls(
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

    def words(self) -> list[str]:
        """What was wished for, as the command line takes it."""
        return words({name: value for name, value in vars(self).items() if value != getattr(Wish, name)})

    def options(self) -> dict[str, Any]:
        """The wish as `stm.bake.bake` takes it."""
        return vars(self) | {"method": self.method or "stm", "sides": self.sides or "both"}


def split(options: dict[str, Any]) -> tuple[From, Wish]:
    """The options of a command that takes a MODEL and says what to make of it: the fields of `From`, and those of
    `Wish`."""
    source = {name: value for name, value in options.items() if name in From.__dataclass_fields__}
    return From(**source), Wish(**{name: value for name, value in options.items() if name not in source})


def default_name(name: str, wish: Wish) -> str:
    """The folder of a compressed model: `{name}-{method}{percent}`, for a saving `-s{percent}`, for stages
    `-b10-16`."""
    method = wish.method or "stm"
    if wish.stages is not None:
        return f"{name}-{method}-b{'-'.join(map(str, wish.stages))}"
    if wish.saving is not None:
        return f"{name}-{method}-s{_percent(wish.saving)}"
    return f"{name}-{method}{_percent(DEFAULT_RATE if wish.rate is None else wish.rate)}"


def as_recorded(source: From, again: Config, recipe: str | Path) -> From:
    """The source's options, with those that the recipe's source was read with where none are given.

    Raises:
        ArtifactError: one that is recorded is not of its kind; `extra` is free JSON.
    """
    kinds = get_type_hints(From)
    try:
        asked = decode(dict[str, Any], again.extra.get("asked", {}), "extra.asked")
        recorded = {
            name: decode(kinds[name], asked[name], f"extra.asked.{name}")
            for name in CHECKPOINT_OPTIONS
            if name in asked
        }
    except ValueError as error:
        raise ArtifactError(f"{Path(recipe) / CONFIG}: {error}", REWRITE_HINT) from error
    known = {
        name: value
        for name, value in (recorded | {"dtype": again.dtype}).items()
        if value is not None and not source.given(name)
    }
    return dataclasses.replace(source, **known)


def check_source(dense: Config, again: Config, model: str, recipe: str | Path | None) -> None:
    """Refuse to run a recipe on other weights than its own."""
    if again.source.sha256 is None:
        raise UsageError(
            f"{recipe} does not name the file that it was made of, so nobody can tell whether {model} is that one",
            "compress with the options of your choice instead",
        )
    if (found := own_source(dense).source.sha256) != again.source.sha256:
        raise UsageError(
            f"{model} is not the source of {recipe}: its sha256 is {str(found)[:12]}..., the recipe's"
            f" {str(again.source.sha256)[:12]}...",
            f"name the source {again.source.repo or again.source.file} at revision"
            f" {again.source.revision or 'that was used'}",
        )


def check_made(made: Config, again: Config, recipe: str | Path | None) -> None:
    """Refuse what is not the recipe's: other calibration images, or another schedule than its folder holds."""
    if (made.schedule, made.protection) != (again.schedule, again.protection):
        raise ArtifactError(
            f"{recipe} does not hold what its own recipe makes: it was edited, or made by another version of stm"
            f" ({again.stm_version})",
            "compress with the options of your choice instead",
        )
    found, recorded = (config.recipe.calibration if config.recipe else None for config in (made, again))
    if found == recorded:
        return
    if found is None and recorded is not None:
        raise UsageError(
            f"{recipe} was calibrated on {recorded.n} images of {recorded.data}, and none were given",
            "give them: --calibration DIR",
        )
    raise UsageError(
        f"the calibration images are not those that {recipe} was made with",
        "give the same folder, or leave --calibration out",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0")
