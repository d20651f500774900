"""A recipe as a file: what is read and refused, and which of two values counts."""

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest

from stm.commands.recipe_file import KEYS, Choice, Merges, dumps, read, under
from stm.errors import DataError
from stm.merging.schedule import Step
from stm.options import EvalOptions, FitOptions, MergeOptions, ModelOptions
from stm.recipe import DRAWN, Fit, Tried
from stm_cli.compress import run

FIT = Fit(data=DRAWN, n=192, judges=64, sha256="ab" * 32, tried=(Tried(cut="flat", step_scale=0.5, kl=1e-05),))
MERGES = Merges(
    tokens=197,
    class_token=98,
    steps=(Step(2, tuple((i, i + 1) for i in range(0, 80, 2))), Step(4, ((1, 2),))),
    step_scale=0.75,
    source="cd" * 32,
    fit=FIT,
)
FULL = Choice(
    source=ModelOptions(image_size=(64, 32), mean=(0.5,), divide_out=False, ema=True, dtype="int8", labels="no"),
    merge=MergeOptions(saving=0.3, method="stm", sides="left", step_scale=0.75, span_conv=False),
    fit=FitOptions(fit_on="my images/", fit_images=64),
    images=EvalOptions(data="stream:val-*.tar", split="1e-3", limit=10, seed=3),
    max_drop=0.01,
    max_kl=0.001,
    export=("official",),
    merges=MERGES,
)


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("choice", [FULL, Choice(merge=MergeOptions(stages=(2, 4), method="staged"), no_eval=True)])
def test_what_is_written_is_read_again(tmp_path: Path, choice: Choice) -> None:
    text = dumps(choice)
    assert read(written(tmp_path, text)) == choice
    assert max(map(len, text.splitlines())) <= 120


def test_the_defaults_that_may_change_are_written(tmp_path: Path) -> None:
    """The budget and the preset, unless an outcome is the budget."""
    assert "\nrate: 0.4\n" in dumps(Choice()) and "\nmethod: stm\n" in dumps(Choice())
    assert "rate" not in dumps(Choice(max_drop=0.01)).partition("max_drop: 1.0")[0].partition("version: 1")[2][:40]


def test_every_key_is_an_option_of_compress() -> None:
    """And every option is a key, but those of the machine, of the output, and of where a model is."""
    of_compress = set(inspect.signature(run).parameters)
    machine = {"device", "backend", "batch_size", "workers", "no_cache", "token", "file", "revision", "model"}
    output = {"out", "force", "dry_run", "push_to", "json", "quiet", "recipe", "save_recipe"}
    assert of_compress - machine - output == set(KEYS) - {"export"}


HEAD = "recipe_version: 1\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: the recipe is null, expected keys and values, such as saving: 0.3"),
        ("- saving", 'line 1: the recipe is ["saving"], expected keys and values'),
        ("saving: 0.3\n", "line 1: recipe_version is null, expected 1"),
        ("recipe_version: 2\n", "line 1: recipe_version is 2, expected 1"),
        (HEAD + "saving: 0.3\nsavings: 0.3\n", "line 3: unknown key savings"),
        (HEAD + "saving: '0.3'\n", 'line 2: saving is "0.3", expected a finite number'),
        (HEAD + "saving: 30%\n", 'line 2: saving is "30%", expected a finite number'),
        (HEAD + "saving: .nan\n", 'line 2: saving is ".nan", expected a finite number'),
        (HEAD + "saving: 3\n", "line 2: saving is 3.0, expected 0 to 1"),
        (HEAD + "\nsaving:\n", "line 3: saving has no value: give it one, or leave the line out"),
        (HEAD + "normalize: no\n", 'line 2: normalize is "no", expected true or false'),
        (HEAD + "limit: 1e3\n", "line 2: limit is 1000.0, expected an integer"),
        (HEAD + "limit: 0\n", "line 2: limit is 0, expected at least 1"),
        (HEAD + "data: 2024\n", "line 2: data is 2024, expected a string"),
        (HEAD + "method: STM\n", "line 2: method is 'STM', expected one of stm, staged, paper"),
        (HEAD + "dtype: fp16\n", "line 2: dtype is 'fp16', expected one of float32, bfloat16, float16, int8"),
        (HEAD + "export: [official, wish]\n", "line 2: export is 'wish', expected one of "),
        (HEAD + "speedup: 1\n", "line 2: speedup is 1, expected a number above 1"),
        (HEAD + "rate: 0.4\nsaving: 0.3\n", "line 3: saving stands beside rate, expected only one of rate, saving"),
        (HEAD + "max_drop: 200\n", "line 2: max_drop is 200.0, expected 0 to 100"),
        (HEAD + "stages: [2, x]\n", 'line 2: stages[1] is "x", expected an integer'),
        (
            HEAD + "saving: 0.3\nmerges:\n  step_scale: 1\n",
            "line 3: missing key merges.class_token, merges.steps, merges.tokens",
        ),
        (
            HEAD + "saving: 0.3\nmerges: {tokens: 5, class_token: 2, step_scale: 1,\n  steps: [\n"
            "    {after: 1, absorb: [[1, 2, 3]]}]}\n",
            "line 5: merges.steps[0].absorb[0] is [1, 2, 3], expected",
        ),
        (
            HEAD + "merges: {tokens: 5, class_token: 2, step_scale: 1, steps: []}\n",
            "line 2: merges stand without a budget, expected one of rate",
        ),
        (
            HEAD + "method: paper\nrate: 0.4\nmerges: {tokens: 5, class_token: 2, step_scale: 1, steps: []}\n",
            "line 4: merges stand beside the schedule border, which follows from the budget",
        ),
        (HEAD + "saving: &a 0.3\n", "line 2: saving has the anchor &a, expected the value alone"),
        (HEAD + "token: hf_secret\n", "line 2: unknown key token"),
    ],
)
def test_a_bad_recipe_is_one_sentence_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.message.startswith(f"{path} {said}"), caught.value.message
    assert "docs/recipes.md" in str(caught.value.hint)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"recipe\.yaml cannot be read: "):
        read(tmp_path / "recipe.yaml")
    (tmp_path / "big.yaml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(DataError, match=r"big\.yaml has 2,097,152 bytes, expected .* at most 1,048,576"):
        read(tmp_path / "big.yaml")


RECIPE = Choice(merge=MergeOptions(rate=0.4), images=EvalOptions(data="a", seed=1), max_drop=0.01, merges=MERGES)


@pytest.mark.parametrize(
    ("given", "expected", "notes"),
    [
        (Choice(), RECIPE, ()),
        # Another gate or other images say nothing of the merges, which stay.
        (
            Choice(max_drop=0.02),
            dataclasses.replace(RECIPE, max_drop=0.02),
            ("--max-drop 2.0 counts, and not max_drop",),
        ),
        (Choice(max_drop=0.01), RECIPE, ()),
        (
            Choice(images=EvalOptions(data="b")),
            dataclasses.replace(RECIPE, images=EvalOptions(data="b", seed=1)),
            ("--data b counts, and not data a of r.yaml",),
        ),
        # Another budget takes the place of the recipe's, of whatever kind, and the merges go with it.
        (
            Choice(speedup=1.5),
            dataclasses.replace(RECIPE, merge=MergeOptions(), speedup=1.5, merges=None),
            ("--speedup 1.5 counts, and not rate 0.4 of r.yaml", "the schedule is chosen anew: the merges of r.yaml"),
        ),
        (
            Choice(merge=MergeOptions(weights="sum")),
            dataclasses.replace(RECIPE, merge=MergeOptions(rate=0.4, weights="sum"), merges=None),
            ("the schedule is chosen anew",),
        ),
        # What is of the machine is not the recipe's.
        (
            Choice(source=ModelOptions(device="cpu"), images=EvalOptions(batch_size=8)),
            dataclasses.replace(
                RECIPE, source=ModelOptions(device="cpu"), images=EvalOptions(data="a", seed=1, batch_size=8)
            ),
            (),
        ),
    ],
)
def test_what_is_typed_counts_and_is_said(given: Choice, expected: Choice, notes: tuple[str, ...]) -> None:
    made, said = under(RECIPE, given, "r.yaml")
    assert made == expected
    assert [note.startswith(start) for note, start in zip(said, notes, strict=True)] == [True] * len(notes), said


def test_a_gate_without_a_budget_decides_the_merges(tmp_path: Path) -> None:
    outcome: Any = dataclasses.replace(MERGES, saving=0.2)
    recipe = Choice(max_drop=0.01, merges=outcome)
    assert under(recipe, Choice(max_drop=0.02), "r.yaml")[0].merges is None
    assert under(recipe, Choice(max_drop=0.01), "r.yaml")[0].merges == outcome
