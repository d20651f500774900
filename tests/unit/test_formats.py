"""Which files are images, and that nothing but listed formats is decoded, wherever an image comes from."""

import ast
import io
import os
import tarfile
from pathlib import Path

import pytest
from PIL import EpsImagePlugin, Image, features

from stm.data.formats import FORMATS, SIGNATURE, SUFFIXES, is_image, open_image
from stm.data.images import Crop, ParquetImage, Sample, enlarged
from stm.data.sets import SampleSet, from_files, iterate
from stm.data.streams import tar_samples
from tests.pictures import PREP, make_config, opened, picture

ROOT = Path(__file__).resolve().parents[2]
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"
WRITTEN = {  # as Pillow saves them; the rest of FORMATS have the same way in
    "JPEG": {},
    "PNG": {},
    "WEBP": {},
    "GIF": {},
    "BMP": {},
    "PPM": {},
    "TIFF": {},
    "JPEG2000": {},
    "AVIF": {},
    "QOI": {},
    "ICO": {},
    "SGI": {},
    "PCX": {},
    "TGA": {},
    "DDS": {},
}
CODECS = {"JPEG2000": "jpg_2000", "AVIF": "avif", "WEBP": "webp"}


def encoded(kind: str) -> bytes:
    if kind in CODECS and not features.check(CODECS[kind]):
        pytest.skip(f"this Pillow has no {kind}")
    stream = io.BytesIO()
    try:
        Image.new("RGB", (32, 24), (200, 30, 90)).save(stream, kind, **WRITTEN[kind])
    except KeyError:
        pytest.skip(f"this Pillow does not write {kind}")
    return stream.getvalue()


def test_suffixes_are_those_that_pillow_has_for_the_formats():
    Image.init()
    for name, suffixes in FORMATS.items():
        theirs = {suffix for suffix, kind in Image.registered_extensions().items() if kind == name}
        if theirs:  # one without its codec registers none
            assert {*suffixes} - {".mpo"} == theirs, name


def test_no_format_is_listed_that_leaves_the_process_or_opens_another_image():
    assert (
        not {"EPS", "PDF", "WMF", "GRIB", "HDF5", "BUFR", "IPTC", "ICNS", "BLP", "FPX", "MIC", "MPEG"} & FORMATS.keys()
    )
    assert not {".eps", ".ps", ".pdf", ".wmf", ".emf"} & SUFFIXES


def test_images_are_opened_in_one_place():
    """`Image.open` without `formats` takes whatever Pillow knows."""
    found = set()
    for folder in ("stm", "stm_cli", "tools", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "Image.open":
                    assert "formats" in [keyword.arg for keyword in node.keywords], f"{path}:{node.lineno}"
                    found.add(path.name)
    assert found == {"arrays.py", "formats.py", "photographs.py"}  # of arrays, TIFF alone


@pytest.mark.parametrize("kind", WRITTEN)
def test_every_format_is_read_under_any_name(kind, tmp_path):
    (tmp_path / "wrong.jpg").write_bytes(encoded(kind))
    (tmp_path / f"right{FORMATS[kind][-1].upper()}").write_bytes(encoded(kind))
    samples = opened(tmp_path, need_labels=False)
    assert len(samples) == 2 and samples.skipped == ()
    (batch,) = iterate(samples, PREP, batch_size=2)
    assert batch.errors == {} and batch.indices == (0, 1)


@pytest.mark.parametrize("kind", [kind for kind in WRITTEN if kind not in ("ICO", "SGI", "PCX", "TGA")])
def test_a_file_without_a_suffix_is_known_by_its_first_bytes(kind, tmp_path):
    (tmp_path / "bare").write_bytes(encoded(kind))
    (tmp_path / "bare.part").write_bytes(encoded(kind))
    assert SIGNATURE.match(encoded(kind)) and is_image(tmp_path / "bare")
    samples = opened(tmp_path, need_labels=False)
    assert [sample.file for sample in samples.samples] == ["bare"] and samples.skipped == ("bare.part",)


def test_what_phones_write_is_a_jpeg(tmp_path):
    frames = [Image.new("RGB", (20, 20), (shade, 0, 0)) for shade in (250, 10)]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    with open_image(tmp_path / "a.jpg") as image:
        assert image.format == "MPO" and image.convert("RGB").getpixel((5, 5))[0] > 200


@pytest.mark.parametrize(
    "text", ["", "Python notes\n", "# P5 is a format\n", "BM\n", "GIF89", "%!PS-Adobe-3.0 EPSF-3.0\n", "%PDF-1.4\n"]
)
def test_text_without_a_suffix_is_no_image(tmp_path, text):
    (tmp_path / "notes").write_text(text)
    picture(tmp_path / "a.png")
    samples = opened(tmp_path, need_labels=False)
    assert [sample.file for sample in samples.samples] == ["a.png"] and samples.skipped == ("notes",)


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A `gs` on PATH that leaves a mark, and a Pillow that has not looked for one yet."""
    mark, program = tmp_path / "mark", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho ran >> {mark}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return mark


def in_tar(path: Path) -> object:
    with tarfile.open(path, "w:") as tar:
        info = tarfile.TarInfo("a.jpg")
        info.size = len(EPS)
        tar.addfile(info, io.BytesIO(EPS))
    (sample,) = tar_samples(path, "a.tar", make_config(), need_labels=False).samples
    return sample.source


def in_parquet(path: Path) -> object:
    pyarrow = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pyarrow.table({"image": [EPS]}), path)
    return ParquetImage(path, "image", 0, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_ghostscript_is_never_run(tmp_path, ghostscript, workers):
    """An EPS file called photo.jpg, in every kind of set."""
    photo = tmp_path / "set" / "photo.jpg"
    photo.parent.mkdir()
    photo.write_bytes(EPS)
    sources = [Crop(photo, (0, 0, 9, 9)), in_tar(tmp_path / "a.tar"), in_parquet(tmp_path / "a.parquet")]
    placed = SampleSet("x", tuple(Sample(f"{place}", None, source) for place, source in enumerate(sources)))
    for samples in (opened(photo.parent, need_labels=False), from_files([photo]), placed):
        for batch in iterate(samples, PREP, batch_size=8, workers=workers):
            assert batch.indices == ()
            assert all(sentence.endswith(": not an image that can be read") for sentence in batch.errors.values())
    with pytest.raises(OSError, match="cannot identify image file"):
        enlarged(opened(photo.parent, need_labels=False).samples[0], PREP, 9)
    assert not ghostscript.exists()


def test_postscript_and_pdf_are_named_and_not_taken(tmp_path):
    picture(tmp_path / "a.png")
    for name in ("b.eps", "c.pdf", "d.heic", "e.wmf"):
        (tmp_path / name).write_bytes(EPS)
    assert opened(tmp_path, need_labels=False).skipped == ("b.eps", "c.pdf", "d.heic", "e.wmf")
