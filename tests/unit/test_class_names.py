"""Names of classes that only a set knows, folders that are parts of a set, columns of labels, and sets without any."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import stm
from stm.commands.compress import compress
from stm.commands.eval import evaluate
from stm.commands.predict import predict
from stm.data.decode import decode
from stm.data.labels import imagenet
from stm.data.open import open_chosen
from stm.errors import DataError, UsageError
from stm.evaluations import OfSet
from stm.model.initialize import initialize
from stm.model.vim import ViM
from stm.options import EvalOptions, MergeOptions, SetOptions
from tests.pictures import labels_of, make_config, opened, picture

BUSI = ("benign", "malignant", "normal")


def folders(root, *names):
    for name in names:
        picture(root / name / "a b (1).png")
    return root


def test_sorted_names_are_the_classes_of_a_model_without_names(tmp_path):
    samples = opened(folders(tmp_path / "set", *BUSI), 3)
    assert list(labels_of(samples).values()) == [0, 1, 2]
    assert samples.sorted_names == BUSI
    (note,) = OfSet(**samples.of_set).skipped_notes
    assert note.endswith("taken in sorted order: 0 benign, 1 malignant, 2 normal")


def test_names_of_the_model_come_before_the_order(tmp_path):
    samples = opened(folders(tmp_path, *BUSI), 3, ("normal", "Benign", "malignant"))
    assert list(labels_of(samples).values()) == [1, 2, 0]
    assert samples.sorted_names == ()


@pytest.mark.parametrize("names", [("benign", "normal"), ("1", "2", "3"), ("a", "b", "c", "d")])
def test_another_number_of_folders_and_numbers_stay_refused(tmp_path, names):
    with pytest.raises(DataError):
        opened(folders(tmp_path, *names), 3)


@pytest.mark.parametrize("classes", [2, 3, 1000])
def test_a_root_of_train_and_val_names_the_part_to_give(tmp_path, classes):
    folders(tmp_path / "set", "train/cat", "train/dog", "val/cat", "val/dog")
    with pytest.raises(DataError, match="holds the parts of a set, train") as refused:
        opened(tmp_path / "set", classes)
    assert str(refused.value.hint) == f"name one part: --data {tmp_path / 'set' / 'val'}, or --split val"
    with pytest.raises(UsageError, match="has no part test, only train, val"):
        opened(tmp_path / "set", classes, how=SetOptions(split="test"))


def test_the_part_of_a_root_is_the_set_of_its_own_folder(tmp_path):
    folders(tmp_path, "train/cat", "train/dog", "Val/cat", "Val/dog", "Val/eel")
    for split in ("val", "Val", "validation"):
        assert opened(tmp_path, 3, how=SetOptions(split=split)) == opened(tmp_path / "Val", 3)
    for data in (None, "imagenet-v2"):
        with pytest.raises(UsageError, match="--split was given, and"):
            opened(data, how=SetOptions(split="val"))
    shard(tmp_path / "train-0.parquet", label=[1, 1])
    shard(tmp_path / "validation-0.parquet", label=[2, 0])
    samples = opened(str(tmp_path / "*.parquet"), how=SetOptions(split="val"))
    assert list(labels_of(samples).values()) == [2, 0]
    with pytest.raises(UsageError, match="has no split test, only train, validation"):
        opened(str(tmp_path / "*.parquet"), how=SetOptions(split="test"))


def shard(path, **columns):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7)).save(buffer, "PNG")
    rows = len(next(iter(columns.values()))) if columns else 2
    pq.write_table(pa.table({"image": [buffer.getvalue()] * rows, **columns}), path)
    return path


@pytest.mark.parametrize("name", ["cls", "class_label", "fine_label"])
def test_a_column_of_labels_under_a_usual_name(tmp_path, name):
    path = shard(tmp_path / "a.parquet", **{name: [2, 0]})
    assert list(labels_of(opened(str(path))).values()) == [2, 0]


def test_the_query_chooses_among_columns(tmp_path):
    path = shard(tmp_path / "a.parquet", fine_label=[2, 0], coarse_label=[1, 1], breed=[4, 5])
    assert list(labels_of(opened(f"{path}?label=coarse_label")).values()) == [1, 1]
    assert list(labels_of(opened(f"{path}?label=breed")).values()) == [4, 5]
    with pytest.raises(DataError, match="expected one called no"):
        opened(f"{path}?label=no")


def test_rows_without_a_label_are_left_out_and_counted(tmp_path):
    """A whole row group of them, too, and a whole shard."""
    table = shard(tmp_path / "a.parquet", label=[-1, -1, 2, None, 0])
    pq.write_table(pq.read_table(table), table, row_group_size=2)
    shard(tmp_path / "b.parquet", label=[None, None])
    samples = opened(str(tmp_path / "?.parquet"))
    assert labels_of(samples) == {"a.parquet[2]": 2, "a.parquet[4]": 0}
    assert all(isinstance(decode([sample], make_config().preprocessing)[0], bytes) for sample in samples.samples)
    assert "5 more images have no label, and are in no number" in OfSet(**samples.of_set).skipped_notes
    with pytest.raises(DataError, match=r"b\.parquet holds 2 images and no labels"):
        opened(str(tmp_path / "b.parquet"))


def test_the_names_of_parquets_metadata(tmp_path):
    features = {"label": {"_type": "ClassLabel", "names": [*BUSI]}}
    path = shard(tmp_path / "a.parquet", label=[2, 0])
    described = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(pq.read_table(path).replace_schema_metadata(described), path)
    samples = opened(str(path), 3)
    assert samples.own_names == BUSI
    assert OfSet(**samples.of_set).skipped_notes[0].endswith("were taken: 0 benign, 1 malignant, 2 normal")
    assert opened(str(path), 3, ("Normal", "malignant", "benign")).own_names == ()


def test_names_in_shards_are_the_classes_of_a_model_without_names(tmp_path):
    shard(tmp_path / "a.parquet", label=["eel", "cat", "dog", None])
    samples = opened(str(tmp_path / "a.parquet"), 3)
    assert (list(labels_of(samples).values()), samples.sorted_names) == ([2, 0, 1], ("cat", "dog", "eel"))
    shard(tmp_path / "b.parquet", label=["cat", "dog", "fox"])
    with pytest.raises(DataError, match="its shards do not name the same classes"):
        opened(str(tmp_path / "?.parquet"), 3)
    assert len(opened(str(tmp_path / "?.parquet"), 4, ("cat", "dog", "eel", "fox"))) == 6


def test_truths_and_lists_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(DataError, match="true and false tell two classes, and the model has 10"):
        opened(str(shard(tmp_path / "a.parquet", label=[True, False])))
    with pytest.raises(DataError, match="expected one class for each image"):
        opened(str(shard(tmp_path / "b.parquet", label=[[0], [1, 2]])))
    assert list(labels_of(opened(str(tmp_path / "a.parquet"), 2)).values()) == [1, 0]


def tar(path, json=None):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7)).save(buffer, "PNG")
    with tarfile.open(path, "w") as archive:
        for name, data in (("a.png", buffer.getvalue()), ("a.json", json)):
            if data is not None:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


def test_the_query_chooses_a_key_of_a_tar_files_json(tmp_path):
    path = tar(tmp_path / "a.tar", b'{"label": 1, "breed": 7}')
    assert list(labels_of(opened(str(path))).values()) == [1]
    assert list(labels_of(opened(f"{path}?label=breed")).values()) == [7]


def test_sets_without_labels_are_taken_if_none_are_needed(tmp_path):
    picture(tmp_path / "flat" / "a.png")
    picture(tmp_path / "imagenet" / "ILSVRC2012_val_00000001.JPEG")
    plain = [
        tmp_path / "flat",
        tmp_path / "imagenet",
        shard(tmp_path / "none.parquet"),
        shard(tmp_path / "test.parquet", label=[-1, -1]),
        tar(tmp_path / "a.tar"),
    ]
    for path in plain:
        assert not open_chosen(EvalOptions(data=str(path)), make_config(), need_labels=False).labelled
        with pytest.raises(DataError):
            open_chosen(EvalOptions(data=str(path)), make_config())


def test_labels_that_do_not_fit_are_refused_also_if_none_are_needed(tmp_path):
    with pytest.raises(DataError, match="not a class of the model"):
        open_chosen(EvalOptions(data=str(folders(tmp_path, "cat", "dog"))), make_config(), need_labels=False)


def test_the_names_of_a_set_are_stored_and_shown(tmp_path):
    data, dense, small = folders(tmp_path / "set", *BUSI), tmp_path / "dense", tmp_path / "small"
    initialize(ViM(make_config(3))).save_pretrained(dense)
    merge = MergeOptions(saving=0.1, schedule="border")
    report = compress(str(dense), merge=merge, images=EvalOptions(data=str(data)), out=small)
    assert report.eval is not None and report.eval.sorted_names == BUSI
    assert stm.load(str(small)).config.label_names == BUSI
    predictions = predict(str(small), [data / "benign"]).predictions  # a folder stands for its images
    assert [p.file for p in predictions] == [str(data / "benign" / "a b (1).png")]
    assert {guess.label for guess in predictions[0].top5} == {*BUSI}
    # The folder's names now tell the classes, also if they are fewer.
    assert evaluate(str(small), images=EvalOptions(data=str(folders(tmp_path / "one", "normal")))).n == 1


def test_eval_beside_the_dense_model_needs_no_labels(tmp_path):
    picture(tmp_path / "flat" / "a.png")
    initialize(ViM(make_config(3))).save_pretrained(tmp_path / "dense")
    merge = MergeOptions(saving=0.1, schedule="border")
    compress(str(tmp_path / "dense"), merge=merge, eval=False, out=tmp_path / "small")
    images = EvalOptions(data=str(tmp_path / "flat"))
    report = evaluate(str(tmp_path / "small"), images=images)
    assert report.top1 is None and report.agreement is not None
    with pytest.raises(DataError, match="no labels"):
        evaluate(str(tmp_path / "dense"), images=images)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "image,class\na.png,2\nb.png,0\n"),
        ("labels.csv", "id,breed,label\na,x,2\nb,y,0\n"),
        ("labels.csv", "File Name;Label\na.png;2\nb.png;0\n"),
        ("labels.tsv", "img\tfine_label\na.png\t2\nb.png\t0\n"),
        ("metadata.csv", "file_name,label\na.png,2\nb.png,0\n"),
        ("metadata.jsonl", '{"file_name": "a.png", "label": 2}\n\n{"file_name": "b.png", "label": 0}\n'),
    ],
)
def test_a_table_under_any_header(tmp_path, name, text):
    for file in ("a.png", "b.png"):
        picture(tmp_path / file)
    (tmp_path / name).write_text(text)
    assert labels_of(opened(tmp_path)) == {"a.png": 2, "b.png": 0}


COLUMNS = SetOptions(image_column="scan", label_column="finding")


def test_the_columns_that_are_named(tmp_path):
    folders(tmp_path, "cat", "dog")
    (tmp_path / "metadata.csv").write_text("scan,finding,label\ncat/a b (1).png,2,x\ndog/a b (1).png,0,y\n")
    assert list(labels_of(opened(tmp_path, how=COLUMNS)).values()) == [2, 0]
    with pytest.raises(DataError, match="has no column 'no', only scan, finding, label"):
        opened(tmp_path, how=SetOptions(label_column="no"))
    (tmp_path / "metadata.csv").rename(table := tmp_path / "ham.csv")
    assert opened(table, how=COLUMNS) == opened(str(table), how=COLUMNS)
    assert [*labels_of(opened(table, need_labels=False, how=COLUMNS)).values()] == [None, None]
    with pytest.raises(DataError, match=r"ham.csv line 2 \(cat/a b \(1\).png\): 'x' is not a class"):
        opened(table)  # the values of `scan` are the files, and the header says `label`
    with pytest.raises(DataError, match="has no table with a column 'scan'") as refused:
        opened(tmp_path, how=COLUMNS)
    assert refused.value.hint == f"name the table: --data {tmp_path}/FILE.csv"
    path = shard(tmp_path / "a.parquet", finding=[2, 0], scan=[b"x", b"x"])
    samples = opened(str(path), how=SetOptions(image_column="image", label_column="finding"))
    assert list(labels_of(samples).values()) == [2, 0]
    with pytest.raises(DataError, match="has 2 columns of images") as refused:
        opened(str(path))
    assert refused.value.hint == "name the column: --image-column image"


IMAGES = [f"ILSVRC2012_val_0000000{number}.JPEG" for number in (1, 2, 4)]


@pytest.mark.parametrize(
    ("place", "name", "text"),
    [
        ("val", "val.txt", "".join(f"{image} {label}\n" for image, label in zip(IMAGES, (65, 0, 9), strict=True))),
        ("", "val.txt", "".join(f"val/{image} {label}\n" for image, label in zip(IMAGES, (65, 0, 9), strict=True))),
        ("val", "labels.txt", "65\n0\n3\n9\n"),
        ("", "imagenet_2012_validation_synset_labels.txt", "n01751748\nn01440764\nn01484850\nn01518878\n"),
    ],
)
def test_lists_beside_imagenets_validation_images(tmp_path, place, name, text):
    for image in IMAGES:
        picture(tmp_path / "val" / image)
    (tmp_path / "val" / "about.txt").write_text("some words that\nlabel nothing\n")
    (tmp_path / "synsets.txt").write_text("".join(f"{wnid}\n" for wnid in imagenet().wnids))
    (tmp_path / place / name).write_text(text)
    samples = opened(tmp_path / "val", 1000)
    assert list(labels_of(samples).values()) == [65, 0, 9]
    assert samples.skipped == ("about.txt",)


def test_a_list_of_names_and_classes_beside_any_images(tmp_path):
    for name in ("a b.png", "c.png", "d.png"):
        picture(tmp_path / name)
    (tmp_path / "train.txt").write_text("a b.png 2\n./c.png 0\n")
    samples = opened(tmp_path)
    assert labels_of(samples) == {"a b.png": 2, "c.png": 0}
    assert samples.skipped == ("d.png (not in train.txt)",)


def test_captions_are_no_labels(tmp_path):
    folders(tmp_path, *BUSI)
    (tmp_path / "metadata.csv").write_text("file_name,text\nbenign/a b (1).png,a scan\n")
    assert opened(tmp_path, 3).sorted_names == BUSI


@pytest.mark.parametrize(
    "text",
    ["[1]\n", "7\n", "{\n", '{"file_name": "a\\u0000", "label": 1}\n', '{"file_name": "a.png", "label": true}\n'],
)
def test_json_lines_that_are_no_labels_are_refused_by_their_line(tmp_path, text):
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"metadata\.jsonl line 1"):
        opened(tmp_path)


def test_tiny_imagenets_validation_images(tmp_path):
    picture(tmp_path / "images" / "val_0.JPEG")
    (tmp_path / "val_annotations.txt").write_text("val_0.JPEG\tn01440764\t0\t32\t44\t62\n")
    assert labels_of(opened(tmp_path, 1000)) == {"images/val_0.JPEG": 0}
