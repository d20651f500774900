"""config.json: the file alone, in a model's folder, and beside a checkpoint; recipes; the weights' index of names."""

import random
from pathlib import Path

import torch

from fuzz import mutate as change
from fuzz import small
from fuzz.harness import Fault, judge
from stm.artifact import folder as artifact
from stm.artifact.folder import CONFIG, WEIGHTS
from stm.checkpoint.class_names import labels_beside
from stm.commands import recipe_file
from stm.commands.recipe import as_recorded, recorded
from stm.config_file import dumps, loads
from stm.loading import open_model
from stm.options import ModelOptions

CPU = ModelOptions(device="cpu", backend="reference")


def run(data: bytes, folder: Path) -> None:
    kind, content = data[:1], data[1:]
    place = folder / "model"
    place.mkdir(exist_ok=True)
    (place / CONFIG).write_bytes(content)
    match kind:
        case b"0":
            text = content.decode(errors="replace")
            config = judge(lambda: loads(text), len(content))
            # What is written again is read again, and is the same.
            if config is not None and (again := loads(dumps(config))) != config:
                raise Fault(f"{config} is written as {again}")
        case b"1":
            (place / WEIGHTS).write_bytes(small.files()[WEIGHTS])
            told = judge(lambda: artifact.describe(place), len(content))
            made = judge(lambda: open_model(place, CPU), len(content))
            if made is not None and told is None:
                raise Fault("a folder that cannot be described was loaded")
            if made is not None:
                _check_run(made, content)
        case b"2":
            judge(lambda: labels_beside(place / "x.pth", 10), len(content))
            judge(lambda: artifact.is_model(place), len(content))
        case b"4":
            file = folder / "recipe.yaml"
            file.write_bytes(content)
            choice = judge(lambda: recipe_file.read(file), len(content))
            if choice is not None:
                file.write_text(recipe_file.dumps(choice), encoding="utf-8")
                if (again := recipe_file.read(file)) != recipe_file.spelled(choice):
                    raise Fault(f"{choice} is written as {again}")
        case _:
            config = judge(lambda: artifact.read_config(place), len(content))
            if config is not None:
                judge(lambda: recorded(config, place), len(content))
                judge(lambda: as_recorded(ModelOptions(), config, place), len(content))


def _check_run(made: object, content: bytes) -> None:
    model = made
    assert isinstance(model, torch.nn.Module)
    with torch.no_grad():
        logits = judge(lambda: model(torch.zeros(1, 3, 8, 8)), len(content), most=256 << 20)
    if logits is not None and not bool(torch.isfinite(logits).all()):
        raise Fault("a model that was loaded has logits that are no numbers")


def mutate(data: bytes, draw: random.Random) -> bytes:
    how = change.text_lines if data[:1] == b"4" else change.json_bytes
    return data[:1] + how(data[1:], draw)
