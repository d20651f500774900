"""Sets that are read where they are. What is expected is what the same images give as files, or the `datasets` library
as a stream."""

import io
import json
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from stm.data.images import ParquetImage, TarImage
from stm.data.ranges import HubFile
from stm.data.streams import open_stream
from stm.errors import DataError, HubError
from tests.hang import HANG
from tests.hub.conftest import MINI, Stm, clean_environment
from tests.hub.server import Fault, Hub, Repo
from tests.hub.test_samples import CONFIG, PICTURES, parquet, picture


def shard(samples: list[tuple[str, dict[str, bytes]]], mode: str = "w:") -> bytes:
    """As `webdataset` writes it: the parts of a sample one after the other."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:
        for key, parts in samples:
            for kind, body in parts.items():
                info = tarfile.TarInfo(f"{key}.{kind}")
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
    return stream.getvalue()


SHARDS = {
    f"val-{n:02}.tar": shard(
        [
            (f"n/{i:03}", {"png": image, "cls": str(label).encode()})
            for i, (image, label) in enumerate(PICTURES)
            if i // 7 == n
        ]
    )
    for n in range(2)
}
ROWS = {f"data/val-{n:05}-of-00002.parquet": parquet(PICTURES[7 * n : 7 * n + 7]) for n in range(2)}


@pytest.fixture
def files(stm: Stm, tmp_path: Path) -> dict[str, Any]:
    """What the same images give as files."""
    for place, (image, label) in enumerate(PICTURES):
        (tmp_path / "files" / str(label)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / str(label) / f"{place}.png").write_bytes(image)
    found: dict[str, Any] = json.loads(stm("eval", MINI, "--data", "files", "--json").out)
    return found


@pytest.mark.parametrize("body", [ROWS, SHARDS], ids=["parquet", "tar"])
def test_a_stream_of_the_hub_is_the_set_and_leaves_nothing_on_disk(
    hub: Hub, stm: Stm, home: Path, files: dict[str, Any], body: dict[str, bytes]
) -> None:
    hub.repos["datasets/owner/set"] = Repo({**body, "README.md": b"# Set\n"})
    run = stm(
        "eval", MINI, "--data", "stream:hf:owner/set:val", "--batch-size", "4", "--records", "records.csv", "--json"
    )
    report = json.loads(run.out)
    commit = hub.repos["datasets/owner/set"].refs["main"]
    assert (report["n"], report["failed"], report["data"]) == (14, 0, f"hf:owner/set@{commit}:val"), run.err
    assert (report["top1"], report["top5"]) == (files["top1"], files["top5"])
    assert [path for path in home.rglob("*") if path.is_file() and path.suffix in (".parquet", ".tar", ".png")] == []
    assert all("range" in seen.headers for seen in hub.seen if seen.path.endswith((".parquet", ".tar"))), (
        "never a whole file"
    )
    less = stm("eval", MINI, "--data", "stream:hf:owner/set:val", "--limit", "5", "--workers", "2", "--json")
    assert json.loads(less.out)["n"] == 5


def test_a_line_that_fails_stops_the_run_and_is_not_a_broken_image(hub: Hub, stm: Stm, tmp_path: Path) -> None:
    hub.repos["datasets/owner/set"] = Repo(SHARDS)
    command = ("eval", MINI, "--data", "stream:hf:owner/set", "--batch-size", "4", "--records", "records.csv", "--json")

    def refuse() -> None:
        hub.faults += [Fault("GET", "val-00.tar") for _ in range(6)] + [Fault("GET", "val-00.tar", 403)]

    hub.faults = [
        Fault("GET", "val-01.tar", call=refuse)
    ]  # when the last shard is looked through, six images can still be had
    run = stm(*command)
    assert run.code == 1 and "(403)" in run.err and run.out == "", run.err
    assert len((tmp_path / "records.csv").read_text().splitlines()) == 1 + 4
    before = len(hub.seen)
    assert json.loads(stm(*command).out)["n"] == 14
    images = [seen for seen in hub.seen[before:] if seen.path.endswith(".tar")]
    assert len(images) == 2 + 10, "a look at each shard, and the ten images that were missing"


@pytest.mark.slow
def test_two_processes_read_a_stream_once_between_them(hub: Hub, stm: Stm, home: Path, tmp_path: Path) -> None:
    hub.repos["datasets/owner/set"] = Repo(SHARDS)
    common = ["eval", str(MINI), "--data", "stream:hf:owner/set", "--batch-size", "4", "--records"]
    assert stm(*common, "one.csv").code == 0
    alone = [seen.headers["range"] for seen in hub.seen if seen.path.endswith(".tar")]
    hub.seen.clear()
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "stm_cli",
        *common,
        "two.csv",
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=clean_environment(**hub.environment(home)),
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    assert sorted(seen.headers["range"] for seen in hub.seen if seen.path.endswith(".tar")) == sorted(alone)


@pytest.mark.parametrize(("body", "kind"), [(ROWS, "parquet"), (SHARDS, "tar")], ids=["parquet", "tar"])
def test_files_of_this_machine_hold_what_the_datasets_library_streams(
    stm: Stm, files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: dict[str, bytes], kind: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    paths = [tmp_path / Path(name).name for name in body]
    for path, data in zip(paths, body.values(), strict=True):
        path.write_bytes(data)
    pattern = str(tmp_path / f"val*.{kind}")
    builder, image = ("parquet", "image") if kind == "parquet" else ("webdataset", "png")
    rows = datasets.load_dataset(builder, data_files=[str(path) for path in paths], split="train", streaming=True)
    theirs = [(row[image]["bytes"], int(row.get("label", row.get("cls")))) for row in rows.decode(False)]
    samples = open_stream(pattern, config=CONFIG.__class__(**vars(CONFIG) | {"num_classes": 10})).samples
    ours = [(encoded(sample.source), sample.label) for sample in samples]
    assert ours == theirs == PICTURES
    report = json.loads(stm("eval", MINI, "--data", pattern, "--json").out)
    assert (report["top1"], report["data"]) == (files["top1"], Path(pattern).name)


def encoded(source: object) -> bytes:
    """An image's bytes as they are in its shard."""
    from stm.data.images import _row_group

    if isinstance(source, ParquetImage):
        data: bytes = _row_group(source.path, source.column, source.group)[source.row].as_py()
        return data
    assert isinstance(source, TarImage)
    with source.path.open("rb") as stream:
        stream.seek(source.offset)
        return stream.read(source.size)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            shard([("a", {"png": picture(1), "cls": b"0"})], "w:gz"),
            "cannot be read as a tar file that is not compressed",
        ),
        (b"no archive at all", "cannot be read as a tar file"),
        (shard([("a", {"png": picture(1), "txt": b"0"})]), "set.tar holds 1 image and no labels"),
        (shard([("a", {"png": picture(1), "json": b'{"name": "x"}'})]), "a has no label"),
        (shard([("a", {"png": picture(1), "jpg": picture(1), "cls": b"0"})]), "a has two images"),
        (shard([("a", {"png": picture(1), "cls": b"3"})]), "3 is not one of the 3 classes"),
        (shard([("a", {"cls": b"0"})]), "holds no images"),
    ],
)
def test_tar_files_that_do_not_fit(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "set.tar").write_bytes(data)
    with pytest.raises(DataError) as caught:
        open_stream(str(tmp_path / "set.tar"), config=CONFIG)
    assert said in caught.value.message
    assert str(tmp_path) not in caught.value.message


def test_labels_in_json_and_none(tmp_path: Path) -> None:
    (tmp_path / "set.tar").write_bytes(
        shard([(f"{i}", {"json": b'{"label": %d}' % i, "PNG": picture(i)}) for i in range(3)])
    )
    assert [sample.label for sample in open_stream(str(tmp_path / "set.tar"), config=CONFIG).samples] == [0, 1, 2]
    bare = open_stream(str(tmp_path / "set.tar"), config=CONFIG, need_labels=False)
    assert {sample.label for sample in bare.samples} == {None} and bare.samples[0].file == "set.tar/0.PNG"


def test_names_that_are_no_stream(stm: Stm, hub: Hub) -> None:
    for bad in ("stream:", "stream:owner/set", "stream:imagenet-v2", "stream:hf:a/b/c"):
        run = stm("eval", MINI, "--data", bad)
        assert run.code == 2 and "is no set that can be streamed" in run.err, bad
    run = stm("eval", MINI, "--data", "none-*.tar")
    assert run.code == 1 and "none-*.tar does not exist" in run.err
    run = stm("eval", MINI, "--data", "stream:hf:owner/none")
    assert run.code == 1 and "owner/none was not found on the Hub" in run.err


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(HubFile("a/b", "c" * 40, "d.tar", 1, token="secret"))


def test_the_error_of_a_line_comes_out_of_a_process_that_decodes() -> None:
    error = pickle.loads(pickle.dumps(HubError("said", "next")))
    assert (error.message, error.hint) == ("said", "next")
