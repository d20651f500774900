"""Names of classes that a user gives, or a checkpoint holds."""

import json

import pytest
import torch

import stm
from stm.checkpoint.class_names import in_order, names_in
from stm.checkpoint.official import to_official
from stm.data.class_names import given_names
from stm.data.labels import imagenet
from stm.errors import DataError, UsageError
from stm.model.initialize import initialize
from stm.model.vim import ViM
from tests.pictures import make_config

NAMES = ("benign", "malignant", "normal")
BY_NAME = {"normal": 2, "benign": 0, "malignant": 1}
BY_INDEX = {"2": "normal", "0": "benign", "1": "malignant"}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("a.txt", "\ufeffbenign\nmalignant\r\n\nnormal\n"),
        ("a.txt", "0 benign\n1: malignant\n2, normal\n"),
        ("a.txt", "1. benign\n2. malignant\n3. normal\n"),
        ("a.txt", "n01440764 benign\nn01443537 malignant\nn01484850 normal"),
        ("a", json.dumps(list(NAMES))),
        ("a.json", json.dumps(BY_NAME)),
        ("a.json", json.dumps(BY_INDEX)),
        ("a.json", json.dumps({index: ["n00000000", name] for index, name in BY_INDEX.items()})),
        ("config.json", json.dumps({"model_type": "x", "id2label": BY_INDEX})),
        ("a.csv", "index,name\n2,normal\n0,benign\n1,malignant\n"),
        ("a.csv", "class_name;class_id\nnormal;2\nbenign;0\nmalignant;1\n"),
        ("a.csv", ",label\n0,benign\n1,malignant\n2,normal\n"),
        ("a.csv", "normal,2\nbenign,0\nmalignant,1\n"),
        ("a.tsv", "name\nbenign\nmalignant\nnormal\n"),
    ],
)
def test_every_form_of_a_file(tmp_path, file, text):
    (tmp_path / file).write_text(text)
    assert given_names(tmp_path / file, 3) == NAMES


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("a.txt", "benign\nnormal\n", "a.txt has 2 names, expected one for each of the 3 classes"),
        ("a.json", '{"a": 0, "b": 2, "c": 3}', "names no classes by index from 0"),
        ("a.json", '{"a": 0, "b": 0, "c": 1}', "names no classes by index from 0"),
        ("a.json", "[1, 2, 3]", "names no classes"),
        ("a.json", '["a", "", "c"]', "names no classes"),
        ("a.json", '["a", "\\ud800", "c"]', "names no classes"),
        ("a.json", "[", "is not JSON"),
        ("a.json", '{"\u0660": "a", "\u0661": "b", "\u0662": "c"}', "names no classes"),
        ("a.json", '{"0": "a", "00": "x", "1": "b", "2": "c"}', "names no classes"),
        ("a.csv", "index,name\n\u0660,a\n\u0661,b\n\u0662,c\n", "names no classes"),
        ("a.txt", "a\0\nb\nc\n", "holds a NUL character"),
        ("a.csv", "index,name\n0,a\n0,b\n2,c\n", "names no classes"),
        ("a.csv", "index,name\n0,a\n1\n2,c\n", "names no classes"),
        ("a.csv", "", "names no classes"),
        ("a.txt", "", "names no classes"),
        ("a.txt", b"\x80\x02}", "is not text in UTF-8"),
        ("none.txt", None, "cannot be read: No such file"),
    ],
)
def test_files_that_name_no_classes(tmp_path, file, text, said):
    if text is not None:
        (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as refused:
        given_names(tmp_path / file, 3)
    assert said in refused.value.message


def test_lists_and_dicts():
    assert (
        given_names(list(NAMES), 3)
        == given_names(BY_NAME, 3)
        == given_names({2: "normal", 0: "benign", 1: "malignant"}, 3)
    )
    with pytest.raises(UsageError, match="labels has 3 names, expected one for each of the 4"):
        given_names(NAMES, 4)
    assert given_names(imagenet().wnids, 1000) == imagenet().labels, "people know no WordNet ids"


def test_names_that_a_checkpoint_holds():
    assert names_in({"args": {"class_to_idx": BY_NAME}, "epoch": 3}, 3) == ("class_to_idx", NAMES)
    assert names_in({"meta": {"CLASSES": NAMES, "epoch": 1}, "names": ["x", "y"]}, 3) == ("CLASSES", NAMES)
    assert names_in({"classes": 3, "labels": [1, 2, 3], "names": ["x"]}, 3) is None
    assert in_order({"10": 1, "1": 0, "2": 2}) == ("1", "10", "2"), "folders that are numbers"


def test_a_models_names_are_those_asked_for_then_the_files_own(tmp_path):
    weights = {"model": to_official(initialize(ViM(make_config(3))).state_dict()), "class_to_idx": BY_NAME}
    torch.save(weights, path := tmp_path / "vim_midclstok.pth")
    model = stm.load(path, image_size=4)
    assert model.config.label_names == NAMES
    assert any("the file's own class_to_idx: benign, malignant, normal" in note for note in model.config.extra["notes"])
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    named = stm.load(path, image_size=4, labels=tmp_path / "names.txt")
    assert named.config.label_names == ("a", "b", "c")
    named.save_pretrained(tmp_path / "folder")
    assert "- Classes: 3: a, b, c\n" in (tmp_path / "folder" / "README.md").read_text()
    assert stm.load(tmp_path / "folder").config.label_names == ("a", "b", "c")
    assert stm.load(tmp_path / "folder", labels=["x", "y", "z"]).config.label_names == ("x", "y", "z")
    torch.save(weights | {"class_to_idx": {"a": 0}}, path)
    model = stm.load(path, image_size=4)
    assert model.config.label_names is None
    assert (
        "the file's own class_to_idx does not fit, with 1 names for 3 classes: left out" in model.config.extra["notes"]
    )
