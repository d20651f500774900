"""The strict codec of config.json: what the file holds, what is refused, and edits, which mean what they say or are
refused.

The keys are those of docs/design.md section 3, written out here by hand.
"""

import copy
import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stm.codec import encode
from stm.config import Config, FileInfo, Measured, ModelConfig, Preprocess, Protection, Source, dense_schedule
from stm.config_file import dumps, from_json, loads, to_json
from stm.errors import ArtifactError
from stm.install import install_command
from stm.merging.schedule import Schedule, Step
from stm.recipe import Calibration, Fit, Recipe

KEYS = {
    "": (
        "schema_version format stm_version architecture num_classes num_features model dtype preprocessing label_names"
        " id2label schedule protection recipe source measured files pretrained_cfg extra"
    ),
    "model": (
        "image_size patch stride in_chans d_model depth d_state dt_rank expand d_conv class_token divide_out norm_eps"
    ),
    "preprocessing": "resize crop interpolation mean std",
    "schedule": "tokens class_token steps tokens_per_block class_token_per_block",
    "protection": "weights mode normalized step_scale span_conv",
    "recipe": "method rate saving removed_share schedule stages sides tokens_per_side calibration fit seed",
    "source": "repo file revision sha256 license",
    "pretrained_cfg": "input_size interpolation crop_pct mean std num_classes",
}

MODEL = ModelConfig(image_size=4, patch=2, stride=2, d_model=2, depth=3, d_state=2, dt_rank=1)
CONFIG = Config(
    model=MODEL,
    num_classes=2,
    schedule=Schedule(5, 2, (Step(0, ((0, 1), (4, 3))), Step(1, ((2, 0),)))),
    preprocessing=Preprocess(resize=4, crop=4),
    label_names=("zero", "one"),
    protection=Protection(),
    recipe=Recipe(
        method="stm",
        rate=0.4,
        removed_share=0.75,
        schedule="staged",
        calibration=Calibration(data="x", n=2, sha256="00"),
    ),
    source=Source(file="vim.pth"),
    measured=(Measured(data="digits", n=3, top1=0.5, top1_ci=(0.25, 0.75), reasons={"kl": "no dense model"}),),
    files={"model.safetensors": FileInfo(sha256="00", bytes=8)},
    stm_version="0.1.0",
    extra={"notes": ["a", 1, None]},
)


def test_the_file_is_sorted_and_has_the_promised_keys() -> None:
    text = dumps(CONFIG)
    document = json.loads(text)
    assert text == json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    for path, keys in KEYS.items():
        assert sorted(document[path] if path else document) == sorted(keys.split()), path
    assert sorted(document["schedule"]["steps"][0]) == ["absorb", "after"]
    assert document["files"] == {"model.safetensors": {"bytes": 8, "sha256": "00"}}


def test_what_is_derived() -> None:
    """By hand: 5 tokens, class token at 2; 0 goes into 1 and 4 into 3 after block 0; of the 3 that are left, 2 into 0
    after block 1."""
    document = to_json(CONFIG)
    assert document["schedule"]["tokens_per_block"] == [5, 3, 2]
    assert document["schedule"]["class_token_per_block"] == [2, 1, 1]
    assert document["num_features"] == 2
    assert document["id2label"] == {"0": "zero", "1": "one"}
    assert document["pretrained_cfg"]["input_size"] == [3, 4, 4]
    assert document["pretrained_cfg"]["crop_pct"] == 1


def test_a_dense_config_needs_no_protection() -> None:
    dense = Config(
        model=MODEL, num_classes=2, schedule=dense_schedule(MODEL), preprocessing=Preprocess(resize=4, crop=4)
    )
    assert loads(dumps(dense)) == dense
    assert to_json(dense)["schedule"]["tokens_per_block"] == [5, 5, 5]


REMOVE = object()
FIT = encode(Fit(data="x", n=2, sha256="00"))


def edited(path: str, value: Any) -> dict[str, Any]:
    document: Any = copy.deepcopy(to_json(CONFIG))
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    at = document
    for key in parents:
        at = at[key]
    if value is REMOVE:
        del at[last]
    else:
        at[last] = value
    return dict(document)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("format", "pt", "format is not 'stm': this is not a folder that stm wrote"),
        ("format", REMOVE, "format is not 'stm'"),
        ("architecture", "vit", "architecture is not 'vim'"),
        ("schema_version", 2, "schema_version is 2, this stm reads 1 to 1"),
        ("schema_version", 0, "schema_version is 0"),
        ("schema_version", "2", 'schema_version is "2"'),
        ("schema_version", True, "schema_version is true"),
        ("schema_version", REMOVE, "schema_version is null"),
        ("color", "red", "unknown key color"),
        ("model.rope", True, "unknown key model.rope"),
        ("recipe.calibration.path", "/home", "unknown key recipe.calibration.path"),
        ("schedule.steps.0.weight", 1, r"unknown key schedule.steps\[0\].weight"),
        ("files", {"model.safetensors": 8}, "files.model.safetensors is 8, expected an object"),
        ("dtype", REMOVE, "missing key dtype"),
        ("model.depth", REMOVE, "missing key model.depth"),
        ("schedule.steps.1.after", REMOVE, r"missing key schedule.steps\[1\].after"),
        ("num_classes", "two", 'num_classes is "two", expected an integer'),
        ("num_classes", 2.0, "num_classes is 2.0, expected an integer"),
        ("num_classes", True, "num_classes is true, expected an integer"),
        ("num_classes", None, "num_classes is null, expected an integer"),
        ("num_classes", -1, "num_classes is -1, expected at least 0"),
        ("num_classes", 3, "2 label_names, expected one for each of the 3 classes"),
        ("model.divide_out", 1, "model.divide_out is 1, expected true or false"),
        ("model.norm_eps", -1, "model: norm_eps is -1.0"),
        ("model.depth", 0, "model: depth is 0, expected at least 1"),
        ("model.depth", 4, "schedule.tokens_per_block has 3 entries for 4 blocks"),
        ("model.depth", 10**12, "schedule.tokens_per_block has 3 entries for 1000000000000 blocks"),
        ("model.image_size", 8000, "the schedule is for 5 tokens with the class token at 2, the model has 16000001"),
        ("model.image_size", 10**12, "image_size is 1000000000000, expected at most 8192"),
        ("preprocessing.resize", 10**6, "resize is 1000000, expected at most 10 times the crop 4"),
        ("model.class_token", "tail", "class_token is 'tail', expected one of middle, head"),
        (
            "model.class_token",
            "head",
            "the schedule is for 5 tokens with the class token at 2, the model has 5 with it at 0",
        ),
        ("model.patch", 5, "patch is 5, expected at most the image_size 4"),
        ("model", [], r"model is \[\], expected an object"),
        ("dtype", "int4", "dtype is 'int4', expected one of float32, bfloat16, float16, int8"),
        ("preprocessing.interpolation", "lanczos", "interpolation is 'lanczos'"),
        ("preprocessing.crop", 5, "crop is 5, expected 1 to the resized short side 4"),
        ("preprocessing.mean", [0.5], "mean .* and std"),
        ("preprocessing.mean", 0.5, "preprocessing.mean is 0.5, expected a list"),
        ("schedule.tokens", 6, "the schedule is for 6 tokens"),
        ("schedule.class_token", 9, "schedule: class token at 9, expected a position below the 5 tokens"),
        ("schedule.steps.0.absorb.0", [0, 5], r"step 0 \(after block 0\): 0 into 5 points outside the 5 tokens"),
        ("schedule.steps.1.absorb.0", [3, 0], r"step 1 \(after block 1\): 3 into 0 points outside the 3 tokens"),
        ("schedule.steps.0.absorb.0", [-1, 1], "points outside"),
        ("schedule.steps.0.absorb.0", [0, 2], "touches the class token at 2"),
        ("schedule.steps.0.absorb.0", [0, 4], "which is itself absorbed"),
        ("schedule.steps.0.absorb.0", [4, 1], "a token is absorbed twice"),
        ("schedule.steps.0.absorb.0", [0], r"schedule.steps\[0\].absorb\[0\] is \[0\], expected a list"),
        ("schedule.steps.0.absorb", [], "absorbs nothing"),
        ("schedule.steps.1.after", 0, "expected a block after 0"),
        ("schedule.steps.1.after", 2, "a step after block 2: expected at most 1 of 3 blocks"),
        (
            "schedule.tokens_per_block.1",
            4,
            r"schedule.tokens_per_block contradicts its steps: \[5, 4, 2\], expected \[5, 3, 2\]",
        ),
        ("schedule.class_token_per_block", [2, 1], "class_token_per_block contradicts"),
        ("protection", None, "the schedule merges, but protection is null"),
        ("protection.weights", "max", "weights is 'max', expected one of"),
        ("protection.mode", "dynamic", "only hsp weights can be dynamic"),
        ("protection.step_scale", 5, "step_scale is 5.0, expected a number from 0 to 4"),
        ("recipe.sides", "top", "sides is 'top'"),
        ("recipe.stages", [1.5], r"recipe.stages\[0\] is 1.5, expected an integer"),
        ("measured.0.top1_ci", [0.1], r"measured\[0\].top1_ci is \[0.1\], expected a list"),
        ("measured.0.reasons.kl", 1, r"measured\[0\].reasons.kl is 1, expected a string"),
        ("preprocessing.crop", 3, "preprocessing.crop is 3, expected the image_size 4"),
        ("preprocessing.std.0", 10**400, "expected a finite number"),
        ("recipe.rate", None, "recipe: it asks for nothing, expected exactly one of rate, saving and stages"),
        ("recipe.saving", 0.1, "recipe: it asks for rate and saving, expected exactly one"),
        ("recipe.rate", 1.5, "recipe: rate is 1.5, expected 0 to 1"),
        ("recipe.removed_share", 0.5, "recipe.removed_share is 0.5, but the schedule removes 0.75"),
        ("recipe.tokens_per_side", 2, "tokens_per_side is 2, expected null: the schedule is staged"),
        ("recipe.seed", -1, "seed is -1, expected at least 0"),
        ("recipe.calibration.n", 0, "n is 0, expected at least 1"),
        ("recipe.fit", FIT, "recipe: fit is given, expected null: the schedule is staged"),
        ("recipe.fit", FIT | {"cut": "round"}, "recipe.fit: cut is 'round', expected one of flat, regrouped"),
        ("recipe.fit", FIT | {"n": 0}, "recipe.fit: n is 0, expected at least 1"),
        ("recipe.fit", FIT | {"judges": -1}, "recipe.fit: judges is -1, expected at least 0"),
        ("recipe.fit", FIT | {"max_drop": 50}, "recipe.fit: max_drop is 50.0, expected 0 to 1"),
        ("recipe.fit", FIT | {"path": "/home"}, "unknown key recipe.fit.path"),
        (
            "recipe.fit",
            FIT | {"tried": [{"cut": "flat", "step_scale": 1, "kl": -1}]},
            r"recipe.fit.tried\[0\]: kl is -1.0, expected at least 0",
        ),
        ("source.file", "../vim.pth", "file is '../vim.pth', expected a name without a folder"),
        ("measured.0.n", 0, "n is 0, expected at least 1"),
        ("measured.0.top1", 50, "top1 is 50.0, expected 0 to 1"),
        ("measured.0.top1_ci", [-0.1, 0.5], r"top1_ci is \(-0.1, 0.5\), expected 0 to 1"),
        ("num_features", 3, "num_features contradicts the rest of the file: 3, expected 2"),
        ("num_features", REMOVE, "num_features contradicts"),
        ("id2label", {"0": "one", "1": "zero"}, "id2label contradicts"),
        ("pretrained_cfg.crop_pct", 0.9, "pretrained_cfg contradicts"),
        ("pretrained_cfg", REMOVE, "pretrained_cfg contradicts"),
    ],
)
def test_what_is_refused(path: str, value: Any, says: str) -> None:
    with pytest.raises(ArtifactError, match=says) as caught:
        from_json(edited(path, value), "here/config.json")
    assert caught.value.message.startswith("here/config.json")
    assert caught.value.exit_code == 1
    assert ("newer version of stm" in str(caught.value)) == (path == "schema_version" and value == 2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("null", "expected an object, got null"),
        ("[1]", r"expected an object, got \[1\]"),
        ('{"a": 1, "b": 0, "a": 2}', r'a key is written twice: \["a"\]'),
        ("[" * 100_000, "not valid JSON"),
        ('{"schema_version": 1, "x": NaN}', "NaN is not a number of JSON"),
        ('{"schema_version": 1, "x": -Infinity}', "-Infinity is not a number of JSON"),
        ('{"schema_version": 1, "x": ' + "1" * 5000 + "}", "not valid JSON"),
        ('{"schema_version": 1, "x": 1e999}', "1e999 is too large a number"),
        (r'{"schema_version": 1, "x": "\ud800"}', "surrogates not allowed"),
    ],
)
def test_what_is_not_json(text: str, says: str) -> None:
    with pytest.raises(ArtifactError, match=says):
        loads(text)


def test_a_folder_from_before_the_fit_knows_none_and_called_staged_stm() -> None:
    """Its preset `stm` is today's `staged`. The others kept their names."""
    old: Any = to_json(CONFIG)
    del old["recipe"]["fit"]
    for then, now in (("stm", "staged"), ("paper", "paper")):
        old["recipe"]["method"] = then
        recipe = from_json(old).recipe
        assert recipe is not None
        assert (recipe.method, recipe.fit) == (now, None)
        assert dataclasses.replace(recipe, method="stm") == CONFIG.recipe
    old["recipe"]["fit"] = None  # a folder of the days between both keeps what it says
    old["recipe"]["method"] = "stm"
    assert from_json(old) == CONFIG
    old["recipe"] = None
    assert from_json(old) == dataclasses.replace(CONFIG, recipe=None)


def test_a_folder_that_said_that_it_has_no_initial_state_loads() -> None:
    old: Any = to_json(CONFIG)
    old["protection"]["initial_state"] = False
    assert from_json(old) == CONFIG
    assert old["protection"]["initial_state"] is False  # the caller's document is not changed
    old["protection"] = None  # a dense model's
    old["schedule"] |= {"steps": [], "tokens_per_block": [5, 5, 5], "class_token_per_block": [2, 2, 2]}
    old["recipe"] = None
    assert from_json(old).protection is None


@pytest.mark.parametrize(("value", "words"), [(True, "true"), (0, "0"), (None, "null"), ([], r"\[\]")])
def test_an_initial_state_is_refused(value: Any, words: str) -> None:
    """No version of stm wrote one, so the tensors that it would need are in no folder."""
    old: Any = to_json(CONFIG)
    old["protection"]["initial_state"] = value
    expected = f"^here/config.json: protection.initial_state is {words}, but no version of stm wrote anything other"
    with pytest.raises(ArtifactError, match=expected) as caught:
        from_json(old, "here/config.json")
    assert "compress the dense model again" in str(caught.value.hint)


def test_a_recipe_that_is_no_object_is_refused() -> None:
    old = edited("recipe", "stm")
    with pytest.raises(ArtifactError, match='recipe is "stm", expected an object'):
        from_json(old)


def test_a_newer_version_says_what_to_do() -> None:
    with pytest.raises(ArtifactError) as caught:
        from_json(edited("schema_version", 9))
    assert install_command() in str(caught.value.hint)


def test_deep_nesting_is_refused_or_kept() -> None:
    text = dumps(CONFIG).replace('"notes"', '"deep": ' + "[" * 900 + "]" * 900 + ', "notes"')
    assert_strict(text)


# Edits: a file that loads says what it says

words = st.text(max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda x: st.lists(x, max_size=3) | st.dictionaries(words, x, max_size=3),
)
SMALL = [*range(-1, 7), 10**6, 0.5, 1e308, True, False, None, "", "stm", [], {}, [[]]]


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    return [at, *(path for key, item in items for path in paths(item, (*at, key)))]


@st.composite
def edits(draw: st.DrawFn) -> Any:
    document = copy.deepcopy(to_json(CONFIG))
    for _ in range(draw(st.integers(1, 3))):
        *parents, last = draw(st.sampled_from(paths(document)[1:]))
        at: Any = document
        for key in parents:
            at = at[key]
        what = draw(st.sampled_from(["remove", "replace", "copy", "rename", "nudge"]))
        if what == "remove":
            del at[last]
        elif what == "copy":
            source: Any = document
            for key in draw(st.sampled_from(paths(document)[1:])):
                source = source[key]
            at[last] = copy.deepcopy(source)
        elif what == "rename" and isinstance(at, dict):
            at[draw(words)] = at.pop(last)
        elif what == "nudge" and isinstance(at[last], int | float):
            at[last] += draw(st.sampled_from([-1, 1]))
        else:
            at[last] = draw(st.sampled_from(SMALL) | json_values)
    return document


def assert_strict(text: str) -> None:
    """Refused with our own exception, or a config that says exactly what the text says and can be written again."""
    try:
        config = loads(text)
    except ArtifactError:
        return
    assert to_json(config) == as_written_today(json.loads(text))
    dumps(config).encode()


def as_written_today(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document with what has changed before the first release: an edit may make an older one."""
    recipe, protection = document.get("recipe"), document.get("protection")
    if isinstance(recipe, dict) and "fit" not in recipe:
        recipe |= {"fit": None} | ({"method": "staged"} if recipe["method"] == "stm" else {})
    if isinstance(protection, dict):
        protection.pop("initial_state", None)
    return document


def test_an_edit_may_make_an_older_document() -> None:
    document = to_json(CONFIG)
    del document["recipe"]["fit"]
    assert_strict(json.dumps(document))
    document["protection"]["initial_state"] = False
    assert_strict(json.dumps(document))


@settings(max_examples=200)
@given(edits())
def test_an_edit_is_meant_or_refused(document: Any) -> None:
    assert_strict(json.dumps(document))


@settings(max_examples=150)
@given(st.data())
def test_a_damaged_text_is_meant_or_refused(data: st.DataObject) -> None:
    text = dumps(CONFIG)
    begin = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(begin, min(len(text), begin + 3)))
    assert_strict(text[:begin] + data.draw(st.text('{}[]",:\\0129.eE+-ntu ad\n', max_size=3)) + text[end:])
