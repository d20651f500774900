"""A recipe as a file: the choice of a `stm compress`, short enough to be kept in version control.

Every key is the option of that name, so that there is one vocabulary. `merges` alone is no option: it holds what a fit
decided, so that running the recipe fits nothing and gives the same bytes. A folder's config.json stays the truth of an
artifact; this file says what to make.
"""

import dataclasses
import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import stm
from stm.artifact import atomic
from stm.artifact.provenance import own_source
from stm.codec import LATER, brief_json, decode, encode
from stm.commands.export import FORMATS
from stm.config import CLASS_TOKENS, DTYPES, INTERPOLATIONS, MODES, WEIGHTS, Config
from stm.data.tables import read_text
from stm.errors import ArtifactError, DataError, UsageError, check_choice, listed
from stm.fitting import Choice as Fitted
from stm.merging.bnnm import DEFAULT_RATE
from stm.merging.schedule import Fixed, Schedule, Step
from stm.options import CHECKPOINT_OPTIONS, EvalOptions, FitOptions, MergeOptions, ModelOptions, flag
from stm.recipe import ORDERS, PRESET_NAMES, SIDES, Fit, Recipe
from stm.strict_yaml import Lines, parse, written

VERSION = 1
LARGEST = 1 << 20  # bytes: the merges of a model of 3,000 tokens have a tenth of it
SUFFIXES = (".yaml", ".yml")
_HINT = "docs/recipes.md lists the keys; stm compress --save-recipe FILE writes one"


@dataclass(frozen=True, kw_only=True)
class Merges:
    """What a fit decided.

    Args:
        tokens, class_token: of the models that they are for, as in config.json.
        steps: the merges, as in config.json.
        step_scale: p.
        saving: that an outcome asked for (max_drop, speedup) came to; null if a budget was given.
        source: the sha256 of the weights that they were fitted to; null if a person wrote them.
        fit: the images that decided, as in config.json; null if a person wrote them.
    """

    tokens: int
    class_token: Fixed
    steps: tuple[Step, ...]
    step_scale: float
    saving: float | None = field(default=None, metadata=LATER)
    source: str | None = field(default=None, metadata=LATER)
    fit: Fit | None = field(default=None, metadata=LATER)

    def chosen(self, config: Config, merge: MergeOptions) -> Fitted:
        """Return what the fit chose, for a model whose tokens and blocks are known to be those."""
        schedule = Schedule(config.model.tokens, config.model.cls, self.steps)
        return Fitted(schedule, dataclasses.replace(merge.protection, step_scale=self.step_scale), self.fit)

    def recorded(self, config: Config) -> Config:
        """Return the config of a model with the images of the fit in it, so that none of them measures it."""
        recipe = Recipe(method="stm", rate=0.0, removed_share=0.0, schedule="fitted", fit=self.fit)
        return dataclasses.replace(config, recipe=recipe)

    def notes(self, dense: Config, recipe: str | Path) -> tuple[str, ...]:
        """Return a note if the merges were fitted to other weights: those of a model that was trained on, perhaps."""
        sha256 = own_source(dense).source.sha256
        if self.source is None or self.source == sha256:
            return ()
        return (
            f"the merges of {recipe} were fitted to other weights (sha256 {self.source[:12]}..., these are"
            f" {str(sha256)[:12]}...): without its section merges they are fitted to these",
        )

    def schedule(self, config: Config, recipe: str | Path) -> Schedule:
        """Return the merges as a schedule of a model.

        Raises:
            UsageError: the model has other tokens or blocks.
        """
        shape, wrong = config.model, None
        schedule = Schedule(shape.tokens, shape.cls)
        if (self.tokens, self.class_token) != (shape.tokens, shape.cls):
            wrong = f"they are for {self.tokens} tokens, class token at {self.class_token}"
        else:
            try:
                schedule = Schedule(shape.tokens, shape.cls, self.steps)
                schedule.tokens_per_block(shape.depth)
            except ValueError as error:
                wrong = str(error)
        if wrong is not None:
            raise UsageError(
                f"the merges of {recipe} do not fit this model of {shape.tokens} tokens, class token at {shape.cls},"
                f" and {shape.depth} blocks: {wrong}",
                "remove the section merges, so that a schedule is fitted to this model",
            )
        return schedule


@dataclass(frozen=True, kw_only=True)
class Choice:
    """All that decides what `stm compress` makes of a model: neither the machine nor the output is part of it."""

    source: ModelOptions = ModelOptions()
    merge: MergeOptions = MergeOptions()
    fit: FitOptions = FitOptions()
    images: EvalOptions = EvalOptions()
    calibration: str | Path | None = None
    max_drop: float | None = None
    max_kl: float | None = None
    speedup: float | None = None
    served_batch: int | None = None
    no_eval: bool = False
    export: tuple[str, ...] = ()
    merges: Merges | None = None

    def get(self, name: str) -> Any:
        """Return the value of a key."""
        return getattr(self._owner(name), name)

    def given(self, name: str) -> bool:
        """Return whether a key differs from its default."""
        return bool(self.get(name) != getattr(type(self._owner(name)), name))

    def having(self, values: dict[str, Any]) -> "Choice":
        """Return this choice with other values for some keys."""
        own = {name: value for name, value in values.items() if name not in _GROUP_OF}
        for group in dict.fromkeys(_GROUP_OF.values()):
            new = {name: value for name, value in values.items() if _GROUP_OF.get(name) == group}
            own[group] = dataclasses.replace(getattr(self, group), **new)
        return dataclasses.replace(self, **own)

    def _owner(self, name: str) -> Any:
        return getattr(self, _GROUP_OF[name]) if name in _GROUP_OF else self


_BUDGET = ("rate", "saving", "stages", "speedup")
# The keys by the group of options that has them, and all of them in the order of the file, under its headings.
_SECTIONS: dict[str, tuple[str, ...]] = {
    "Budget: one of rate, saving, stages and speedup; or none and a max_drop, which then decides.": (
        *_BUDGET,
        "served_batch",
    ),
    "Method.": (*(f.name for f in dataclasses.fields(MergeOptions) if f.name not in _BUDGET), "calibration"),
    "The images that a schedule is fitted on.": ("fit_on", "fit_images"),
    "How the weights are read, and the dtype of the result.": (*CHECKPOINT_OPTIONS, "labels", "dtype"),
    "The check: images, and gates. max_drop is in points of top-1, max_kl in nats.": (
        "data",
        "split",
        "image_column",
        "label_column",
        "limit",
        "seed",
        "max_drop",
        "max_kl",
        "no_eval",
    ),
    "Written beside the folder, in these formats of stm export.": ("export",),
}
_GROUPS = {"merge": MergeOptions, "source": ModelOptions, "fit": FitOptions, "images": EvalOptions}
KEYS = tuple(name for names in _SECTIONS.values() for name in names)
_GROUP_OF = {name: group for group, owner in _GROUPS.items() for name in KEYS if hasattr(owner, name)}
_CHOICES: dict[str, Sequence[str]] = {
    "method": PRESET_NAMES,
    "schedule": ORDERS,
    "sides": SIDES,
    "weights": WEIGHTS,
    "hsp": MODES,
    "dtype": DTYPES,
    "class_token": CLASS_TOKENS,
    "interpolation": INTERPOLATIONS,
    "export": FORMATS,
}
_LEAST = dict.fromkeys(("tokens_per_side", "fit_images", "limit", "served_batch", "image_size"), 1) | dict.fromkeys(
    ("rate", "saving", "seed", "max_drop", "max_kl", "step_scale"), 0
)
_MOST = {"rate": 1, "saving": 1, "max_drop": 100}
# What a fit depends on: if one of these is another than the file's, the file's merges answer another question.
_DECIDES = {*_BUDGET, *_SECTIONS["Method."], "fit_on", "fit_images", "seed", "image_size"} - {"calibration"}


def is_recipe_file(recipe: str | Path) -> bool:
    """Return whether a recipe is a file, and not a model's folder or repository."""
    path = Path(recipe)
    return not path.is_dir() and (path.suffix.lower() in SUFFIXES or path.exists())


def read(path: str | Path) -> Choice:
    """Read a recipe.

    Raises:
        DataError: the file cannot be read, or says anything that no recipe says; the sentence names the line.
    """
    file = Path(path)
    text = read_text(file, LARGEST)
    lines: Lines = {}
    try:
        document, lines = parse(text)
        return _decoded(document)
    except ValueError as error:
        said = str(error)
        raise DataError(f"{file} {said if said.startswith('line ') else _located(said, lines)}", _HINT) from error


def _decoded(document: Any) -> Choice:
    if not isinstance(document, dict):
        raise ValueError(f"the recipe is {brief_json(document)}, expected keys and values, such as saving: 0.3")
    version = document.pop("recipe_version", None)
    if version != VERSION or isinstance(version, bool):
        raise ValueError(f"recipe_version is {brief_json(version)}, expected {VERSION}")
    if unknown := sorted(document.keys() - {*KEYS, "merges"}):
        raise ValueError(f"unknown key {listed(unknown)}")
    values = {name: _value(name, value) for name, value in document.items()}
    choice = Choice().having(values)
    if len(budget := [name for name in _BUDGET if choice.given(name)]) > 1:
        raise ValueError(f"{budget[1]} stands beside {budget[0]}, expected only one of {', '.join(_BUDGET)}")
    if choice.merges is not None and choice.merge.order != "fitted":
        raise ValueError(f"merges stand beside the schedule {choice.merge.order}, which follows from the budget")
    named = choice.merge.rate is not None or choice.merge.saving is not None
    if choice.merges is not None and named == (choice.merges.saving is not None):
        only = "expected one of rate, saving and merges.saving"
        raise ValueError(f"merges stand {'beside two budgets' if named else 'without a budget'}, {only}")
    return choice


def _value(name: str, value: Any) -> Any:
    if value is None:
        raise ValueError(f"{name} has no value: give it one, or leave the line out")
    kind = _kinds()[name]
    # A list of one is written as the thing itself, as on the command line.
    if kind in (tuple[str, ...], tuple[int, ...], tuple[float, ...] | None) and not isinstance(value, list):
        value = [value]
    made = decode(kind, value, name)
    for each in made if isinstance(made, tuple) else (made,):
        if name in _CHOICES:
            check_choice(name, each, _CHOICES[name], ValueError)
        low, high = _LEAST.get(name, -math.inf), _MOST.get(name, math.inf)
        if isinstance(each, int | float) and not low <= each <= high:
            raise ValueError(f"{name} is {each}, expected {f'{low} to {high}' if name in _MOST else f'at least {low}'}")
    if name == "speedup" and not made > 1:
        raise ValueError(f"speedup is {made:g}, expected a number above 1")
    return made / 100 if name == "max_drop" else made


def _kinds() -> dict[str, Any]:
    of_groups = {
        name: hint
        for owner in (MergeOptions, ModelOptions, FitOptions, EvalOptions)
        for name, hint in get_type_hints(owner).items()
    }
    # A path or names in Python are text in a file; several numbers are a list in it.
    text = dict.fromkeys(("labels", "fit_on", "data", "calibration"), str)
    return of_groups | get_type_hints(Choice) | text | {"stages": tuple[int, ...]}


def _located(said: str, lines: Lines) -> str:
    """Return a sentence with the line of what it names: the value itself, else the one that holds it."""
    for path in re.findall(r"[\w.\[\]-]+", said):
        steps = re.split(r"(?=[.\[])", path)
        for end in range(len(steps), 0, -1):
            if (line := lines.get("".join(steps[:end]))) is not None:
                return f"line {line}: {said}"
    return f"line 1: {said}"


def under(recipe: Choice, given: Choice, name: str | Path) -> tuple[Choice, tuple[str, ...]]:
    """Return a recipe with what the command line says besides, which counts, and a note of each replaced value.

    Args:
        name: of the recipe, for the notes.
    """
    notes, values = [], {key: given.get(key) for key in KEYS if given.given(key)}
    budget = [key for key in _BUDGET if key in values]
    replaced = [key for key in _BUDGET if recipe.given(key)] if budget else []
    for key in (*replaced, *(key for key in values if recipe.given(key) and key not in replaced)):
        new = key if key in values else budget[0]
        if values[new] != recipe.get(key) or new != key:
            typed, old = (_typed(each, value) for each, value in ((new, values[new]), (key, recipe.get(key))))
            notes.append(f"{flag(new, None)} {typed} counts, and not {key} {old} of {name}")
    if recipe.no_eval and any(key in values for key in ("data", "limit", "max_drop")):
        values["no_eval"] = False
        notes.append(f"the models are compared, although {name} says no_eval")
    outcome = not any(recipe.given(key) for key in _BUDGET)  # a gate without a budget decides how much is merged
    decides = _DECIDES | ({"max_drop"} if outcome else set())
    if recipe.merges is not None and any(value != recipe.get(key) for key, value in values.items() if key in decides):
        values["merges"] = None
        notes.append(f"the schedule is chosen anew: the merges of {name} answer another request")
    cleared = {key: getattr(type(recipe._owner(key)), key) for key in replaced}
    machine = {key: getattr(given.source, key) for key in ("file", "revision", "token", "device", "backend")}
    machine |= {key: getattr(given.images, key) for key in ("batch_size", "workers")} | {"no_cache": given.fit.no_cache}
    chosen = recipe.having(cleared | values)
    groups = {
        group: dataclasses.replace(
            getattr(chosen, group),
            **{key: value for key, value in machine.items() if hasattr(getattr(chosen, group), key)},
        )
        for group in ("source", "fit", "images")
    }
    return dataclasses.replace(chosen, **groups), tuple(notes)


def decided(made: Config, *, outcome: bool) -> Merges | None:
    """Return what a fit decided of a model that was made, or None if its schedule follows from its budget.

    Args:
        outcome: whether an outcome was asked for and no budget.
    """
    recipe, protection = made.recipe, made.protection
    if recipe is None or protection is None or recipe.schedule != "fitted" or not made.schedule.steps:
        return None
    return Merges(
        tokens=made.schedule.tokens,
        class_token=made.schedule.cls,
        steps=made.schedule.steps,
        step_scale=protection.step_scale,
        saving=recipe.saving if outcome else None,
        source=own_source(made).source.sha256,
        fit=recipe.fit,
    )


def check(path: Path, *, force: bool) -> None:
    """Refuse a recipe that cannot be written, before any work is done."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path} is to hold a recipe, expected a name that ends in .yaml", f"name it {path}.yaml")
    atomic.check_file(path, force=force)


def write(path: Path, choice: Choice, *, force: bool) -> None:
    """Write a recipe, whole or not at all."""
    with (
        atomic.refusing(path, "choose another place with --save-recipe", ArtifactError),
        atomic.drafted(path, force=force) as draft,
    ):
        draft.write_text(dumps(choice), encoding="utf-8")


def spelled(choice: Choice) -> Choice:
    """Return a choice with the preset and the default budget in it: a later version may have others."""
    values: dict[str, Any] = {"method": choice.merge.method or "stm"}
    of_merges = choice.merges is not None and choice.merges.saving is not None
    if not any(choice.given(name) for name in _BUDGET) and choice.max_drop is None and not of_merges:
        values["rate"] = DEFAULT_RATE
    return choice.having(values)


def dumps(choice: Choice) -> str:
    """Return the text of a recipe: what was given, under the headings of its sections."""
    choice = spelled(choice)
    lines = [
        f"# A recipe of stm {stm.__version__}: stm compress MODEL --recipe FILE makes the same choice again.",
        "# Each key is the option of that name. What is left out has its default.",
        f"recipe_version: {VERSION}",
    ]
    for heading, names in _SECTIONS.items():
        rows = [f"{name}: {_typed(name, choice.get(name))}" for name in names if choice.given(name)]
        lines += ["", f"# {heading}", *rows] if rows else []
    if choice.merges is not None:
        lines += [
            "",
            "# What the fit decided: with it nothing is fitted. Remove it to fit anew.",
            "merges:",
            *_merges(choice.merges),
        ]
    return "\n".join(lines) + "\n"


def _typed(name: str, value: Any) -> str:
    return written(round(100 * value, 10) if name == "max_drop" else str(value) if isinstance(value, Path) else value)


def _merges(merges: Merges) -> Iterator[str]:
    document = encode(merges)
    steps, fit = document.pop("steps"), document.pop("fit", None)
    yield from (f"  {key}: {written(value)}" for key, value in document.items())
    if fit is not None:
        tried = fit.pop("tried")
        yield "  fit:"
        yield from (f"    {key}: {written(value)}" for key, value in fit.items())
        yield "    tried:" if tried else "    tried: []"
        yield from (f"      - {written(each)}" for each in tried)
    yield "  steps: # after a block, counted from 0: each source and its destination, as positions leaving that block"
    for step in steps:
        text = f"    - {{after: {step['after']}, absorb: {written(step['absorb'])}}}"
        # Breaks between pairs only: a pair is one thing to a reader.
        joined = re.sub(r"(\d), (\d)", r"\1,~\2", text).replace("~", "\N{NO-BREAK SPACE}")
        yield from (
            line.replace("\N{NO-BREAK SPACE}", " ")
            for line in textwrap.wrap(joined, 110, subsequent_indent="       ", drop_whitespace=True)
        )
