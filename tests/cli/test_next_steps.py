"""Every command that is printed, run as it stands, is about the model that it was printed for: its options of reading
are in it."""

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from stm.options import CHECKPOINT_OPTIONS, MergeOptions, ModelOptions, command, words
from tests.blocks import first_blocks

# "stm info also has ..." is a sentence, not a command
COMMAND = re.compile(r"stm (?:info(?! also)|eval|compress|plan|export|predict|bench) [^;\n]*")
OPTIONS = (
    ("--image-size", "64", "--class-token", "head", "--no-divide-out"),
    ("--image-size", "64", "--class-token", "head", "--divide-out", "--ema"),
    ("--image-size", "70", "--class-token", "middle", "--no-divide-out", "--mean", "0.5,0.4,0.3", "--std=0.5"),
    ("--image-size", "64", "--class-token", "middle", "--crop-ratio", "0.9", "--interpolation", "bilinear", "--ema"),
)


@pytest.fixture
def two(mini: Path, tmp_path: Path) -> Path:
    """Weights and their averages under a name that tells nothing, in a name that a shell would split."""
    state = first_blocks(torch.load(mini.with_name("vim_mini.pth"), weights_only=False)["model"], 4)
    averaged = {name: tensor + 0.01 for name, tensor in state.items()}
    torch.save({"model": state, "model_ema": averaged}, tmp_path / "my weights.pth")
    return Path("my weights.pth")


def printed(run: Any) -> list[list[str]]:
    """The commands of both streams, without those that want a file that nobody named."""
    assert "Traceback" not in run.err
    return [shlex.split(found) for found in COMMAND.findall(run.out + run.err) if " DIR" not in found]


def model_of(here: Any, args: Any) -> Any:
    """What the model of a command is, by `stm info` with the same MODEL and options of reading."""
    run = here(*args, "--json")
    assert run.code == 0, run.err
    document = json.loads(run.out)
    return document["config"] | {"files": None}


def reading_words(args: list[str]) -> list[str]:
    """MODEL and the options of reading of a command."""
    kept, takes = [args[2]], {f"--{name.replace('_', '-')}" for name in CHECKPOINT_OPTIONS}
    for number, word in enumerate(args):
        name = word.partition("=")[0]
        if name in takes | {"--no-divide-out"}:
            alone = name in ("--ema", "--divide-out", "--no-divide-out") or "=" in word
            kept += [word] if alone else [word, args[number + 1]]
    return kept


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    "verb",
    [
        ("info",),
        ("plan", "--rounds", "1", "--limit", "1", "--fit-images", "8"),
        ("eval", "--limit", "1"),
        ("compress", "--dry-run", "--fit-images", "8"),
        ("bench", "--rounds", "1"),
    ],
    ids=lambda verb: verb[0],
)
def test_printed_commands_are_about_the_same_model(
    here: Any, two: Path, labelled: Path, verb: Any, options: Any
) -> None:
    expected = model_of(here, ("info", two, *options))
    data = ("--data", labelled) if verb[0] in ("plan", "eval") else ()
    run = here(verb[0], two, *verb[1:], *data, *options)
    assert run.code == 0, run.err
    found = printed(run)
    assert found or verb[0] == "bench", run.err
    for args in found:
        assert model_of(here, ("info", *reading_words(args))) == expected, args
    after = here(*found[0][1:], *(("--out", "made") if found[0][1] == "compress" else ())) if found else run
    assert after.code == 0, after.err


def test_a_question_is_answered_by_pasting(here: Any, two: Path) -> None:
    run = here("info", two, "--ema", "--image-size", "64")
    assert run.code == 1 and "Traceback" not in run.err
    first, second = printed(run)
    places = []
    for args in (first, second):
        config = model_of(here, args[1:])
        places.append((config["model"]["class_token"], config["model"]["divide_out"]))
        assert config["extra"]["asked"]["ema"] is True and config["model"]["image_size"] == 64
    assert places == [("middle", True), ("head", False)]


def test_a_sibling_that_is_a_question(here: Any, two: Path, mini: Path) -> None:
    """The options of a checkpoint are the first model's: the other one becomes a folder first."""
    content = torch.load(two, weights_only=False)
    content["model"]["pos_embed"] = torch.zeros(1, 197, 32)  # of the usual 224 pixels, which need not be told
    torch.save(content, two)
    run = here("compare", mini, "--also", two, "--methods", "paper", "--limit", "1")
    assert run.code == 1 and "make a folder of it first" in run.err
    first, _ = printed(run)
    again = here(*first[1:], "--out", "sibling")
    assert again.code == 0, again.err


def test_an_unlabelled_set_is_evaluated_again_by_the_same_words(here: Any, two: Path, tmp_path: Path) -> None:
    options = ("--class-token", "head", "--no-divide-out", "--image-size", "64", "--dtype", "bfloat16")
    run = here("eval", two, *options, "--limit", "1")
    (again,) = re.findall(r"measure it: (stm eval .*)", run.err)
    assert shlex.split(again)[2:-2] == [
        str(two),
        *words({"image_size": 64, "class_token": "head", "divide_out": False, "dtype": "bfloat16"}),
    ]


@pytest.mark.parametrize("name", ["videomamba_t16_res64.pth", "copy.pth"])
def test_the_command_of_a_card_makes_the_same_bytes(here: Any, mini: Path, tmp_path: Path, name: str) -> None:
    """Of the source under its own name, and of what its name told under another."""
    state = torch.load(mini.with_name("vim_mini.pth"), weights_only=False)["model"]
    torch.save({"model": state, "arch": None}, tmp_path / "videomamba_t16_res64.pth")
    first = (
        "compress",
        "videomamba_t16_res64.pth",
        "--no-eval",
        "--quiet",
        "--mean",
        "0.5",
        "--crop-ratio",
        "0.9",
        "--out",
        "small",
    )
    assert here(*first).code == 0
    (tmp_path / "videomamba_t16_res64.pth").rename(tmp_path / name)
    (line,) = (
        line
        for line in (tmp_path / "small/README.md").read_text().splitlines()
        if line.startswith("stm compress videomamba")
    )
    line = line.replace("videomamba_t16_res64.pth", name)
    assert here(*shlex.split(line)[1:], "--no-eval", "--quiet", "--out", "again").code == 0
    assert here("compress", name, "--recipe", "small", "--quiet", "--out", "recipe").code == 0
    for folder in ("again", "recipe"):
        for file in ("model.safetensors", *(["config.json"] if name.startswith("video") else [])):
            assert (tmp_path / folder / file).read_bytes() == (tmp_path / "small" / file).read_bytes(), (folder, file)
        made, known = (json.loads((tmp_path / each / "config.json").read_text()) for each in (folder, "small"))
        assert all(made[key] == known[key] for key in ("model", "preprocessing", "schedule"))
        assert made["extra"]["asked"] == known["extra"]["asked"]


def test_every_option_of_reading_has_words() -> None:
    """`ModelOptions` and the card know the same options, in both directions, and never a token."""
    given = ModelOptions(
        file="a b.pth",
        revision="r",
        token="secret",
        image_size=64,
        class_token="head",
        divide_out=False,
        ema=True,
        mean=(0.5, 0.25),
        std=(1.0,),
        crop_ratio=0.9,
        interpolation="nearest",
        device="cpu",
    )
    line = command(
        "info", "m", {name: getattr(given, name) for name in ModelOptions.__dataclass_fields__ if given.given(name)}
    )
    assert (
        line
        == "stm info m --file 'a b.pth' --revision r --image-size 64 --class-token head --no-divide-out --ema --mean"
        " 0.5,0.25 --std 1.0 --crop-ratio 0.9 --interpolation nearest --device cpu"
    )
    assert shlex.split(line)[3:] == given.words()
    assert ModelOptions().words() == [] and ModelOptions(divide_out=True).words() == ["--divide-out"]
    assert set(CHECKPOINT_OPTIONS) <= {field.name for field in dataclasses.fields(ModelOptions)}
    assert MergeOptions(rate=0.2, stages=(2, 4), span_conv=False, normalize=True).words() == (
        ["--rate", "0.2", "--stages", "2,4", "--normalize", "--plain-conv"]
    )
    assert words({"revision": "-x"}) == ["--revision=-x"]
