"""Sets that would hang a reader, end it, or run something: each is one sentence, at once."""

import datetime
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from stm.data import images
from stm.data.hub_sets import parquet_samples
from stm.data.sets import from_files, iterate
from stm.data.streams import open_stream, tar_samples
from stm.data.unpack import unpack
from stm.errors import DataError
from stm.evaluations import skipped_notes
from stm.page.content import read_rows
from tests.hang import HANG
from tests.pictures import PREP, labelled, labels_of, make_config, opened, picture
from tests.unit.test_layouts import KIT, development_kit, validation_images

ROOT = Path(__file__).resolve().parents[2]
DEEP = "[" * 200_000


@pytest.fixture(autouse=True)
def _no_waiting():
    """A reader that waits for ever fails its test."""

    def late(number, frame):
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(int(HANG))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def loop(path):
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def device(path):
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def folder(path):
    path.unlink(missing_ok=True)
    path.mkdir()


ODD = {
    pipe: "a named pipe, expected a file",
    loop: "oo many levels of symbolic links",
    device: "a device, expected a file",
}


@pytest.mark.parametrize("make", [*ODD, folder])
def test_a_table_of_labels_that_is_no_file(tmp_path, make):
    said = ODD.get(make, "s a directory")
    make(labelled(tmp_path / "a", ["x.png,1"]) / "labels.csv")
    with pytest.raises(DataError, match=f"labels.csv cannot be read: .*{said}"):
        opened(tmp_path / "a")
    val = validation_images(tmp_path / "b" / "val", [1])
    make(val / "LOC_val_solution.csv")
    with pytest.raises(DataError, match=f"LOC_val_solution.csv cannot be read: .*{said}"):
        opened(val, 1000)
    (val / "LOC_val_solution.csv").rmdir() if make is folder else (val / "LOC_val_solution.csv").unlink()
    development_kit(tmp_path / "b" / "data", KIT, [4])
    make(tmp_path / "b" / "data" / "meta.mat")
    with pytest.raises(DataError, match=r"meta\.mat "):
        opened(val, 1000)


@pytest.mark.parametrize("make", ODD)
def test_an_image_that_is_no_file_is_a_named_failure(tmp_path, make):
    picture(tmp_path / "a.png")
    make(tmp_path / "b.png")
    make(tmp_path / "bare")
    samples = opened(tmp_path, need_labels=False)
    (batch,) = iterate(samples, PREP, batch_size=2)
    assert batch.indices == (0,) and ODD[make] in batch.errors[1]
    assert samples.skipped == ("bare",)
    (batch,) = iterate(from_files([tmp_path / "bare"]), PREP, batch_size=1)
    assert ODD[make] in batch.errors[0]


def test_a_socket_is_no_image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's name is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("a.png")
        (batch,) = iterate(opened(tmp_path, need_labels=False), PREP, batch_size=1)
    assert batch.errors == {0: "a.png: a socket, expected a file"}


def test_folders_that_link_to_themselves(tmp_path):
    for name in ("0", "1"):
        picture(tmp_path / name / "a.png")
        (tmp_path / name / "self").symlink_to(".")
        (tmp_path / name / "up").symlink_to("..")
    samples = opened(tmp_path)
    assert labels_of(samples) == {"0/a.png": 0, "1/a.png": 1}
    assert samples.skipped == ("0/self", "0/up", "1/self", "1/up")


@pytest.mark.parametrize("ending", [".parquet", ".tar"])
def test_a_shard_that_is_no_file(tmp_path, ending):
    pytest.importorskip("pyarrow")
    pipe(tmp_path / f"a{ending}")
    with pytest.raises(DataError, match="a named pipe, expected a file"):
        open_stream(str(tmp_path / f"a{ending}"), config=make_config())


def tar(path, parts):
    with tarfile.open(path, "w:") as file:
        for name, body in parts.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            file.addfile(info, io.BytesIO(body))
    return path


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (DEEP, "a has no label, expected a .cls, or a .json"),
        (f'{{"x": {DEEP}', "a has no label"),
        ('{"label": [1, 2]}', "row 0: a list, expected one class for each image: its index or its name"),
        ('{"label": {"name": "cat"}}', "row 0: a mapping, expected one class for each image"),
        ('{"label": 1e400}', "inf is not one of the 10 classes"),
        ('{"label": ' + "9" * 5000 + "}", "a has no label"),
        ('"label"', "a has no label"),
    ],
)
def test_labels_in_a_tar_that_are_no_classes(tmp_path, label, said):
    path = tar(tmp_path / "s.tar", {"a.png": b"", "a.json": label.encode()})
    with pytest.raises(DataError) as caught:
        tar_samples(path, "s.tar", make_config(), need_labels=True)
    assert said in caught.value.message and len(caught.value.message) < 300


def test_lines_end_at_line_breaks_alone(tmp_path):
    """Python's splitlines ends a line at ten characters more, which names may hold."""
    folder = labelled(tmp_path, ["a\x1cb.png,1", "c\u2028d.png,2", '"e\x0bf.png",3'])
    expected = {"a\x1cb.png": 1, "c\u2028d.png": 2, "e\x0bf.png": 3}
    assert labels_of(opened(folder)) == expected
    (folder / "labels.csv").unlink()
    lines = [json.dumps({"file_name": name, "label": label}, ensure_ascii=False) for name, label in expected.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert labels_of(opened(folder)) == expected


@pytest.mark.parametrize("text", ["\u0663", "\u00b2", "1_0", "9" * 5000])
def test_a_class_in_other_digits_is_no_class(tmp_path, text):
    path = tar(tmp_path / "s.tar", {"a.png": b"", "a.cls": text.encode()})
    with pytest.raises(DataError, match="class") as caught:
        tar_samples(path, "s.tar", make_config(label_names=tuple("abcdefghij")), need_labels=True)
    assert len(caught.value.message) < 300


def test_an_archive_of_a_time_beyond_the_clock_is_one_sentence(tmp_path):
    member = tarfile.TarInfo("a.png")
    member.mtime = 2**70
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(member, io.BytesIO())
    (tmp_path / "s.tar.gz").write_bytes(held.getvalue())
    with pytest.raises(DataError, match=r"s\.tar\.gz cannot be unpacked: "):
        unpack(tmp_path / "s.tar.gz", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_member_of_a_negative_size_does_not_turn_the_reader_round(tmp_path):
    """tarfile before Python 3.14 goes back by it, and reads the same member again for ever."""
    path = tar(tmp_path / "s.tar", {"a.png": b"x", "b.png": b"y"})
    data = bytearray(path.read_bytes())
    info = tarfile.TarInfo("b.png")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (-1024).to_bytes(12, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[1024:1536] = header
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"s\.tar "):
        tar_samples(path, "s.tar", make_config(), need_labels=False)


def test_a_long_name_of_a_negative_length(tmp_path):
    """tarfile asks for so many bytes, which is a ValueError."""
    info = tarfile.TarInfo("././@LongLink")
    info.type = tarfile.GNUTYPE_LONGNAME
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (-4096).to_bytes(12, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "s.tar").write_bytes(header + tar(tmp_path / "t.tar", {"a.png": b""}).read_bytes())
    with pytest.raises(DataError, match=r"s\.tar cannot be read as a tar file"):
        tar_samples(tmp_path / "s.tar", "s.tar", make_config(), need_labels=False)


def test_names_with_line_breaks_make_one_line():
    assert skipped_notes(12, ["a\nb.txt", "\x1b[31m.txt"]) == (
        r"12 files were not taken for images: a\nb.txt, \x1b[31m.txt and 10 more",
    )
    assert skipped_notes(1, ["a.txt"]) == ("1 file was not taken for an image: a.txt",)
    assert skipped_notes(0, []) == ()


def test_files_of_a_tar_that_are_no_images_are_named(tmp_path):
    picture(tmp_path / "x.png")
    image = (tmp_path / "x.png").read_bytes()
    path = tar(
        tmp_path / "s.tar",
        {"a.png": image, "a.cls": b"1", "b.heic": b"", "b.cls": b"2", "c.jp2": image, "c.cls": b"3", "bare": b""},
    )
    found = tar_samples(path, "s.tar", make_config(), need_labels=True)
    assert [(sample.file, sample.label) for sample in found.samples] == [("s.tar/a.png", 1), ("s.tar/c.jp2", 3)]
    assert found.skipped == ["s.tar/b.heic", "s.tar/bare"]
    assert open_stream(str(path), config=make_config()).skipped == ("s.tar/b.heic", "s.tar/bare")


def parquet(path, **columns):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([[0], [1, 2]], "list<element: int64>, expected one class for each image: its index or its name"),
        ([{"a": 1}, {"a": 2}], "struct<a: int64>, expected one class for each image"),
        ([datetime.datetime(2020, 1, 1)] * 2, "timestamp[us], expected one class for each image"),
        ([1.5, 2.0], "row 0: 1.5 is not one of the 10 classes"),
    ],
)
def test_labels_in_parquet_that_are_no_classes(tmp_path, labels, said):
    path = parquet(tmp_path / "s.parquet", image=[{"bytes": b"", "path": ""}] * 2, label=labels)
    with pytest.raises(DataError) as caught:
        parquet_samples(path, "s.parquet", make_config(), need_labels=True)
    assert said in caught.value.message


def test_features_that_are_nested_deeply_are_none(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = pyarrow.table({"image": [{"bytes": b""}], "label": [1]})
    pq.write_table(table.replace_schema_metadata({b"huggingface": DEEP.encode()}), tmp_path / "s.parquet")
    assert parquet_samples(tmp_path / "s.parquet", "s", make_config(), need_labels=True).samples[0].label == 1


def test_no_thread_of_pyarrow_reads_a_python_stream(tmp_path, monkeypatch):
    """One that is still in Python when the interpreter ends aborts the process: SIGABRT in a third of the refusals of a
    set."""
    path = parquet(tmp_path / "s.parquet", image=[{"bytes": b"x" * 5000, "path": ""}] * 50, label=[1] * 50)
    threads = set()

    class Watched(io.FileIO):
        def readinto(self, buffer):
            threads.add(threading.current_thread())
            return super().readinto(buffer)

        def read(self, size=-1):
            threads.add(threading.current_thread())
            return super().read(size)

    monkeypatch.setattr(images, "open_shard", lambda path: Watched(path))
    samples = parquet_samples(path, "s", make_config(), need_labels=True).samples
    images._row_group.cache_clear()
    assert images._row_group(path, "image.bytes", 0)[49].as_py() == b"x" * 5000
    assert len(samples) == 50 and threads == {threading.main_thread()}


def test_a_report_that_is_nested_deeply_or_no_file(tmp_path):
    (tmp_path / "a.json").write_text(DEEP)
    with pytest.raises(DataError, match=r"a\.json is not a report of stm sweep"):
        read_rows(tmp_path / "a.json", "sweep")
    pipe(tmp_path / "b.json")
    with pytest.raises(DataError, match=r"b\.json cannot be read: a named pipe"):
        read_rows(tmp_path / "b.json", "sweep")


# What a data folder holds must not be run.

MODULES = (
    "json",
    "re",
    "pickle",
    "multiprocessing",
    "concurrent",
    "socket",
    "struct",
    "runpy",
    "tempfile",
    "random",
    "signal",
)
MODULES += (
    "copyreg",
    "types",
    "typing",
    "warnings",
    "array",
    "selectors",
    "encodings",
    "sitecustomize",
    "usercustomize",
)
MODULES += ("threading", "numpy", "torch", "scipy", "PIL", "pyarrow", "safetensors")


@pytest.fixture
def trap(tmp_path):
    """A folder of images with modules of the names that are imported, each of which leaves a mark."""
    trap = validation_images(tmp_path / "trap", range(1, 6))
    development_kit(trap / "data", KIT, [4, 1, 3, 2, 4])
    for name in MODULES:
        (trap / f"{name}.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'a').write('{name} ')\n")
    return trap


def run_in(folder, code_or_words, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONSAFEPATH", "PYTHONPATH")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *code_or_words], cwd=folder, env=environment, capture_output=True, text=True, timeout=HANG
    )
    mark = tmp_path / "mark"
    return done, mark.read_text() if mark.exists() else ""


SCRIPT = """
from stm.data.sets import iterate
from tests.pictures import PREP, opened
if __name__ == "__main__":
    samples = opened(".", 1000)
    batches = list(iterate(samples, PREP, batch_size=2, workers=2))
    print([sample.label for sample in samples.samples], [len(batch.indices) for batch in batches])
"""


def test_no_child_runs_a_module_of_the_current_folder(trap, tmp_path):
    """The process that reads meta.mat, and those that decode; the script itself is elsewhere."""
    script = tmp_path / "elsewhere" / "script.py"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    done, marked = run_in(trap, [str(script)], tmp_path)
    assert (done.stdout, marked) == ("[0, 278, 250, 212, 0] [2, 2, 1]\n", ""), done.stderr


def test_the_variable_that_keeps_children_safe_is_not_left_behind(tmp_path, monkeypatch):
    picture(tmp_path / "a.png")
    for before in (None, "x"):
        monkeypatch.delenv("PYTHONSAFEPATH", raising=False) if before is None else monkeypatch.setenv(
            "PYTHONSAFEPATH", before
        )
        list(iterate(from_files([tmp_path / "a.png"]), PREP, batch_size=1, workers=1))
        assert os.environ.get("PYTHONSAFEPATH") == before


@pytest.mark.parametrize("flags", [["-P", "-m", "stm_cli"], ["-m", "stm_cli"]], ids=["-P", "-m"])
def test_the_command_runs_no_module_of_the_current_folder(trap, tmp_path, flags):
    """With -m alone Python itself looks there for what it needs to find us (runpy and what that needs): those are its
    own."""
    if flags[0] == "-m":
        for name in ("runpy", "types", "warnings", "typing"):
            (trap / f"{name}.py").unlink()
    mini = ROOT / "tests" / "golden" / "dense-mini" / "vim_mini_stride8.pth"
    done, marked = run_in(trap, [*flags, "predict", str(mini), "ILSVRC2012_val_00000001.JPEG", "--json"], tmp_path)
    assert done.returncode == 0 and marked == "", done.stderr
    assert len(json.loads(done.stdout)["predictions"]) == 1
