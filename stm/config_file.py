"""`config.json`, the description of a model folder: written and read strictly.

A few values that follow from others are written too, for readers without our code: `pretrained_cfg` and `num_features`
as timm names them, `id2label`, the tokens per block. Reading compares them, so that a file cannot say two things.
Unknown keys and versions are refused, except inside `extra`.
"""

import json
from dataclasses import dataclass
from typing import Any

from stm.codec import brief_json, decode, encode, parse
from stm.config import REWRITE_HINT, Config, sides
from stm.errors import ArtifactError, said
from stm.install import install_command
from stm.merging.schedule import Schedule, Step

SCHEMA_VERSION = 1
FORMAT = "stm"
ARCHITECTURE = "vim"


def to_json(config: Config) -> dict[str, Any]:
    """Return the document of a config, as JSON types."""
    schedule, model, prep = config.schedule, config.model, config.preprocessing
    document = encode(config)
    document["schedule"] = {
        "tokens": schedule.tokens,
        "class_token": encode(schedule.cls),
        "steps": [{"after": step.after, "absorb": [list(pair) for pair in step.absorb]} for step in schedule.steps],
        "tokens_per_block": list(schedule.tokens_per_block(model.depth)),
        "class_token_per_block": encode(schedule.cls_per_block(model.depth)),
    }
    # The last three are derived: their names and forms are those that timm and transformers read.
    return document | {
        "schema_version": SCHEMA_VERSION,
        "format": FORMAT,
        "architecture": ARCHITECTURE,
        "num_features": model.d_model,
        "id2label": None if config.label_names is None else {str(i): name for i, name in enumerate(config.label_names)},
        "pretrained_cfg": {
            "input_size": list(model.input_shape),
            "interpolation": prep.interpolation,
            "crop_pct": sides(prep.crop)[0] / sides(prep.resize)[0],
            "mean": list(prep.mean),
            "std": list(prep.std),
            "num_classes": config.num_classes,
        },
    }


def class_names(config: Config) -> tuple[str, ...]:
    """Return one name per class, as they are shown: "class 3" if the model knows none."""
    return config.label_names or tuple(f"class {index}" for index in range(config.num_classes))


def dumps(config: Config) -> str:
    """Return `config.json` as text: keys sorted, one trailing newline, the same bytes for the same config."""
    return json.dumps(to_json(config), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def loads(text: str, where: str = "config.json") -> Config:
    """Return the config that the text of a `config.json` holds.

    Args:
        where: the name of the file, for messages.

    Raises:
        ArtifactError: not JSON, another format or version, a missing or an unknown key, a value of the wrong kind, or
            one that contradicts another.
    """
    try:
        document = parse(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where} is not valid JSON: {said(error)}", REWRITE_HINT) from error
    return from_json(document, where)


def from_json(document: Any, where: str = "config.json") -> Config:
    """Return the config that a parsed document holds; see `loads`."""
    document = dict(_migrate(document, where))
    for key, constant in (("format", FORMAT), ("architecture", ARCHITECTURE)):
        if document.pop(key, None) != constant:
            raise ArtifactError(f"{where}: {key} is not {constant!r}: this is not a folder that stm wrote")
    # Taken out now, as Config has no such fields; compared below with what the config itself gives.
    written = {key: document.pop(key, None) for key in ("num_features", "id2label", "pretrained_cfg")}
    try:
        document["schedule"], per_block = _decode_schedule(document.get("schedule"))
        config: Config = decode(Config, document, "")
        if config.recipe is not None and config.recipe.removed_share != config.schedule.removed_share:
            share = config.schedule.removed_share
            raise ValueError(f"recipe.removed_share is {config.recipe.removed_share}, but the schedule removes {share}")
        if len(per_block["tokens_per_block"]) != config.model.depth:
            raise ValueError(
                f"schedule.tokens_per_block has {len(per_block['tokens_per_block'])} entries for {config.model.depth}"
                " blocks"
            )
        again = to_json(config)  # may recurse as deep as `extra` does
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where}: {said(error)}", REWRITE_HINT) from error
    for key, value in written.items():
        if value != again[key]:
            expected = brief_json(again[key])
            raise ArtifactError(
                f"{where}: {key} contradicts the rest of the file: {brief_json(value)}, expected {expected}",
                REWRITE_HINT,
            )
    for key, value in per_block.items():
        if value != again["schedule"][key]:
            expected = brief_json(again["schedule"][key])
            raise ArtifactError(
                f"{where}: schedule.{key} contradicts its steps: {brief_json(value)}, expected {expected}", REWRITE_HINT
            )
    return config


def _migrate(document: Any, where: str) -> dict[str, Any]:
    """Return the document as the current version writes it, without its version."""
    if not isinstance(document, dict):
        raise ArtifactError(f"{where}: expected an object, got {brief_json(document)}")
    version = document.get("schema_version")
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise ArtifactError(
            f"{where}: schema_version is {brief_json(version)}, this stm reads 1 to {SCHEMA_VERSION}",
            f"a newer version of stm may read it: {install_command()}"
            if type(version) is int and version > SCHEMA_VERSION
            else REWRITE_HINT,
        )
    document = {key: value for key, value in document.items() if key != "schema_version"}
    return _upgraded(document, where)


def _upgraded(document: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a document from before the first release as it is written now. The version stays 1 until then.

    Two things have changed since:

    - A recipe had no `fit`, and the preset that is now called `staged` was called `stm`.
    - A protection had `initial_state`, which was false in every folder.
    """
    recipe, protection = document.get("recipe"), document.get("protection")
    if isinstance(recipe, dict) and "fit" not in recipe:
        renamed = {"method": "staged"} if recipe.get("method") == "stm" else {}
        document = document | {"recipe": recipe | renamed | {"fit": None}}
    if isinstance(protection, dict) and "initial_state" in protection:
        # `is`: 0 is no false of JSON. A folder with another value would need states that no tensor of it holds.
        if protection["initial_state"] is not False:
            raise ArtifactError(
                f"{where}: protection.initial_state is {brief_json(protection['initial_state'])}, but no version of stm"
                " wrote anything other than false",
                "compress the dense model again: stm compress MODEL",
            )
        kept = {key: value for key, value in protection.items() if key != "initial_state"}
        document = document | {"protection": kept}
    return document


def _decode_schedule(value: Any) -> tuple[Schedule, dict[str, Any]]:
    """Return the schedule and its derived lists, which the caller compares."""

    # The form in the file, which differs from Schedule's: `class_token` is a word, and lists are derived. A position is
    # an integer, or a list of them if there are several class tokens.
    @dataclass(frozen=True)
    class Written:
        tokens: int
        class_token: Any
        steps: tuple[Step, ...]
        tokens_per_block: tuple[int, ...]
        class_token_per_block: tuple[Any, ...]

    written: Any = decode(Written, value, "schedule")
    try:
        several = isinstance(written.class_token, list)
        kind = tuple[int, ...] if several else int
        schedule = Schedule(written.tokens, decode(kind, written.class_token, "class_token"), written.steps)
    except ValueError as error:
        raise ValueError(f"schedule: {error}") from error
    return schedule, {key: list(getattr(written, key)) for key in ("tokens_per_block", "class_token_per_block")}
