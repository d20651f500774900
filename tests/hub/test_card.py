"""The model card: what it says, what it leaves out, and that odd names stay text."""

import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from hypothesis import given
from hypothesis import strategies as st

from stm.assets import FOLDER
from stm.config import Protection, Source
from stm.errors import ArtifactError
from stm.hub.card import _python, _template, _text, _yaml, eval_results, warned
from stm.recipe import DRAWN, Fit, Tried
from stm.reports import ServedSpeed
from tests.hub.cards import DENSE, HERE, LABEL_FREE, LABELLED, SMALL, written
from tools.embedded_card import embedded_card


def test_the_front_matter() -> None:
    found = ModelCard(written(dataclasses.replace(SMALL, measured=(LABELLED, LABEL_FREE)))).data
    assert (found.library_name, found.pipeline_tag, found.license) == ("stm", "image-classification", "apache-2.0")
    assert found.base_model == "someone/their-vim"
    assert "token-merging" in found.tags
    where = (
        "- License of the weights: apache-2.0, by the header of the model card of someone/their-vim. Read the text of"
        " that card too"
    )
    assert where in written(SMALL), (
        "a card's text may say more than its header: one of hustvl/Vim also says non-commercial"
    )
    results = [
        (each.dataset_name, each.metric_type, each.metric_name, each.metric_value) for each in found.eval_results
    ]
    assert results == [
        ("digits", "accuracy", "top-1", 0.97),
        ("digits", "accuracy", "top-5", 0.999),
    ], "only what has labels"


def test_what_is_not_known_is_not_there() -> None:
    text = written(DENSE)
    found = ModelCard(text).data.to_dict()
    assert sorted(found) == ["library_name", "pipeline_tag", "tags"]
    assert "token-merging" not in found["tags"]
    for absent in (
        "None",
        "null",
        "nan",
        "%",
        "top-1 ",
        "images/s",
        "Schedule",
        "Make it again",
        "less than dense",
        "2509.22691",
    ):
        assert absent not in text, absent
    assert "Accuracy was not measured." in text


def test_what_was_measured() -> None:
    text = written(
        dataclasses.replace(SMALL, measured=(LABELLED, LABEL_FREE)), images_per_second=123.456, environment=HERE
    )
    for expected in (
        "| the paper's convention | 1.125 G | 22.38% |",
        "| both directions, merges included | 2.346 M | 10.00% |",
        "Speed: 123.5 images/s on A processor (cpu, float32, backend native, 2 threads, torch 2.13.0).",
        "599 images (2 more could not be read), seed 3.",
        "| top-1, dense model | 97.50% |  |",
        "| top-1 | 97.00% | 95.00% to 98.00% |",
        "| top-5 | 99.90% |  |",
        "| top-1 lost, in points | 0.50 | -1.00 to 2.00 |",
        "| exact McNemar test, p | 0.25 |  |",
        "40 images, seed 0. There are no labels: this is not accuracy.",
        "| KL(dense, this), nats | 0.1250 |  |",
        "commit c0ffee",
        "SHA-256 of that file: 5eed",
        "12,345; `model.safetensors` has 67,890 bytes (float32)",
    ):
        assert expected in text, expected
    assert text.count("Not measured: no labels") == 1
    assert "Accuracy was not measured." not in text


def test_every_row_of_an_evaluation_in_its_order() -> None:
    full = dataclasses.replace(LABELLED, data="all", agreement=0.9876, kl=0.12345, mcnemar_p=0.0012345)
    text = written(dataclasses.replace(SMALL, measured=(full, LABEL_FREE)))
    labelled, free = text.split("## Measured on ")[1:]
    assert table(labelled) == [
        "| | value | 95% interval |",
        "| --- | ---: | --- |",
        "| top-1, dense model | 97.50% |  |",
        "| top-1 | 97.00% | 95.00% to 98.00% |",
        "| top-5 | 99.90% |  |",
        "| top-1 lost, in points | 0.50 | -1.00 to 2.00 |",
        "| exact McNemar test, p | 0.00123 |  |",
        "| images that keep the dense model's top-1 | 98.76% |  |",
        "| KL(dense, this), nats | 0.1235 |  |",
    ]
    assert table(free)[2:] == [
        "| images that keep the dense model's top-1 | 90.00% |  |",
        "| KL(dense, this), nats | 0.1250 |  |",
    ]


def table(section: str) -> list[str]:
    return [line for line in section.splitlines() if line.startswith("|")]


def test_the_speed_beside_the_dense_model() -> None:
    """ViM-S by the paper's method took 89.6 ms where the dense model took 65.5: a card that hides that sells a slower
    model."""
    speed = ServedSpeed(
        batch_size=1, ms_per_image=89.6, dense_ms_per_image=65.5, gain=0.731, gain_quartiles=(0.72, 0.744), rounds=9
    )
    paper = dataclasses.replace(
        SMALL, protection=Protection(weights="hsp", mode="dynamic", step_scale=0.0, span_conv=False)
    )
    text = written(paper, served=speed, environment=HERE)
    expected = (
        "after `optimize`, batch size 1, 89.6 ms per image where the dense model takes 65.5: 0.73x (quartiles 0.72 to"
        " 0.74)"
    )
    assert f"Speed: {expected} on A processor (cpu," in text
    assert f"Speed: 10 images/s; {expected} on A processor (cpu," in written(
        paper, served=speed, images_per_second=10, environment=HERE
    )
    assert "`--hsp static` bakes them" in text and "--hsp static" not in written(SMALL, served=speed, environment=HERE)


def test_a_loss_beyond_chance_is_a_warning_with_a_command() -> None:
    """SMALL saves 40%: of a fitted schedule half of it loses less, and of another one the fitted schedule does."""
    lost = dataclasses.replace(LABELLED, drop=0.052, drop_ci=(0.031, 0.073))
    fitted = dataclasses.replace(SMALL.recipe, schedule="fitted", fit=Fit(data=DRAWN, n=576, sha256="5eed" * 16))
    text = written(dataclasses.replace(SMALL, recipe=fitted, measured=(lost,)))
    assert (
        "> [!WARNING]\n> Top-1 drops by 5.20 points (95%: 3.10 to 7.30), more than chance explains; try a smaller"
        " --saving, or fit on images of your own: --fit-on DIR.\n\nThis loses less:\n\n```sh\n"
        "stm compress someone/their-vim --file vim.pth --revision c0ffee --saving 0.2\n```\n\n## Use\n"
    ) in text
    text = written(dataclasses.replace(SMALL, measured=(lost,)))
    assert "--method stm.\n" in text and "--revision c0ffee --saving 0.4\n```" in text
    assert "WARNING" not in written(dataclasses.replace(SMALL, measured=(LABELLED,))), "its interval holds 0"


def test_a_report_has_the_warning_and_the_command_of_the_card() -> None:
    lost = dataclasses.replace(LABELLED, drop=0.052, drop_ci=(0.031, 0.073))
    found = warned(lost, SMALL)
    assert found["milder"] == "stm compress someone/their-vim --file vim.pth --revision c0ffee --saving 0.4"
    assert len(found["warnings"]) == 1 and found["warnings"][0].startswith("top-1 drops by 5.20 points")
    assert warned(LABELLED, SMALL) == {}, "its interval holds 0"
    no_name = dataclasses.replace(SMALL, source=Source())
    assert warned(lost, no_name)["milder"] is None, "nobody knows what to compress again"


def test_what_the_schedule_was_fitted_on() -> None:
    on_drawn = Fit(data=DRAWN, n=576, sha256="5eed" * 16)
    recipe = dataclasses.replace(SMALL.recipe, schedule="fitted", fit=on_drawn)
    text = written(dataclasses.replace(SMALL, recipe=recipe))
    assert (
        "\nThe schedule was fitted on 576 drawn pictures, seed 0, sha256 5eed5eed5eed; no data was needed.\nAbove 30%"
        " saved without images the choice is less certain; unlabelled images of the model's kind decide better:"
        " --fit-on DIR.\n"
    ) in text, "SMALL saves 40%"
    tried = tuple(Tried(cut=cut, step_scale=0.5, kl=kl) for cut, kl in (("flat", 0.001), ("staged", 0.02)))
    on_own = dataclasses.replace(on_drawn, data="a*set*", n=200, judges=75, tried=tried)
    text = written(dataclasses.replace(SMALL, recipe=dataclasses.replace(recipe, fit=on_own)))
    assert "fitted on 200 images of a\\*set\\*, seed 0, sha256 5eed5eed5eed.\n" in text
    assert "Taken: flat p=0.5 (KL 0.0010) on 75 other images, before staged p=0.5 (KL 0.0200).\n" in text
    assert "less certain" not in text and "fitted on" not in written(SMALL)


def test_the_schedule() -> None:
    """By hand, from the steps of SMALL: 5 tokens, 3 after block 0, 2 after block 9."""
    text = written(SMALL)
    assert (
        "Reached: 40.00% of the token-layers saved, 75.00% of the patch tokens gone." in text
    )  # 1 - (5 + 9 * 3 + 2 * 2) / 60
    assert "| 0 | 5 | 2 | 3 | 1 |\n| 9 | 3 | 1 | 2 | 1 |\n" in text
    assert (
        "blocks  0        5 ########################################\n"
        "blocks  1 to  9  3 ########################\n"
        "blocks 10 to 11  2 ################\n" in text
    )


def test_the_same_model_gives_the_same_card() -> None:
    assert written(SMALL) == written(SMALL)


def test_notes_are_shown_and_other_extras_are_not() -> None:
    assert "- Note: the class token was assumed\n" in written(
        dataclasses.replace(SMALL, extra={"notes": ["the class token was assumed", 7]})
    )
    assert "Note:" not in written(dataclasses.replace(SMALL, extra={"notes": 5, "asked": 6}))


ODD = "a|b`c_*[x](y)<i> \n---\n# {{ 7 * 7 }} 'q' \"d\" \\ é 🙂 \x07 \u2028 end: #1"


def test_odd_names_stay_text() -> None:
    config = dataclasses.replace(
        SMALL,
        source=Source(repo=ODD, file=ODD, license=ODD),
        measured=(dataclasses.replace(LABELLED, data=ODD, reasons={"kl": ODD}),),
    )
    text = written(config, name=ODD)
    _, front, body = text.split("---\n", 2)
    found = yaml.safe_load(front)
    assert (found["base_model"], found["license"], found["model-index"][0]["name"]) == (ODD, ODD, ODD)
    assert found["model-index"][0]["results"][0]["dataset"]["name"] == ODD
    assert "49" not in text.rpartition("<!-- stm ")[0], "text is not a template"
    headings = [line for line in re.sub(r"```.*?```", "", body, flags=re.DOTALL).splitlines() if line.startswith("# ")]
    assert headings == [f"# {_text(ODD)}"]
    for line in body.splitlines():
        if line.startswith("| "):
            assert len(re.findall(r"(?<!\\)\|", line)) in (3, 4, 6), line


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_yaml_strings(text: str) -> None:
    assert yaml.safe_load(f"key: {_yaml(text)}") == {"key": text}


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_python_strings(text: str) -> None:
    assert ast.literal_eval(_python(text)) == text


def test_markdown_text() -> None:
    assert _text("vim_t_midclstok.pth") == "vim_t_midclstok.pth", "readable where nothing needs a backslash"
    assert _text("_a_ *b* `c` <d> |") == r"\_a\_ \*b\* \`c\` \<d\> \|"


def test_results_on_sets_of_the_hub() -> None:
    on_hub = dataclasses.replace(LABELLED, data="hf:someone/set@c0ffee:test")
    config = dataclasses.replace(
        SMALL, measured=(LABELLED, on_hub, dataclasses.replace(LABEL_FREE, data="imagenet-v2@c0ffee"))
    )
    (entry,) = parse_eval_result_entries(yaml.safe_load(eval_results(config) or ""))
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision, entry.value) == (
        "someone/set",
        "test",
        "c0ffee",
        0.97,
    )
    assert entry.notes is not None and "599 images, 95% interval 0.9500 to 0.9800, seed 3" in entry.notes
    assert eval_results(dataclasses.replace(SMALL, measured=(LABELLED, LABEL_FREE))) is None, (
        "nothing that the format can name"
    )
    local, hub = (ModelCard(written(config)).data.eval_results[index] for index in (0, 2))
    assert (local.dataset_type, local.dataset_split) == ("digits", None)
    assert (hub.dataset_type, hub.dataset_name, hub.dataset_split, hub.dataset_revision) == (
        "someone/set",
        "someone/set",
        "test",
        "c0ffee",
    )


def test_the_sets_that_the_source_was_trained_on() -> None:
    data = ModelCard(written(dataclasses.replace(SMALL, extra={"datasets": ["imagenet-1k", "a: b", 3]}))).data
    assert data.datasets == ["imagenet-1k", "a: b"]
    assert ModelCard(written(dataclasses.replace(SMALL, extra={"datasets": "no list"}))).data.datasets is None


def test_the_embedded_models_card_is_what_would_be_written() -> None:
    assert (FOLDER / "vim-digits" / "README.md").read_text() == embedded_card(), "run: python -m tools.embedded_card"


def test_without_jinja2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    _template.cache_clear()
    with pytest.raises(ArtifactError, match="needs jinja2") as caught:
        written(DENSE)
    assert caught.value.hint == "pip install jinja2"


def test_a_card_needs_no_torch() -> None:
    code = "import sys, stm.hub.card; sys.exit(bool({'torch', 'huggingface_hub', 'jinja2'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2])
