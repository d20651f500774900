"""Write the model card, README.md of a folder, from the facts that are known about the model and nothing else.

A number that was not measured is absent. Text from outside (names of files, sample sets, licences) is quoted for the
language of its place: YAML, Markdown, shell or Python.
"""

import hashlib
import json
import re
import shlex
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

from stm import __version__
from stm.artifact.provenance import tuned
from stm.config import Config, Measured
from stm.errors import ArtifactError, listed
from stm.evaluations import figure_rows, rounding_text
from stm.hub.aliases import read_set_name
from stm.install import install_command
from stm.merging.schedule import fixed
from stm.options import CHECKPOINT_OPTIONS, words
from stm.reports import Environment, Flops, ServedSpeed
from stm.units import operations, percent
from stm.verdicts import chosen, fitted_on, milder, unsure, warning

TEMPLATE, USE = (Path(__file__).with_name(name) for name in ("card.md.j2", "card_use.md.j2"))
_BEGIN, _END = "<!-- use -->", "<!-- end of use -->"
_PERCENT = partial(percent, digits=2)
_STAIRS = 40  # characters of the widest step
_LABELS = {
    "dense_top1": "top-1, dense model",
    "top1": "top-1",
    "top5": "top-5",
    "drop": "top-1 lost, in points",
    "mcnemar_p": "exact McNemar test, p",
    "agreement": "images that keep the dense model's top-1",
    "kl": "KL(dense, this), nats",
    "feature_change": "change of the features (root mean square)",
}


def card(
    config: Config,
    *,
    name: str,
    flops: Flops,
    parameters: int,
    weights_bytes: int,
    images_per_second: float | None = None,
    served: ServedSpeed | None = None,
    environment: Environment | None = None,
) -> str:
    """Return the text of README.md, front matter included.

    Args:
        config: the folder's config.
        name: the folder's base name.
        flops: of one image.
        parameters: how many there are.
        weights_bytes: of model.safetensors.
        images_per_second: the measured speed of the model alone.
        served: the measured speed beside the dense model.
        environment: of both measurements.

    Raises:
        ArtifactError: jinja2 is not installed.
    """
    return _sealed(
        _render(
            TEMPLATE,
            config,
            name=name,
            use=_use(config, name),
            protection=config.protection,
            recipe=config.recipe,
            source=config.source,
            flops=flops,
            parameters=parameters,
            weights_bytes=weights_bytes,
            images_per_second=images_per_second,
            served=served,
            environment=environment,
            version=__version__,
            notes=config.extra_texts("notes"),
            datasets=config.extra_texts("datasets"),
            names=_class_names(config),
            steps=_steps(config),
            staircase=_staircase(config.schedule.tokens_per_block(config.model.depth)),
            saving=config.schedule.saving(config.model.depth),
            labelled=[result for result in config.measured if result.top1 is not None],
            measured=[
                {
                    "of": result,
                    "rows": figure_rows(result, _LABELS),
                    "reasons": list(dict.fromkeys(result.reasons.values())),
                    "warning": warning(result, config.recipe),
                }
                for result in config.measured
            ],
            rounding=None if config.rounding is None else rounding_text(config.rounding),
            milder=milder_command(config),
            fit=fit_sentences(config),
            command=recipe_command(config),
            tuned=tuned(config),
            after="after merging" in (tuned(config) or ""),
        )
    )


def is_untouched(text: str) -> bool:
    """Return whether nobody has edited a card since stm wrote it: its last line holds the hash of the rest."""
    # A card without a seal has no such line. Its body is then empty, and no seal of an empty body equals the text.
    body, _, seal = text.rpartition("\n<!-- stm ")
    return _sealed(body) == f"{body}\n<!-- stm {seal}"


def retarget(text: str, config: Config, name: str) -> str:
    """Return an untouched card whose instructions load the model by another name, such as that of a repository.

    Nothing else of the card changes, not even if a later version of stm would write it otherwise.
    """
    body = text.rpartition("\n<!-- stm ")[0]
    return _sealed(re.sub(rf"{_BEGIN}.*?{_END}", lambda _: _use(config, name), body, count=1, flags=re.DOTALL))


def eval_results(config: Config) -> str | None:
    """Return the text of `.eval_results/stm.yaml`, which has top-1 on sets of the Hub; None without any such result.

    Its format names a set by its repository, so results on other sets have no place in it.
    """
    entries = []
    for result in config.measured:
        name = read_set_name(result.data)
        if name is None or result.top1 is None:
            continue
        revision = {} if name.revision is None else {"revision": name.revision}
        interval = f", 95% interval {result.top1_ci[0]:.4f} to {result.top1_ci[1]:.4f}" if result.top1_ci else ""
        notes = (
            f"top-1 accuracy, a fraction, of {result.n} images{interval}, seed {result.seed};"
            f" measured by stm {__version__}"
        )
        dataset = {"id": name.repo, "task_id": name.split or "default", **revision}
        entries.append({"dataset": dataset, "value": round(result.top1, 6), "notes": notes})
    if not entries:  # no file at all: an empty one would be a claim of having measured nothing
        return None
    import yaml  # only here: most cards are written without it

    text: str = yaml.safe_dump(entries, sort_keys=False)
    return text


def _use(config: Config, name: str) -> str:
    """Return the instructions for loading the model, between marks by which `retarget` finds them again."""
    word = f"./{name}" if name.startswith("-") else name  # else it would be an option
    return f"{_BEGIN}\n{_render(USE, config, name=name, word=word, install=install_command())}{_END}"


def _sealed(body: str) -> str:
    """Return a card with the line that holds its hash."""
    # A file's name may hold bytes that are no text. `surrogatepass` hashes them instead of failing.
    return (
        f"{body}\n<!-- stm wrote this; its SHA-256 is"
        f" {hashlib.sha256(body.encode('utf-8', 'surrogatepass')).hexdigest()} -->\n"
    )


def _render(template: Path, config: Config, **values: Any) -> str:
    """Return a template filled with values. A name that the template misspells is an error, not an empty place."""
    rendered: str = _template(template).render(
        config=config, model=config.model, preprocessing=config.preprocessing, **values
    )
    return rendered


@cache  # to compile a template takes far longer than to fill it
def _template(file: Path) -> Any:
    try:
        from jinja2 import Environment as Templates
        from jinja2 import StrictUndefined
    except ImportError as error:
        raise ArtifactError(
            "writing a model card needs jinja2, which is not installed", "pip install jinja2"
        ) from error
    # No autoescape: this is not HTML, and every value from outside passes the filter of its place.
    templates = Templates(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    templates.filters |= {
        "yaml": _yaml,
        "text": _text,
        "shell": shlex.join,
        "python": _python,
        "percent": _PERCENT,
        "operations": operations,
    }
    templates.filters["hub_set"] = read_set_name
    return templates.from_string(file.read_text(encoding="utf-8"))


def recipe_command(config: Config) -> list[str] | None:
    """Return the words of the command that makes this model again, every option spelled out.

    None if there is no such command: for a dense model, a fine-tuned model, a source without a name, or weights that
    were averaged over images, whose folder is not known.
    """
    recipe, protection = config.recipe, config.protection
    named = config.source.repo or config.source.file
    if recipe is None or protection is None or recipe.calibration is not None or named is None or tuned(config):
        return None
    source, flags = _source_options(config)
    options: dict[str, Any] = {
        **source,
        "method": recipe.method,
        "stages": recipe.stages,
        "rate": recipe.rate,
        "saving": recipe.saving,
        "schedule": recipe.schedule,
        "sides": recipe.sides,
        "tokens_per_side": recipe.tokens_per_side,
        "weights": protection.weights,
        "hsp": protection.mode if protection.weights == "hsp" else None,
        "step_scale": protection.step_scale,
        "seed": recipe.seed,
        "dtype": _dtype(config),
        "span_conv": protection.span_conv,
        "normalize": protection.normalized,
        **flags,
    }
    return ["stm", "compress", named, *words(options)]


def milder_command(config: Config) -> list[str] | None:
    """Return the words of a command that makes a model that loses less than this one; see `stm.verdicts.milder`.

    None if there is no such command: nothing less can be saved, or the source has no name.
    """
    merge = milder(config.recipe, config.schedule.saving(config.model.depth))
    named = config.source.repo or config.source.file
    if merge is None or named is None or tuned(config):
        return None
    source, flags = _source_options(config)
    return ["stm", "compress", named, *words(source), *merge.words(), *words({"dtype": _dtype(config), **flags})]


def warned(measured: Measured, config: Config) -> dict[str, Any]:
    """Return the fields of `stm.reports.Warned` for a model and what was measured of it."""
    text = warning(measured, config.recipe)
    if text is None:
        return {}
    command = milder_command(config)
    return {"warnings": (text,), "milder": None if command is None else shlex.join(command)}


def _source_options(config: Config) -> tuple[dict[str, Any], dict[str, bool]]:
    """Return the options by which the source of a model is read: those with a value, and those without."""
    source = config.source
    # `extra` is free JSON that anybody may have edited: values of another type are passed over.
    asked = config.extra.get("asked")
    asked = {name: asked.get(name) for name in CHECKPOINT_OPTIONS} if isinstance(asked, dict) else {}
    flags = {
        name: value for name in ("divide_out", "backbone", "ema") if isinstance(value := asked.pop(name, None), bool)
    }
    file = config.extra.get("path", source.file) if source.repo else None
    return {"file": file, "revision": source.revision if source.repo else None, **asked}, flags


def _dtype(config: Config) -> str | None:
    """Return the dtype as an option, or None for the default."""
    return None if config.dtype == "float32" else config.dtype


def fit_sentences(config: Config) -> list[str]:
    """Return what a reader should know of the images that decided a fitted schedule, sentence by sentence."""
    fit = None if config.recipe is None else config.recipe.fit
    if fit is None:
        return []
    saving = config.schedule.saving(config.model.depth)
    best, doubt = chosen(fit), unsure(fit, saving)
    return [
        f"The schedule was fitted on {fitted_on(fit)}.",
        *([f"Taken: {best}."] if best else []),
        *([f"{doubt[0].upper()}{doubt[1:]}."] if doubt else []),
    ]


def _class_names(config: Config) -> str | None:
    """Return the names of the classes in one line; None without names, or if they only repeat the indices."""
    if config.label_names in (None, tuple(map(str, range(config.num_classes)))):
        return None
    return listed(config.label_names or ())


def _steps(config: Config) -> list[dict[str, Any]]:
    """Return the rows of the schedule's table."""
    # `tokens[l]` enter block l, and `tokens[l + 1]` are left after the merge that follows it.
    depth = config.model.depth
    tokens, cls = config.schedule.tokens_per_block(depth), config.schedule.cls_per_block(depth)
    return [
        {
            "after": s.after,
            "before": tokens[s.after],
            "absorbed": len(s.absorb),
            "left": tokens[s.after + 1],
            "cls": fixed(cls[s.after + 1]),
        }
        for s in config.schedule.steps
    ]


def _staircase(tokens: tuple[int, ...]) -> str:
    """Return bars, one line per run of blocks with equal numbers of tokens."""
    # Characters, and no picture: the Hub, a terminal and an editor all show them.
    lines, first = [], 0
    digits, number = len(str(tokens[0])), len(str(len(tokens) - 1))
    for count, run in groupby(tokens):
        last = first + len(list(run)) - 1
        blocks = f"{first:{number}}" + (f" to {last:{number}}" if last > first else " " * (4 + number))
        lines.append(f"blocks {blocks}  {count:{digits}} {'#' * max(1, round(_STAIRS * count / tokens[0]))}")
        first = last + 1
    return "\n".join(lines)


def _yaml(text: str) -> str:
    """Return a YAML string in double quotes, with an escape for every character that cannot be seen."""
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text) + '"'


def _python(text: str) -> str:
    """Return a Python string in double quotes, as formatters want it."""
    # JSON's escapes are Python's too, except pairs of surrogates. `ensure_ascii=False` writes none.
    return json.dumps(text, ensure_ascii=False)


def _text(text: str) -> str:
    """Return Markdown that shows exactly this text on one line, also in a table."""
    # An underscore within a word marks nothing, and file names are full of them: they stay as they are.
    line = "".join(c if c.isprintable() else " " for c in text)
    return re.sub(r"[\\`*\[\]<>|#&~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", line)
