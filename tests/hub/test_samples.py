"""Sample sets from the Hub: archives and parquet, through the real client, and what is not trusted in them."""

import gzip
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from PIL import Image

from stm.config import Config, ModelConfig, Preprocess, dense_schedule
from stm.data.hub_sets import choose_shards, label_indices, split_of
from stm.data.unpack import Limits, unpack
from stm.errors import DataError, UsageError
from stm.hub.aliases import ARCHIVES, read_set_name
from tests.hub.conftest import MINI, Stm
from tests.hub.server import Fault, Hub, Repo

V2 = ARCHIVES["imagenet-v2"]
MODEL = ModelConfig(image_size=4, patch=2, stride=2, d_model=2, depth=2, d_state=2, dt_rank=1)
CONFIG = Config(model=MODEL, num_classes=3, schedule=dense_schedule(MODEL), preprocessing=Preprocess(resize=4, crop=4))


def picture(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (80, 80), (shade % 256, 255 - shade % 256, 90)).save(stream, "PNG")
    return stream.getvalue()


def archive(files: dict[str, bytes] | Sequence[tarfile.TarInfo]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for each in files:
            info = tarfile.TarInfo(each) if isinstance(each, str) else each
            body = files[each] if isinstance(files, dict) else b""
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return stream.getvalue()


# --- imagenet-v2
# ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def v2(hub: Hub) -> Repo:
    """The real one's layout, with 10 classes instead of 1000."""
    files = {
        f"imagenetv2-matched-frequency-format-val/{index}/{name}.jpeg": picture(20 * index)
        for index in range(10)
        for name in "ab"
    }
    hub.repos[f"datasets/{V2.repo}"] = Repo({V2.file: archive(files), "README.md": b"# V2\n"})
    return hub.repos[f"datasets/{V2.repo}"]


def test_the_alias_is_downloaded_and_unpacked_once(hub: Hub, v2: Repo, stm: Stm, home: Path) -> None:
    run = stm("eval", MINI, "--data", "imagenet-v2", "--json")
    report = json.loads(run.out)
    commit = v2.refs["main"]
    assert (report["n"], report["failed"], report["data"]) == (20, 0, f"imagenet-v2@{commit}"), run.err
    assert report["top1"] is not None
    (folder,) = (home / "assets").rglob("imagenetv2-matched-frequency-format-val")
    assert sorted(path.name for path in folder.iterdir()) == [str(index) for index in range(10)]
    stamp = folder.stat().st_mtime_ns
    assert json.loads(stm("eval", MINI, "--data", f"imagenet-v2@{commit}", "--json").out)["top1"] == report["top1"]
    assert json.loads(stm("eval", MINI, "--data", "imagenet-v2", "--json", offline=True).out)["top1"] == report["top1"]
    assert folder.stat().st_mtime_ns == stamp
    assert len([seen for seen in hub.seen if seen.method == "GET" and seen.path.endswith(V2.file)]) == 1


def test_offline_without_it(hub: Hub, stm: Stm) -> None:
    run = stm("eval", MINI, "--data", "imagenet-v2", offline=True)
    assert run.code == 1 and f"{V2.file} of {V2.repo} is not in the local cache" in run.err and hub.seen == []


def test_a_cut_and_a_damaged_archive(hub: Hub, v2: Repo, stm: Stm, home: Path) -> None:
    hub.faults = [Fault("GET", V2.file, flip=True)]
    run = stm("eval", MINI, "--data", "imagenet-v2")
    assert run.code == 1 and "is not what the Hub says it is" in run.err
    hub.faults = [Fault("GET", V2.file, cut=200)]
    assert stm("eval", MINI, "--data", "imagenet-v2", "--quiet").code == 0
    assert not list(home.rglob("*.incomplete"))


def test_it_calibrates_too(v2: Repo, stm: Stm, tmp_path: Path) -> None:
    words = ("--weights", "hsp", "--hsp", "static", "--calibration", "imagenet-v2", "--no-eval", "--out", "small")
    assert stm("compress", MINI, *words).code == 0
    calibration = json.loads((tmp_path / "small/config.json").read_text())["recipe"]["calibration"]
    assert (calibration["data"], calibration["n"]) == (f"imagenet-v2@{v2.refs['main']}", 20)


def test_a_measurement_on_a_set_of_the_hub_is_told_as_the_hub_reads_it(v2: Repo, stm: Stm, tmp_path: Path) -> None:
    import yaml
    from huggingface_hub import ModelCard, parse_eval_result_entries

    run = stm("compress", MINI, "--data", "imagenet-v2", "--out", "small")
    assert run.code == 0, run.err
    top1 = json.loads((tmp_path / "small/config.json").read_text())["measured"][0]["top1"]
    (entry,) = parse_eval_result_entries(yaml.safe_load((tmp_path / "small/.eval_results/stm.yaml").read_text()))
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision) == (V2.repo, V2.split, v2.refs["main"])
    assert entry.value == pytest.approx(top1, abs=1e-6) and "of 20 images, 95% interval" in (entry.notes or "")
    result = ModelCard.load(tmp_path / "small/README.md").data.eval_results[0]
    assert (result.dataset_type, result.dataset_name) == (V2.repo, "imagenet-v2")
    assert (result.dataset_split, result.dataset_revision) == (V2.split, v2.refs["main"])
    again = stm("compress", MINI, "--data", "imagenet-v2", "--out", "small", "--force")
    assert again.code == 0, again.err
    assert stm("info", "small").code == 0


# --- archives that are not trusted
# ------------------------------------------------------------------------------------------------


def written(tmp_path: Path, data: bytes) -> Path:
    (tmp_path / "set.tar.gz").write_bytes(data)
    return tmp_path / "set.tar.gz"


def link(kind: bytes, name: str = "a/link", to: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


REFUSED = {
    "a file above": (archive({"../out.png": b"x"}), "outside the destination"),
    "a file above, through a folder": (archive({"a/../../out.png": b"x"}), "outside the destination"),
    "a symbolic link": (archive([link(tarfile.SYMTYPE)]), "a/link, which is neither a file nor a folder"),
    "a hard link": (archive([link(tarfile.LNKTYPE, to="a/b")]), "neither a file nor a folder"),
    "a device": (archive([link(tarfile.CHRTYPE)]), "neither a file nor a folder"),
    "a pipe": (archive([link(tarfile.FIFOTYPE)]), "neither a file nor a folder"),
    "too many files": (archive({f"{n}.png": b"x" for n in range(11)}), "more than 10 files or 10,000 bytes"),
    "too many bytes": (
        archive({f"{n}.png": b"x" * 900 for n in range(10)} | {"big.png": b"x" * 1001}),
        "more than 10 files",
    ),
    "a file too large": (archive({"a.png": b"x" * 1001}), "more than 10 files or 10,000 bytes"),
    "cut short": (archive({"a.png": b"x" * 100})[:-20], "cannot be unpacked"),
    "text": (b"no archive", "cannot be unpacked"),
    "gzipped text": (gzip.compress(b"no archive" * 100), "cannot be unpacked"),
    "nothing": (b"", "cannot be unpacked"),
}


# Named, since bytes as names hold gzip's clock, and processes that collect a second apart would name other tests.
@pytest.mark.parametrize(("data", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_archives_that_are_not_unpacked(tmp_path: Path, data: bytes, said: str) -> None:
    place = tmp_path / "cache" / "set"
    with pytest.raises(DataError) as caught:
        unpack(written(tmp_path, data), place, limits=Limits(files=10, total=10_000, one=1000))
    assert said in caught.value.message
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["set.lock", "set.tar.gz"]
    assert not place.exists()


def test_absolute_names_come_inside(tmp_path: Path) -> None:
    folder = unpack(written(tmp_path, archive({"/etc/a.png": b"x"})), tmp_path / "set")
    assert [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()] == ["etc/a.png"]


def test_a_header_does_not_fill_the_memory(tmp_path: Path) -> None:
    """A name of 2 GB, of zeros that compress to nothing: refused by what the header claims."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2 << 30
    data = gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
    with pytest.raises(DataError, match=r"a header claims 2,147,483,648 bytes"):
        unpack(written(tmp_path, data), tmp_path / "set")


def test_nobody_waits_for_ever_for_another_that_unpacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits while files come, and no longer."""
    monkeypatch.setattr("stm.data.unpack._PATIENCE", 0.2)
    (tmp_path / "set.tar.gz").write_bytes(archive({"a.png": b"a"}))
    new, waits = tmp_path / "set.incomplete", list[int]()

    def seen(self: Path, pattern: str) -> list[int]:
        waits.append(1)
        assert self == new
        return [0] * min(len(waits), 9)

    with FileLock(tmp_path / "set.lock"):
        monkeypatch.setattr(Path, "rglob", seen)
        with pytest.raises(
            DataError, match=r"set\.tar\.gz is being unpacked by .*process.*, which has made no file"
        ) as caught:
            unpack(tmp_path / "set.tar.gz", tmp_path / "set")
    assert len(waits) >= 12 and "set.lock" in str(caught.value.hint)
    assert (unpack(tmp_path / "set.tar.gz", tmp_path / "set") / "a.png").read_bytes() == b"a"


def test_what_a_killed_run_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / "set.incomplete/half").mkdir(parents=True)
    folder = unpack(written(tmp_path, archive({"0/a.png": b"x"})), tmp_path / "set")
    assert [path.name for path in folder.iterdir()] == ["0"]
    assert not (tmp_path / "set.incomplete").exists()


# --- parquet
# --------------------------------------------------------------------------------------------------------------------


def parquet(rows: Sequence[tuple[bytes | None, Any]], names: Sequence[str] | None = None, plain: bool = False) -> bytes:
    """As the `datasets` library writes it: a struct of bytes and a path, and its own notes in the schema; 3 rows a
    group."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = [image if plain else {"bytes": image, "path": None} for image, _ in rows]
    kind = pa.binary() if plain else pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {"image": pa.array(images, kind), "label": pa.array([label for _, label in rows])}
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    features["label"] = {"_type": "ClassLabel", "names": list(names)} if names else {"_type": "Value", "dtype": "int64"}
    notes = {"huggingface": json.dumps({"info": {"features": features}})}
    stream = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata(None if plain else notes), stream, row_group_size=3)
    return stream.getvalue()


PICTURES = [(picture(20 * index), index % 10) for index in range(14)]


def test_a_split_in_parquet(hub: Hub, stm: Stm, tmp_path: Path) -> None:
    shards = {f"data/test-{n:05}-of-00002.parquet": parquet(PICTURES[7 * n : 7 * n + 7]) for n in range(2)}
    hub.repos["datasets/owner/set"] = Repo(
        shards | {"data/train-00000-of-00001.parquet": parquet(PICTURES), "README.md": b"# Set\n"}
    )
    commit = hub.repos["datasets/owner/set"].refs["main"]
    run = stm("eval", MINI, "--data", "hf:owner/set:test", "--records", "records.csv", "--json")
    report = json.loads(run.out)
    assert (report["n"], report["failed"], report["data"]) == (14, 0, f"hf:owner/set@{commit}:test"), run.err
    for place, (image, _) in enumerate(PICTURES):
        (tmp_path / "set" / str(place % 10)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / str(place % 10) / f"{place}.png").write_bytes(image)
    assert json.loads(stm("eval", MINI, "--data", "set", "--json").out)["top1"] == report["top1"], (
        "the same images as files"
    )
    assert (
        stm("eval", MINI, "--data", "hf:owner/set:test", "--limit", "4", "--workers", "2", "--quiet", offline=True).code
        == 0
    )
    run = stm("eval", MINI, "--data", "hf:owner/set")
    assert run.code == 2 and "hf:owner/set has the splits test, train" in run.err and "hf:owner/set:train" in run.err
    run = stm("eval", MINI, "--data", "hf:owner/set:validation")
    assert run.code == 2 and "has no split validation, only test, train" in run.err


def test_half_a_split_in_the_cache_is_not_a_split(hub: Hub, stm: Stm) -> None:
    hub.repos["datasets/owner/set"] = Repo({f"test-{n:05}-of-00002.parquet": parquet(PICTURES) for n in range(2)})
    hub.faults = [Fault("HEAD", "test-00001", 403)]
    assert stm("eval", MINI, "--data", "hf:owner/set").code == 1
    run = stm("eval", MINI, "--data", "hf:owner/set", offline=True)
    assert run.code == 1 and "hf:owner/set:test has 2 files, and 1 of them are here" in run.err
    assert stm("eval", MINI, "--data", "hf:owner/set", "--quiet").code == 0


def test_classes_by_name_and_images_that_are_not_there(hub: Hub, stm: Stm) -> None:
    names = [str(9 - index) for index in range(10)]
    rows = [*PICTURES, (None, 0), (b"no image", 0)]
    hub.repos["datasets/owner/set"] = Repo(
        {"train.parquet": parquet([(image, 9 - label) for image, label in rows], names[:10])}
    )
    report = json.loads(stm("eval", MINI, "--data", "hf:owner/set", "--json").out)
    assert (report["n"], report["failed"]) == (14, 2)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"images.zip": b""}, "holds no parquet files, only images.zip"),
        ({"a/test.parquet": b"", "b/test.parquet": b""}, "is in several folders, a, b"),
        ({"test.parquet": b"no parquet"}, "test.parquet cannot be read as parquet"),
        ({"test.parquet": ("labels", [(b"x", -1)])}, "holds 1 image and no labels"),
        ({"test.parquet": ("labels", [(b"x", 10)])}, "10 is not one of the 10 classes"),
        ({"test.parquet": ("labels", [(b"x", None)])}, "holds 1 image and no labels"),
        ({"test.parquet": ("labels", [(b"x", "cat")])}, "'cat' is not a class of the model"),
        ({"test.parquet": ("labels", [])}, "holds no images"),
    ],
)
def test_sets_that_do_not_fit(hub: Hub, stm: Stm, files: dict[str, Any], said: str) -> None:
    bodies = {name: parquet(body[1], plain=True) if isinstance(body, tuple) else body for name, body in files.items()}
    hub.repos["datasets/owner/set"] = Repo(bodies)
    run = stm("eval", MINI, "--data", "hf:owner/set")
    assert run.code == 1 and said in run.err, run.err


def test_names_of_sets(hub: Hub, stm: Stm) -> None:
    assert read_set_name("hf:a/b@refs/convert/parquet:test") == read_set_name("hf:a/b@refs/convert/parquet:test")
    found = read_set_name("hf:a/b@refs/convert/parquet:test")
    assert found is not None and (found.repo, found.revision, found.split, found.alias) == (
        "a/b",
        "refs/convert/parquet",
        "test",
        None,
    )
    assert read_set_name("digits-heldout") is None
    for bad in ("hf:", "hf:owner", "hf:a/b/c", "hf:a/b:", "hf://a/b"):
        run = stm("eval", MINI, "--data", bad)
        assert run.code == 2 and "is no name of a sample set on the Hub" in run.err, bad
    run = stm("eval", MINI, "--data", "hf:owner/none")
    assert run.code == 1 and "owner/none was not found on the Hub" in run.err


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("data/test-00000-of-00002.parquet", "test"),
        ("data/validation-00000-of-00014-0123456789abcdef.parquet", "validation"),
        ("default/val/0000.parquet", "val"),
        ("test.parquet", "test"),
        ("cats_test.parquet", "test"),
        ("everything.parquet", "train"),
        ("data/my_split-00000-of-00001.parquet", "my_split"),
    ],
)
def test_splits_by_the_names_of_files(file: str, split: str) -> None:
    assert split_of(file) == split


def indices(labels: list[Any], *more: Any) -> list[int]:
    return list(label_indices(dict(enumerate(labels)), *more).values())


def test_labels_to_classes() -> None:
    named = Config(
        model=MODEL,
        num_classes=3,
        schedule=dense_schedule(MODEL),
        preprocessing=CONFIG.preprocessing,
        label_names=("cat", "dog", "cow"),
    )
    assert indices([2, 0], None, CONFIG, "x") == [2, 0]
    assert indices([2, 0], ["a", "b", "c"], CONFIG, "x") == [2, 0], "nobody knows better"
    assert indices([2, 0], ["dog", "cow", "cat"], named, "x") == [0, 1]
    assert indices([1, 0], ["Dog", "cat"], named, "x") == [0, 1], "a part of the classes"
    assert indices(["dog", "cat"], None, named, "x") == [1, 0]
    with pytest.raises(DataError, match=r"'horse' is not a class of the model"):
        indices([0], ["dog", "cow", "horse"], named, "x")
    assert choose_shards("hf:a/b", ["default/test/0000.parquet", "default/test/0001.parquet"], None)[0] == "test"
    with pytest.raises(UsageError):
        choose_shards("hf:a/b", ["train.parquet", "test.parquet"], None)
