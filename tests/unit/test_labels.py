"""ImageNet's table and class names. The facts are those that everybody who works with ImageNet-1k knows by heart."""

import pytest

from stm.data.labels import class_indices, imagenet
from stm.errors import DataError


@pytest.mark.parametrize(
    ("index", "wnid", "label"),
    [
        (0, "n01440764", "tench"),
        (1, "n01443537", "goldfish"),
        (151, "n02085620", "Chihuahua"),
        (207, "n02099601", "golden retriever"),
        (281, "n02123045", "tabby"),
        (285, "n02124075", "Egyptian cat"),
        (340, "n02391049", "zebra"),
        (504, "n03063599", "coffee mug"),
        (999, "n15075141", "toilet tissue"),
    ],
)
def test_known_classes(index, wnid, label):
    assert (imagenet().wnids[index], imagenet().labels[index]) == (wnid, label)


def test_the_table_is_whole_sorted_and_without_twins():
    wnids, labels = imagenet()
    assert len(wnids) == len(labels) == 1000
    assert list(wnids) == sorted(set(wnids))
    assert len({label.casefold() for label in labels}) == 1000
    assert not any(set("\t/\\") & set(label) or label != label.strip() for label in labels)


def test_classes_of_the_same_name_are_told_apart():
    labels = imagenet().labels
    assert (labels[134], labels[517]) == ("crane (bird)", "crane (machine)")
    assert (labels[264], labels[474]) == ("Cardigan, Cardigan Welsh corgi", "cardigan")
    assert (labels[638], labels[639]) == ("maillot", "maillot, tank suit")


def indices(names, classes=1000, label_names=None):
    return class_indices({name: f"place {number}" for number, name in enumerate(names)}, classes, label_names)


def test_every_kind_of_name_is_read():
    assert indices(["0", "207", "007"]) == {"0": 0, "207": 207, "007": 7}
    assert indices(["n01440764", "n15075141"]) == {"n01440764": 0, "n15075141": 999}
    assert indices(["golden retriever", "Tabby", "golden_retriever"]) == {
        "golden retriever": 207,
        "Tabby": 281,
        "golden_retriever": 207,
    }
    assert indices(["dog", "cat"], 2, ("cat", "dog")) == {"dog": 1, "cat": 0}


def test_labels_that_are_numbers_are_labels():
    """A model trained on folders 1, 10, 2 has them as classes 0, 1, 2: the folder "1" is its class 0."""
    assert indices(["1", "2"], 3, ("1", "10", "2")) == {"1": 0, "2": 2}


@pytest.mark.parametrize(
    ("names", "classes", "label_names", "sentence"),
    [
        (["1", "1000"], 1000, None, "place 1: class 1000, expected 0 to 999: the model has 1000 classes"),
        (["-1"], 10, None, "place 0: class -1, expected 0 to 9"),
        (["10"], 10, None, "place 0: class 10, expected 0 to 9"),
        (["9" * 5000], 10, None, "expected 0 to 9"),
        (
            ["tench", "tenhc"],
            1000,
            None,
            "place 1: 'tenhc' is not a class of the model: expected a label, a class index or a WordNet id",
        ),
        (["n01440764"], 10, None, "place 0: 'n01440764' is not a class of the model: expected a class index"),
        (["n00000000"], 1000, None, "'n00000000' is not a class"),
        (["1.0"], 10, None, "'1.0' is not a class"),
        (["²"], 10, None, "'²' is not a class"),
        ([""], 10, None, "'' is not a class"),
        (["twin"], 2, ("twin", "Twin"), "'twin' is not a class"),
        (
            ["0", "n01440764"],
            1000,
            None,
            "place 1: 'n01440764' is a WordNet id and '0' is a class index: expected one kind for all classes",
        ),
        (["tench", "5"], 1000, None, "place 1: '5' is a class index and 'tench' is a label"),
    ],
)
def test_names_that_are_no_classes_are_refused(names, classes, label_names, sentence):
    with pytest.raises(DataError) as refused:
        indices(names, classes, label_names)
    assert sentence in refused.value.message


def test_classes_that_count_from_one_get_a_hint():
    with pytest.raises(DataError) as caught:
        class_indices({str(i): f"place {i}" for i in range(1, 11)}, 10)
    assert "count from 1" in str(caught.value.hint)
    with pytest.raises(DataError) as caught:
        class_indices({"0": "first", "10": "last"}, 10)
    assert caught.value.hint is None
