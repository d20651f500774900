"""What a folder says of weights that are not those that were loaded, and that it says all it can of those that are."""

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import stm
from stm.commands import compress, eval, info, report
from stm.config import Measured
from stm.errors import ArtifactError, UsageError
from stm.hub.card import eval_results
from stm.options import EvalOptions, MergeOptions, ModelOptions
from tests.pictures import labelled

MINI = Path(__file__).parents[1] / "golden" / "dense-mini" / "vim_mini_stride8.pth"
ON_CPU = ModelOptions(device="cpu")
READ = ModelOptions(device="cpu", image_size=64)
MEASURED = Measured(data="hf:user/set:test", n=100, top1=0.8765, dense_top1=0.9, drop=0.0235)


@pytest.fixture
def dense() -> stm.ViM:
    return stm.load_checkpoint(MINI, image_size=64, device="cpu")


@pytest.fixture
def folder(dense: stm.ViM, tmp_path: Path) -> Path:
    """A compressed folder that was measured."""
    small = stm.compress(dense, rate=0.4, method="staged")
    small.config = dataclasses.replace(small.config, measured=(MEASURED,))
    small.save_pretrained(tmp_path / "small")
    return tmp_path / "small"


def by_optimizer(model: stm.ViM) -> None:
    """One step on a loss."""
    model.requires_grad_(True).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))).square().mean().backward()
    optimizer.step()


def by_data(model: stm.ViM) -> None:
    """One bit, in a way that autograd does not see."""
    model.head.bias.data.view(torch.int32)[3] ^= 1


def by_state(model: stm.ViM) -> None:
    model.load_state_dict({name: tensor * 1.5 for name, tensor in model.state_dict().items()}, assign=True)


def by_plan(model: stm.ViM) -> None:
    assert model.plan is not None
    next(buffer for name, buffer in model.plan.named_buffers() if name.endswith("scale")).mul_(1.01)


TRAINED: tuple[Callable[[stm.ViM], None], ...] = (by_optimizer, by_data, by_state, by_plan)


def extra_texts(folder: Path) -> tuple[dict[str, Any], str]:
    return json.loads((folder / "config.json").read_text()), (folder / "README.md").read_text()


def check_fine_tuned(folder: Path, sha256: str) -> None:
    config, card = extra_texts(folder)
    assert (config["recipe"], config["measured"], config["source"]["sha256"]) == (None, [], None)
    assert (
        config["extra"]["fine_tuned"] == "merged"
        and config["source"]["file"] == MINI.name
        and config["protection"] is not None
    )
    for words in (
        "87.65",
        "0.8765",
        "No weight was trained",
        "without training",
        "Make it again",
        "--recipe",
        "stm compress",
        sha256,
    ):
        assert words not in card, words
    for words in ("fine-tuned after merging", "Fine-tuned from: vim", "Accuracy was not measured"):
        assert words in card, words


@pytest.mark.parametrize("train", TRAINED, ids=lambda train: train.__name__)
def test_a_trained_model_says_nothing_of_the_old_weights(
    folder: Path, tmp_path: Path, train: Callable[[stm.ViM], None]
) -> None:
    before = extra_texts(folder)
    assert "87.65" in before[1] and "stm compress" in before[1] and "No weight was trained after merging" in before[1]
    model = stm.load(folder, device="cpu")
    sha256 = model.config.source.sha256
    assert sha256 is not None and eval_results(model.config) is not None
    train(model)
    model.save_pretrained(tmp_path / "tuned")
    check_fine_tuned(tmp_path / "tuned", sha256)
    assert not (tmp_path / "tuned" / ".eval_results").exists()
    again = stm.load(tmp_path / "tuned", device="cpu")
    again.save_pretrained(tmp_path / "again")
    assert extra_texts(tmp_path / "again")[0] == extra_texts(tmp_path / "tuned")[0]


@pytest.mark.parametrize("make", [lambda model: model, copy.deepcopy, lambda model: model.with_plan(model.plan)])
def test_copies_remember(folder: Path, tmp_path: Path, make: Callable[[stm.ViM], stm.ViM]) -> None:
    model = make(stm.load(folder, device="cpu"))
    model.save_pretrained(tmp_path / "same")
    assert extra_texts(tmp_path / "same")[0] == extra_texts(folder)[0]
    sha256 = str(model.config.source.sha256)
    by_data(model)
    make(model).save_pretrained(tmp_path / "tuned")
    check_fine_tuned(tmp_path / "tuned", sha256)


def test_a_model_that_was_compressed_saved_and_then_trained(dense: stm.ViM, tmp_path: Path) -> None:
    small = stm.compress(dense, rate=0.4, method="staged")
    small.config = dataclasses.replace(small.config, measured=(MEASURED,))
    small.save_pretrained(tmp_path / "small")
    assert extra_texts(tmp_path / "small")[0]["measured"] and extra_texts(tmp_path / "small")[0]["recipe"]
    by_data(small)
    small.save_pretrained(tmp_path / "tuned")
    check_fine_tuned(tmp_path / "tuned", str(dense.config.source.sha256))


def test_what_is_measured_after_training_is_said(folder: Path, tmp_path: Path) -> None:
    model = stm.load(folder, device="cpu")
    by_data(model)
    new = dataclasses.replace(MEASURED, top1=0.5)
    model.config = dataclasses.replace(model.config, measured=(*model.config.measured, new))
    model.save_pretrained(tmp_path / "tuned")
    config, card = extra_texts(tmp_path / "tuned")
    assert [each["top1"] for each in config["measured"]] == [0.5] and "50.00" in card and "87.65" not in card
    model.save_pretrained(tmp_path / "again")
    assert extra_texts(tmp_path / "again")[0] == config


def test_a_dense_model_that_was_trained_is_the_source_of_its_own(dense: stm.ViM, tmp_path: Path) -> None:
    """Trained, then compressed: no command and no hash lead to other weights; saved in between, the recipe is of the
    saved file."""
    old = str(dense.config.source.sha256)
    by_data(dense)
    stm.compress(dense, rate=0.4, method="staged").save_pretrained(tmp_path / "direct")
    config, card = extra_texts(tmp_path / "direct")
    assert (
        config["extra"]["fine_tuned"] == "dense" and config["source"]["sha256"] is None and config["recipe"] is not None
    )
    assert "fine-tuned before merging" in card.lower() and "No weight was trained after merging" in card
    assert old not in card and "stm compress" not in card
    with pytest.raises(UsageError, match="does not name the file that it was made of"):
        compress.compress(str(MINI), READ, recipe=tmp_path / "direct", out=tmp_path / "x")

    dense.save_pretrained(tmp_path / "dense")
    config, card = extra_texts(tmp_path / "dense")
    assert config["extra"]["fine_tuned"] == "dense" and config["source"]["sha256"] is None and old not in card
    made = compress.compress(
        str(tmp_path / "dense"), ON_CPU, MergeOptions(method="staged"), out=tmp_path / "small", eval=False
    )
    assert made.source.sha256 == config["files"]["model.safetensors"]["sha256"]
    assert "fine-tuned before merging" in extra_texts(tmp_path / "small")[1].lower()
    compress.compress(str(tmp_path / "dense"), ON_CPU, recipe=tmp_path / "small", out=tmp_path / "again")
    assert extra_texts(tmp_path / "again")[0] == extra_texts(tmp_path / "small")[0]
    with pytest.raises(UsageError, match="is not the source of"):
        compress.compress(str(MINI), READ, recipe=tmp_path / "small", out=tmp_path / "x")


def test_a_cast_model_was_not_measured(folder: Path, tmp_path: Path) -> None:
    half = stm.load(folder, device="cpu", dtype="bfloat16")
    assert half.config.measured == () and half.config.recipe is not None and "fine_tuned" not in half.config.extra
    half.save_pretrained(tmp_path / "half")
    config, card = extra_texts(tmp_path / "half")
    assert config["measured"] == [] and "--dtype bfloat16" in card and "fine-tuned" not in card
    wide = stm.load(tmp_path / "half", device="cpu").cast("float32")  # not what the recipe makes in float32
    assert wide.config.recipe is None
    wide.save_pretrained(tmp_path / "wide")
    assert (
        "fine-tuned" not in extra_texts(tmp_path / "wide")[1]
        and "Make it again" not in extra_texts(tmp_path / "wide")[1]
    )
    by_data(half)
    half.cast("float32").save_pretrained(tmp_path / "tuned")
    check_fine_tuned(tmp_path / "tuned", str(half.config.source.sha256))


def test_weights_that_came_from_elsewhere(folder: Path, tmp_path: Path) -> None:
    """A config of a folder around weights that nobody knows."""
    loaded = stm.load(folder, device="cpu")
    model = stm.ViM(loaded.config)
    model.load_state_dict({name: tensor + 1 for name, tensor in loaded.state_dict().items()})
    model.save_pretrained(tmp_path / "tuned")
    check_fine_tuned(tmp_path / "tuned", str(loaded.config.source.sha256))


def test_commands_take_a_fine_tuned_folder(folder: Path, tmp_path: Path) -> None:
    model = stm.load(folder, device="cpu")
    by_data(model)
    tuned = tmp_path / "tuned"
    model.save_pretrained(tuned)
    images = labelled(tmp_path / "images", [f"{letter}.png,{number}" for number, letter in enumerate("abcde")])
    assert "fine-tuned after merging: the weights are not those of the source" in info.info(str(tuned), ON_CPU).notes
    assert eval.evaluate(str(tuned), ON_CPU, EvalOptions(data=images, workers=0)).n == 5
    report.report(tuned, ON_CPU, EvalOptions(data=images, workers=0), out=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Fine-tuned after merging" in page and "No weight was trained" not in page and "stm compress" not in page
    with pytest.raises(ArtifactError, match="holds no recipe: fine-tuned after merging"):
        compress.compress(str(MINI), READ, recipe=tuned, out=tmp_path / "x")
    with pytest.raises(UsageError, match="already compressed"):
        compress.compress(str(tuned), ON_CPU, out=tmp_path / "x")
