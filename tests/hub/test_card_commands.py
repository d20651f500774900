"""The model card's commands and examples: they run as they are pasted, and name the repository that the card is in."""

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.main import get_command

import stm
from stm.commands import predict
from stm.config import Protection, Source
from stm.hub.card import is_untouched, recipe_command, retarget
from stm.install import install_command
from stm.model.initialize import initialize
from stm.model.vim import ViM
from stm.recipe import Calibration, Recipe
from stm_cli.main import application
from tests.hang import HANG
from tests.hub.cards import DENSE, SMALL, written


def options_of_the_command_line() -> set[str]:
    (command,) = (each for name, each in get_command(application()).commands.items() if name == "compress")
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def test_the_command_has_every_option_and_only_real_ones() -> None:
    assert (
        shlex.join(recipe_command(SMALL) or [])
        == "stm compress someone/their-vim --file vim.pth --revision c0ffee --method staged --rate 0.4 --schedule"
        " staged --sides both --weights size --step-scale 0.5 --seed 0 --span-conv"
    )
    paper = dataclasses.replace(
        SMALL,
        dtype="bfloat16",
        protection=Protection(weights="hsp", mode="dynamic", normalized=True, step_scale=0.0, span_conv=False),
        recipe=Recipe(
            method="paper", saving=0.25, removed_share=0.4, schedule="border", sides="left", tokens_per_side=2, seed=7
        ),
        source=Source(file="vim weights.pth"),
        extra={"asked": {"image_size": 4, "class_token": "head", "divide_out": False, "ema": True}},
    )
    words = recipe_command(paper)
    assert words == [
        *(
            "stm",
            "compress",
            "vim weights.pth",
            "--image-size",
            "4",
            "--class-token",
            "head",
            "--method",
            "paper",
            "--saving",
            "0.25",
        ),
        *("--schedule", "border", "--sides", "left", "--tokens-per-side", "2", "--weights", "hsp", "--hsp", "dynamic"),
        *(
            "--step-scale",
            "0.0",
            "--seed",
            "7",
            "--dtype",
            "bfloat16",
            "--plain-conv",
            "--normalize",
            "--no-divide-out",
            "--ema",
        ),
    ]
    assert "stm compress 'vim weights.pth' " in written(paper)
    stages = dataclasses.replace(
        SMALL, recipe=Recipe(method="stm", removed_share=0.5, schedule="staged", stages=(1, 10))
    )
    assert "--stages 1,10 " in written(stages)
    used = {word for command in (words, recipe_command(SMALL) or []) for word in command if word.startswith("--")} | {
        "--stages"
    }
    assert used <= options_of_the_command_line()


def test_no_command_where_there_is_none() -> None:
    calibrated = Recipe(
        method="stm",
        rate=0.4,
        removed_share=0.5,
        schedule="staged",
        calibration=Calibration(data="cats", n=64, sha256="ca75"),
    )
    text = written(dataclasses.replace(SMALL, recipe=calibrated))
    assert "The weights were averaged over 64 images of cats (SHA-256 ca75)." in text
    assert "`stm compress MODEL --recipe FOLDER --calibration DIR`" in text
    assert recipe_command(dataclasses.replace(SMALL, recipe=calibrated)) is None
    assert recipe_command(dataclasses.replace(SMALL, source=Source())) is None
    assert recipe_command(DENSE) is None


NAMES = ["-it's small", "small"]


@pytest.mark.parametrize("name", NAMES)
def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((9, 12), 90).save("photo.jpg")
    stm.compress(initialize(ViM(DENSE)), stages=[1]).save_pretrained(name)
    (example,) = re.findall(r"```python\n(.*?)```", Path(name, "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["logits"].shape == (1, 2)
    assert torch.isfinite(names["logits"]).all()
    run = predict.predict(name, ["photo.jpg"])
    assert capsys.readouterr().out.splitlines() == [
        f"{guess.probability:.3f} {guess.label}" for guess in run.predictions[0].top5
    ], "the same as stm predict"


def test_the_commands_run(tmp_path: Path) -> None:
    """As they are pasted into a shell, from pip on, which is not run again here."""
    stm.compress(initialize(ViM(DENSE)), stages=[1]).save_pretrained(tmp_path / NAMES[0])
    Image.new("RGB", (9, 9), "teal").save(tmp_path / "photo.jpg")
    (example,) = re.findall(r"```sh\n(pip .*?)```", (tmp_path / NAMES[0] / "README.md").read_text(), re.DOTALL)
    install, *commands = example.splitlines()
    assert install == install_command()
    root = str(Path(__file__).resolve().parents[2])
    script = "\n".join(["set -e", f'stm() {{ "{sys.executable}" -m stm_cli "$@"; }}', *commands])
    run = subprocess.run(
        ["sh", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert run.returncode == 0 and run.stdout.startswith(f"./{NAMES[0]}") and "photo.jpg" in run.stdout, run.stderr


def test_whether_somebody_wrote_in_it() -> None:
    text = written(SMALL)
    assert is_untouched(text)
    for other in (
        "",
        "# Mine\n",
        text + "\n",
        text.replace("## Limits", "## Limits of mine"),
        text[:-2],
        text.replace("\n", "\r\n"),
    ):
        assert not is_untouched(other)
    moved = retarget(text, SMALL, "me/it's small")
    assert is_untouched(moved)
    assert moved.count("me/it") == 3 and 'stm.load("me/it\'s small")' in moved and 'stm.load("small")' not in moved
    assert retarget(moved, SMALL, "small") == text
