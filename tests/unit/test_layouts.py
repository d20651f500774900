"""Folders of images: every layout that is read, and everything that is refused, by a sentence that names it."""

import io
import os

import numpy as np
import pytest
import scipy.io
from PIL import Image

from stm.config import Preprocess
from stm.data import folders as layouts
from stm.data import validation
from stm.data.images import ImageFile, Sample
from stm.data.labels import imagenet
from stm.data.sets import iterate
from stm.errors import DataError
from tests.pictures import PREP, labelled, labels_of, opened, picture


def test_labels_csv_in_sorted_order(tmp_path):
    folder = labelled(tmp_path / "set", ["b.png,3", "a.png,0", "in/c.png,9"])
    samples = opened(folder)
    assert samples.name == "set"
    assert samples.labelled
    assert list(labels_of(samples).items()) == [("a.png", 0), ("b.png", 3), ("in/c.png", 9)]


def test_labels_csv_by_wordnet_id_and_by_label(tmp_path):
    assert labels_of(opened(labelled(tmp_path / "w", ["a.png,n02099601"]), 1000)) == {"a.png": 207}
    assert labels_of(opened(labelled(tmp_path / "n", ["a.png,golden retriever"]), 1000)) == {"a.png": 207}
    assert labels_of(opened(labelled(tmp_path / "o", ["a.png,dog"]), 2, ("cat", "dog"))) == {"a.png": 1}


def test_labels_csv_as_excel_and_people_write_it(tmp_path):
    folder = labelled(tmp_path, ["a, b.png,1"])
    (folder / "labels.csv").write_bytes('\ufefffilename,label\r\n"a, b.png", 1\r\n\r\n'.encode())
    assert labels_of(opened(folder)) == {"a, b.png": 1}


def test_labels_csv_may_label_less_than_there_is_and_more(tmp_path):
    folder = labelled(tmp_path, ["a.png,1", "b.png,2"])
    picture(folder / "unlabelled.png")
    (folder / "b.png").unlink()
    samples = opened(folder)
    assert list(labels_of(samples)) == ["a.png", "b.png"]
    (batch,) = iterate(samples, PREP, batch_size=8)
    assert batch.indices == (0,)
    assert batch.errors == {1: "b.png: no such file or directory"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "a,kind\na.png,1\n",
            "labels.csv begins with 'a,kind', expected the header filename,label: no column of the image",
        ),
        ("", "labels.csv begins with '', expected the header"),
        ("filename,label\n", "labels.csv labels no images"),
        ("filename,label\na.png,1,2\n", "labels.csv line 2: 3 columns, expected 2"),
        ("filename,label\n\na.png,10\n", "labels.csv line 3 (a.png): class 10, expected 0 to 9"),
        ("filename,label\na.png,-1\n", "labels.csv line 2 (a.png): class -1, expected 0 to 9"),
        ("filename,label\na.png,1\nb.png,dog\n", "labels.csv line 3 (b.png): 'dog' is not a class"),
        ("filename,label\na.png,\n", "labels.csv line 2 (a.png): '' is not a class"),
        ("filename,label\na.png,1\nb.png,2\na.png,1\n", "labels.csv line 4: a.png was labelled on line 2 already"),
        ("filename,label\n../a.png,1\n", "labels.csv line 2: '../a.png' is not the name of a file in this folder"),
        ("filename,label\n/a.png,1\n", "'/a.png' is not the name of a file in this folder"),
        ('filename,label\n"a.png,1\n', "labels.csv is not a table of comma-separated values"),
        (b"filename,label\n\xff\xfe.png,1\n", "labels.csv is not text in UTF-8"),
        ("filename,label\na\0.png,1\n", "labels.csv holds a NUL character"),
        ("filename,label\na.png,1_0\n", "labels.csv line 2 (a.png): '1_0' is not a class"),
        ("filename,label\na.png,\u0663\n", "labels.csv line 2 (a.png): '\u0663' is not a class"),
        ("filename,label\n" + "x" * 300 + ",1\n" + "x" * 300 + ",1\n", "was labelled on line 2 already"),
    ],
)
def test_a_labels_csv_that_says_something_else_is_refused(tmp_path, text, sentence):
    (tmp_path / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as refused:
        opened(tmp_path)
    assert sentence in refused.value.message


@pytest.mark.parametrize(
    "names",
    [("0", "207", "999"), ("n01440764", "n02099601", "n15075141"), ("tench", "golden_retriever", "Toilet tissue")],
)
def test_one_folder_a_class(tmp_path, names):
    for number, name in enumerate(names):
        picture(tmp_path / name / "x.PNG", number)
    picture(tmp_path / names[1] / "images" / "deep.jpg")
    (tmp_path / names[0] / "notes.txt").write_text("not an image")
    picture(tmp_path / ".hidden" / "x.png")
    picture(tmp_path / names[0] / "._x.png")
    (tmp_path / "empty").mkdir()
    first, second, third = names
    expected = {f"{first}/x.PNG": 0, f"{second}/images/deep.jpg": 207, f"{second}/x.PNG": 207, f"{third}/x.PNG": 999}
    assert labels_of(opened(tmp_path, 1000)) == expected


def test_folders_that_are_not_classes_are_refused_by_name(tmp_path):
    picture(tmp_path / "tench" / "x.png")
    picture(tmp_path / "tenhc" / "x.png")
    with pytest.raises(DataError, match="tenhc: 'tenhc' is not a class of the model"):
        opened(tmp_path, 1000)


def test_folders_of_two_kinds_are_refused_by_name(tmp_path):
    picture(tmp_path / "0" / "x.png")
    picture(tmp_path / "n01443537" / "x.png")
    with pytest.raises(DataError, match="'n01443537' is a WordNet id and '0' is a class index"):
        opened(tmp_path, 1000)


def test_images_beside_folders_are_refused(tmp_path):
    picture(tmp_path / "0" / "x.png")
    picture(tmp_path / "y.png")
    with pytest.raises(DataError, match=r"holds images such as y.png beside folders of images such as 0"):
        opened(tmp_path)


def test_a_folder_without_labels_says_what_to_do(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match="holds 1 images and no labels") as refused:
        opened(tmp_path)
    assert "labels.csv with the header filename,label" in refused.value.hint


def test_folders_that_are_none_or_empty_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        opened(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is not a folder"):
        opened(picture(tmp_path / "a.png"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        opened(tmp_path / "empty")
    with pytest.raises(DataError, match="holds no images"):
        opened(tmp_path / "empty", need_labels=False)


def test_where_labels_are_not_needed_all_images_are_taken_without(tmp_path):
    for name in ("a.png", "holiday/b.png", "holiday/2024/c.png"):
        picture(tmp_path / name)
    samples = opened(tmp_path, need_labels=False)
    assert labels_of(samples) == {"a.png": None, "holiday/2024/c.png": None, "holiday/b.png": None}
    assert not samples.labelled


# ImageNet's validation images. Which image has which class is made up; the forms of the files are Kaggle's and the
# kit's.


def validation_images(folder, numbers):
    for number in numbers:
        picture(folder / f"ILSVRC2012_val_{number:08}.JPEG", number)
    return folder


def kaggle(path, rows):
    path.write_text("ImageId,PredictionString\n" + "".join(f"{row}\n" for row in rows))


def test_kaggles_solution_is_found_above_the_images(tmp_path):
    folder = validation_images(tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / "val", [1, 2])
    kaggle(
        tmp_path / "LOC_val_solution.csv",
        [
            "ILSVRC2012_val_00000002,n02123045 3 3 298 299 n02123045 1 1 2 2 ",
            "ILSVRC2012_val_00000001,n15075141 85 1 499 272 ",
            "ILSVRC2012_val_00000003,n01440764 1 1 2 2 ",
        ],
    )
    samples = opened(folder, 1000)
    assert labels_of(samples) == {"ILSVRC2012_val_00000001.JPEG": 999, "ILSVRC2012_val_00000002.JPEG": 281}


def development_kit(folder, numbered, ground_truth):
    """meta.mat as the kit has it: a column of structs, leaves first, then synsets that have children."""
    fields = [
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    ]
    synsets = np.empty((len(numbered), 1), dtype=[(field, object) for field in fields])
    for row, (number, wnid) in enumerate(numbered):
        leaf = number <= 1000
        children = np.zeros((0, 1)) if leaf else np.array([[1.0], [2.0]])
        synsets[row, 0] = (
            float(number),
            wnid,
            "some, words",
            "a gloss",
            float(children.size),
            children,
            float(not leaf),
            1300.0 * leaf,
        )
    folder.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(folder / "meta.mat", {"synsets": synsets}, do_compression=True)
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number}\n" for number in ground_truth))


# The kit's own first ids: 1 is the kit fox, 2 the English setter, 3 the Siberian husky. Its 1001 is "entity".
KIT = [(1, "n02119789"), (2, "n02100735"), (3, "n02110185"), (4, "n01440764"), (1001, "n00001740")]


@pytest.mark.parametrize("place", ["ILSVRC2012_devkit_t12/data", "data", "val", "val/data"])
def test_the_development_kits_ids_are_mapped_by_wordnet_id(tmp_path, place):
    """The ids are not the sorted order: kit fox is 278, English setter 212, Siberian husky 250, and id 4 here is class
    0."""
    development_kit(tmp_path / place, KIT, [4, 1, 3, 2])
    folder = validation_images(tmp_path / "val", [1, 2, 3, 4])
    assert list(labels_of(opened(folder, 1000)).values()) == [0, 278, 250, 212]
    names = [imagenet().labels[label] for label in labels_of(opened(folder, 1000)).values()]
    assert names == ["tench", "kit fox", "Siberian husky", "English setter"]


def test_imagenet_without_labels_or_with_others_is_refused(tmp_path):
    folder = validation_images(tmp_path / "a" / "b" / "c" / "d" / "val", [1, 7])
    with pytest.raises(DataError, match="2 of ImageNet's validation images and no labels") as refused:
        opened(folder, 1000)
    assert "LOC_val_solution.csv" in refused.value.hint
    solution = folder / "LOC_val_solution.csv"
    kaggle(solution, ["ILSVRC2012_val_00000001,n01440764 1 1 2 2"])
    with pytest.raises(DataError, match=r"has no label for ILSVRC2012_val_00000007.JPEG"):
        opened(folder, 1000)
    kaggle(solution, ["ILSVRC2012_val_00000001,n01440764 1", "ILSVRC2012_val_00000007,n00000001 1"])
    with pytest.raises(DataError, match=r"\(ILSVRC2012_val_00000007.JPEG\): 'n00000001' is not a class"):
        opened(folder, 1000)
    kaggle(solution, ["ILSVRC2012_val_00000001,n01440764 1", "ILSVRC2012_val_00000007,n01440764 1"])
    with pytest.raises(DataError, match="'n01440764' is not a class of the model: expected a class index"):
        opened(folder, 10)
    picture(folder / "mine.png")
    with pytest.raises(DataError, match=r"mine.png is not one of ImageNet's validation images"):
        opened(folder, 1000)


@pytest.mark.parametrize(
    ("meta", "ground_truth", "sentence"),
    [
        (None, "4\n", "meta.mat cannot be read: No such file or directory"),
        (b"MATLAB 5.0 MAT-file, truncated", "4\n", "meta.mat is not the development kit's table of classes"),
        (b"", "4\n", "meta.mat is not the development kit's table of classes"),
        ("cut", "4\n", "meta.mat is not the development kit's table of classes"),
        ("keep", "4\n17\n", "ground_truth.txt line 2: '17' is not an ILSVRC2012_ID of meta.mat"),
        ("keep", "four\n", "ground_truth.txt line 1: 'four' is not an ILSVRC2012_ID"),
        ("keep", "9" * 5000 + "\n", "is not an ILSVRC2012_ID"),
        ("keep", "4\n", "has no label for ILSVRC2012_val_00000002.JPEG"),
        ("keep", "4\n1001\n", "'n00001740' is not a class"),
    ],
)
def test_a_development_kit_that_says_something_else_is_refused(tmp_path, meta, ground_truth, sentence):
    development_kit(tmp_path / "data", KIT, [])
    (tmp_path / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text(ground_truth)
    if meta is None:
        (tmp_path / "data" / "meta.mat").unlink()
    elif meta != "keep":
        whole = (tmp_path / "data" / "meta.mat").read_bytes()
        (tmp_path / "data" / "meta.mat").write_bytes(whole[: len(whole) // 2] if meta == "cut" else meta)
    with pytest.raises(DataError) as refused:
        opened(validation_images(tmp_path / "val", [1, 2]), 1000)
    assert sentence in refused.value.message


def test_a_table_of_classes_on_which_scipy_dies_is_one_sentence(tmp_path, monkeypatch):
    """Some damaged files end the process inside scipy.io.loadmat (scipy 1.17: SIGSEGV for a flipped byte of an
    uncompressed one)."""
    development_kit(tmp_path / "data", KIT, [4, 4])
    monkeypatch.setattr(validation, "_READ_META", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(DataError, match=r"meta\.mat is not the development kit's table of classes"):
        opened(validation_images(tmp_path / "val", [1, 2]), 1000)


# What is no image


def test_files_that_are_no_images_are_counted_and_litter_is_not(tmp_path):
    for name in ("0/a.png", "1/b.JPE", "1/deep/c.jfif"):
        picture(tmp_path / "x.png").rename(
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True) or tmp_path / name
        )
    for name in ("0/a.heic", "1/a.xml", "1/deep/x.dcm", "only/pages.pdf", "classes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    for name in (
        "README.md",
        "LICENSE",
        "0/Thumbs.db",
        "desktop.ini",
        ".DS_Store",
        "1/._b.JPE",
        "LOC_val_solution.csv",
    ):
        (tmp_path / name).write_text("litter")
    told = ("0/a.heic", "1/a.xml", "1/deep/x.dcm", "classes.txt", "only/pages.pdf")
    samples = opened(tmp_path)
    assert labels_of(samples) == {"0/a.png": 0, "1/b.JPE": 1, "1/deep/c.jfif": 1}
    assert samples.skipped == told and samples.take(1).skipped == told
    assert opened(tmp_path, need_labels=False).skipped == told


WALK = os.walk


def with_an_unreadable_folder(top, onerror=lambda error: None):
    """`os.walk`, with an error as of a folder that is another user's."""
    yield from WALK(top)
    onerror(PermissionError(13, "Permission denied", f"{top}/locked"))


def test_images_that_labels_csv_leaves_out_are_told(tmp_path, monkeypatch):
    folder = labelled(tmp_path, ["a.png,1", "./in/b.png,2"])
    picture(folder / "c.png")
    picture(folder / "in" / "d.png")
    picture(folder / ".thumbnails" / "a.png")
    (folder / "notes.txt").write_text("not asked for")
    monkeypatch.setattr(layouts.os, "walk", with_an_unreadable_folder)
    assert opened(folder).skipped == ("c.png (not in labels.csv)", "in/d.png (not in labels.csv)")


def test_images_below_imagenets_are_told(tmp_path):
    folder = validation_images(tmp_path / "val", [1])
    kaggle(folder / "LOC_val_solution.csv", ["ILSVRC2012_val_00000001,n01440764 1"])
    picture(folder / "more" / "a.png")
    (folder / "ILSVRC2012_val_00000002.JPEG.part").write_text("")
    assert opened(folder, 1000).skipped == ("ILSVRC2012_val_00000002.JPEG.part", "more/a.png")


def test_a_folder_of_other_files_names_them(tmp_path):
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "a.heic").write_text("")
    for need in (True, False):
        with pytest.raises(DataError, match=r"holds no images, only 0/a\.heic(\n|$)"):
            opened(tmp_path, need_labels=need)


# Real images


@pytest.mark.shared
def test_imagenet_photographs(shared):
    samples = opened(shared("data/imagenet-val-300"), 1000)
    assert (samples.name, len(samples), samples.labelled) == ("imagenet-val-300", 300, True)
    assert samples.samples[0] == Sample(
        "ILSVRC2012_val_00000347.JPEG", 472, ImageFile(shared("data/imagenet-val-300") / "ILSVRC2012_val_00000347.JPEG")
    )
    (batch,) = iterate(samples.take(8), Preprocess(), batch_size=8)
    assert batch.images.shape == (8, 3, 224, 224)
    assert batch.errors == {}


def encoded(path, count):
    with np.load(path) as arrays:
        blob, offsets, labels, classes = (arrays[key] for key in ("blob", "offsets", "labels", "classes"))
        wnids = arrays.get("wnids")
        images = [blob[offsets[i] : offsets[i + 1]].tobytes() for i in range(count)]
    return images, labels[:count], classes, wnids


@pytest.mark.shared
def test_tiny_imagenet_by_wordnet_id(shared, tmp_path):
    """Its own table of names, made by others, agrees with ours for nearly all of its classes."""
    images, labels, classes, wnids = encoded(shared("data/tiny-imagenet-100-val.npz"), 60)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = tmp_path / wnids[label] / f"{number:03}.webp"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(image)
    samples = opened(tmp_path, 1000)
    for sample in samples.samples:
        assert imagenet().wnids[sample.label] == sample.file.split("/")[0]
    ours = dict(zip(*imagenet(), strict=True))
    same = sum(ours[wnid].casefold() == name.casefold() for wnid, name in zip(wnids, classes, strict=True))
    assert same > 90
    batches = list(iterate(samples, PREP, batch_size=32))
    assert sum(len(batch.indices) for batch in batches) == 60


@pytest.mark.shared
def test_cifar_by_label(shared, tmp_path):
    images, labels, classes, _ = encoded(shared("data/cifar10-test.npz"), 20)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        with Image.open(io.BytesIO(image)) as opened_image:
            suffix = opened_image.format.lower()
        path = tmp_path / classes[label] / f"{number}.{suffix}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(image)
    samples = opened(tmp_path, 10, tuple(classes.tolist()))
    assert [sample.label for sample in samples.samples] == sorted(labels.tolist())
    assert all(not batch.errors for batch in iterate(samples, PREP, batch_size=8))
