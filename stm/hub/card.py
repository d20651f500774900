"""Write the model card, the README.md of a folder, from known facts about the model and nothing else.

A number that was not measured does not appear. Text from outside (names of files, sample sets, licences) is quoted for
the language around it: YAML, Markdown, shell or Python.
"""

import hashlib
import json
import re
import shlex
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from stm import __version__
from stm.artifact.provenance import tuned
from stm.config import Config, Measured
from stm.errors import ArtifactError
from stm.hub.aliases import read_set_name
from stm.install import install_command
from stm.options import CHECKPOINT_OPTIONS, words
from stm.reports import Environment, Flops, ServedSpeed
from stm.units import operations, percent

TEMPLATE, USE = (Path(__file__).with_name(name) for name in ("card.md.j2", "card_use.md.j2"))
_BEGIN, _END = "<!-- use -->", "<!-- end of use -->"
_PERCENT = partial(percent, digits=2)
_STAIRS = 40  # characters of the widest step; with the numbers beside it, a line fits a screen of 80


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
        config: of the folder.
        name: the folder's base name.
        flops: multiply-accumulates per image.
        parameters: their number.
        weights_bytes: size of model.safetensors.
        images_per_second: the speed that was measured alone, if it was.
        served: the speed that was measured beside the dense model, if it was.
        environment: the machine and the backend of these speeds.

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
            steps=_steps(config),
            staircase=_staircase(config.schedule.tokens_per_block(config.model.depth)),
            saving=config.schedule.saving(config.model.depth),
            labelled=[each for each in config.measured if each.top1 is not None],
            measured=[_measured(each) for each in config.measured],
            command=recipe_command(config),
            tuned=tuned(config),
            after="after merging" in (tuned(config) or ""),
        )
    )


def is_untouched(text: str) -> bool:
    """Return whether a card is as stm wrote it. Its last line holds the hash of the rest."""
    body, _, seal = text.rpartition("\n<!-- stm ")
    return _sealed(body) == f"{body}\n<!-- stm {seal}"


def retarget(text: str, config: Config, name: str) -> str:
    """Return an untouched card with instructions that load the model by another name, such as a repository's."""
    body = text.rpartition("\n<!-- stm ")[0]
    # A function as the replacement, because `re` would read backslashes of a text as escapes.
    return _sealed(re.sub(rf"{_BEGIN}.*?{_END}", lambda _: _use(config, name), body, count=1, flags=re.DOTALL))


def eval_results(config: Config) -> str | None:
    """Return the text of `.eval_results/stm.yaml`: top-1 on sets of the Hub. None if there is no such measurement.

    The format names sets by their repository, so it cannot hold a measurement on a folder.
    """
    entries = []
    for each in config.measured:
        name = read_set_name(each.data)
        if name is None or each.top1 is None:
            continue
        revision = {} if name.revision is None else {"revision": name.revision}
        interval = f", 95% interval {each.top1_ci[0]:.4f} to {each.top1_ci[1]:.4f}" if each.top1_ci else ""
        notes = (
            f"top-1 accuracy, a fraction, of {each.n} images{interval}, seed {each.seed}; measured by stm {__version__}"
        )
        dataset = {"id": name.repo, "task_id": name.split or "default", **revision}
        entries.append({"dataset": dataset, "value": round(each.top1, 6), "notes": notes})
    if not entries:
        return None
    import yaml  # here: most folders have no such file, and loading one needs no yaml

    text: str = yaml.safe_dump(entries, sort_keys=False)
    return text


def _use(config: Config, name: str) -> str:
    """Return the instructions for loading the model, between the marks that `retarget` looks for."""
    word = f"./{name}" if name.startswith("-") else name  # else it would be an option
    return f"{_BEGIN}\n{_render(USE, config, name=name, word=word, install=install_command())}{_END}"


def _sealed(body: str) -> str:
    """Return a card with the line that tells whether somebody has changed it: see `is_untouched`."""
    return (
        f"{body}\n<!-- stm wrote this; its SHA-256 is"
        f" {hashlib.sha256(body.encode('utf-8', 'surrogatepass')).hexdigest()} -->\n"
    )


def _render(template: Path, config: Config, **values: Any) -> str:
    try:
        from jinja2 import Environment as Templates
        from jinja2 import StrictUndefined
    except ImportError as error:
        raise ArtifactError(
            "writing a model card needs jinja2, which is not installed", "pip install jinja2"
        ) from error
    # No autoescape: this is not HTML. Every value from outside passes the filter of the language around it instead.
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
    rendered: str = templates.from_string(template.read_text(encoding="utf-8")).render(
        config=config, model=config.model, preprocessing=config.preprocessing, **values
    )
    return rendered


def recipe_command(config: Config) -> list[str] | None:
    """Return the words of the command that makes this model again, every option spelled out.

    None if there is no such command: for a dense model, a model that was fine-tuned, a source without a name, or
    weights averaged over images, whose folder is not recorded.
    """
    recipe, protection, source = config.recipe, config.protection, config.source
    named = source.repo or source.file
    if recipe is None or protection is None or recipe.calibration is not None or named is None or tuned(config):
        return None
    asked = config.extra.get("asked")
    asked = {name: asked.get(name) for name in CHECKPOINT_OPTIONS} if isinstance(asked, dict) else {}
    flags = {name: value for name in ("divide_out", "ema") if isinstance(value := asked.pop(name, None), bool)}
    # The options as they were resolved, defaults included: the defaults of a later version may differ.
    options: dict[str, Any] = {
        "file": config.extra.get("path", source.file) if source.repo else None,
        "revision": source.revision if source.repo else None,
        **asked,
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
        "dtype": None if config.dtype == "float32" else config.dtype,
        "span_conv": protection.span_conv,
        "normalize": protection.normalized,
        **flags,
    }
    return ["stm", "compress", named, *words(options)]


def _steps(config: Config) -> list[dict[str, int]]:
    """Return the rows of the schedule's table."""
    # Tokens that enter each block. A step acts after its block, so the next entry is what it leaves.
    tokens, cls = (f(config.model.depth) for f in (config.schedule.tokens_per_block, config.schedule.cls_per_block))
    return [
        {
            "after": s.after,
            "before": tokens[s.after],
            "absorbed": len(s.absorb),
            "left": tokens[s.after + 1],
            "cls": cls[s.after + 1],
        }
        for s in config.schedule.steps
    ]


def _staircase(tokens: tuple[int, ...]) -> str:
    """Return the schedule as bars: one line per run of blocks that have equally many tokens."""
    lines, first = [], 0
    # Widths of the largest numbers, so that the bars begin in one column.
    digits, number = len(str(tokens[0])), len(str(len(tokens) - 1))
    for count, run in groupby(tokens):
        last = first + len(list(run)) - 1
        blocks = f"{first:{number}}" + (f" to {last:{number}}" if last > first else " " * (4 + number))
        lines.append(f"blocks {blocks}  {count:{digits}} {'#' * max(1, round(_STAIRS * count / tokens[0]))}")
        first = last + 1
    return "\n".join(lines)


def _measured(each: Measured) -> dict[str, Any]:
    """Return the rows of an evaluation's table, and the reasons why other rows are missing."""
    rows = []
    if each.dense_top1 is not None:
        rows.append(("top-1, dense model", _PERCENT(each.dense_top1), ""))
    for label, value, ci in (("top-1", each.top1, each.top1_ci), ("top-5", each.top5, each.top5_ci)):
        if value is not None:
            rows.append((label, _PERCENT(value), f"{_PERCENT(ci[0])} to {_PERCENT(ci[1])}" if ci else ""))
    # Accuracy in percent, its loss in points: a loss in percent could be read as a share of the accuracy.
    if each.drop is not None:
        interval = f"{100 * each.drop_ci[0]:.2f} to {100 * each.drop_ci[1]:.2f}" if each.drop_ci else ""
        rows.append(("top-1 lost, in points", f"{100 * each.drop:.2f}", interval))
    if each.mcnemar_p is not None:
        rows.append(("exact McNemar test, p", f"{each.mcnemar_p:.3g}", ""))
    if each.agreement is not None:
        rows.append(("images that keep the dense model's top-1", _PERCENT(each.agreement), ""))
    if each.kl is not None:
        rows.append(("KL(dense, this), nats", f"{each.kl:.4f}", ""))
    # One reason often covers several figures: each is given once, in order.
    return {"of": each, "rows": rows, "reasons": list(dict.fromkeys(each.reasons.values()))}


def _yaml(text: str) -> str:
    """Return a text as a YAML string, in JSON's quotes. A character that cannot be seen becomes its code."""
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text) + '"'


def _python(text: str) -> str:
    """Return a text as a Python string, in the quotes that formatters want."""
    # JSON's escapes are Python's too, apart from pairs of surrogates: `ensure_ascii=False` writes none.
    return json.dumps(text, ensure_ascii=False)


def _text(text: str) -> str:
    """Return Markdown that shows exactly this text, on one line, in a table too."""
    # An underscore inside a word is no emphasis. Escaped there, it would only be hard to read in the source.
    line = "".join(c if c.isprintable() else " " for c in text)
    return re.sub(r"[\\`*\[\]<>|#&~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", line)
