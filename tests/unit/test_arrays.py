"""Images of any number of channels: arrays, pages and bands, and what is not trusted in them."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from stm.commands.compress import compress
from stm.commands.eval import evaluate
from stm.config import Preprocess
from stm.data.decode import decode
from stm.data.images import ImageFile, Sample
from stm.data.open import open_samples, photograph_crops
from stm.data.preprocess import normalise
from stm.data.sets import iterate
from stm.model.initialize import initialize
from stm.model.vim import ViM
from stm.options import EvalOptions, MergeOptions
from tests.pictures import make_config, picture

SIDE = 5
HUGE = b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (9999999999, 4, 4), }"
BANDS = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 6), dtype=np.uint8)  # (H, W, C)


def prep(channels, resize=SIDE):
    return Preprocess(resize=resize, crop=SIDE, mean=(0.0,) * channels, std=(1.0,) * channels)


def seen(path, channels):
    """What a model sees of a file, (C, H, W) from 0 to 1; or why it sees nothing."""
    (pixels,) = decode([Sample(path.name, None, ImageFile(path))], prep(channels))
    return pixels if isinstance(pixels, str) else normalise([pixels], prep(channels))[0]


def expected(channels):
    return torch.from_numpy(BANDS[..., :channels]).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("form", ["rows", "channels first", "16 bits", "floats", "doubles, big end first"])
def test_arrays(tmp_path, channels, form):
    values = BANDS[..., :channels]
    match form:
        case "channels first":
            values = values.transpose(2, 0, 1)
        case "16 bits":
            values = values.astype(np.uint16) * 257
        case "floats":
            values = np.float32(values / 255)
        case _ if form.startswith("doubles"):
            values = (values / 255).astype(">f8")
    np.save(tmp_path / "a.npy", values[..., 0] if channels == 1 and form == "rows" else values)
    torch.testing.assert_close(seen(tmp_path / "a.npy", channels), expected(channels))


PACKED = {None: 1, "tiff_lzw": 5, "deflate": 8, "packbits": 32773, "zstd": 50000}


def pack(data, rows, how):
    """A strip as libtiff packs it, by way of a grey picture of its bytes."""
    if how in (None, "deflate"):
        return zlib.compress(data) if how else data
    file = io.BytesIO()
    Image.frombytes("L", (len(data) // rows, rows), data).save(file, "TIFF", compression=how)
    with Image.open(file) as page:
        tags = page.tag_v2
    (first,), (count,) = tags[273], tags[279]
    return file.getvalue()[first : first + count]


def tiff(path, values, *, planar=False, tile=0, packed=None, predictor=1, end="<", **wrong):
    """A TIFF of any number of bands, as GDAL writes it: strips of two rows, or tiles."""
    height, width, samples = values.shape
    layers = [values[..., i : i + 1] for i in range(samples)] if planar else [values]
    across, down = (tile, tile) if tile else (width, 2)
    parts = []
    for layer in layers:
        for top in range(0, height, down):
            for left in range(0, width, across):
                part = layer[top : top + down, left : left + across]
                if tile:
                    part = np.pad(part, ((0, tile - part.shape[0]), (0, tile - part.shape[1]), (0, 0)))
                if predictor == 2:
                    part = np.diff(part, axis=1, prepend=np.zeros_like(part[:, :1]))
                data = part.astype(part.dtype.newbyteorder(end)).tobytes()
                parts.append(pack(data, len(part), packed))
    kind = 3 if values.dtype.kind == "f" else 1
    offsets = [8 + sum(map(len, parts[:i])) for i in range(len(parts))]
    tags = {256: [width], 257: [height], 258: [values.dtype.itemsize * 8] * samples, 259: [PACKED[packed]]}
    tags |= {262: [1], 277: [samples], 284: [2 if planar else 1], 317: [predictor], 339: [kind] * samples}
    tags |= {322: [across], 323: [down], 324: offsets, 325: [*map(len, parts)]} if tile else {}
    tags |= {} if tile else {273: offsets, 278: [down], 279: [*map(len, parts)]}
    tags |= {int(name[1:]): value for name, value in wrong.items()}
    body = b"".join(parts)
    at = 8 + len(body)
    entries, beyond = b"", b""
    after = at + 2 + 12 * len(tags) + 4
    for tag, numbers in sorted(tags.items()):
        data = struct.pack(f"{end}{len(numbers)}I", *numbers)
        place = data if len(data) <= 4 else struct.pack(f"{end}I", after + len(beyond))
        beyond += b"" if len(data) <= 4 else data
        entries += struct.pack(f"{end}HHI", tag, 4, len(numbers)) + place
    head = (b"II*\0" if end == "<" else b"MM\0*") + struct.pack(f"{end}I", at)
    path.write_bytes(head + body + struct.pack(f"{end}H", len(tags)) + entries + b"\0" * 4 + beyond)
    return path


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"planar": True},
        {"tile": 3},
        {"tile": 3, "planar": True, "packed": "deflate"},
        {"packed": "deflate", "predictor": 2},
        {"tile": 3, "packed": "tiff_lzw"},
        {"packed": "tiff_lzw", "predictor": 2, "end": ">"},
        {"planar": True, "packed": "packbits"},
        {"packed": "zstd"},
        {"end": ">"},
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_bands_of_a_tiff(tmp_path, layout, dtype):
    if dtype == np.float32:
        layout = layout | {"predictor": 1}  # the other one is for integers
    values = {np.uint8: BANDS, np.uint16: BANDS.astype(np.uint16) * 257, np.float32: np.float32(BANDS / 255)}[dtype]
    torch.testing.assert_close(seen(tiff(tmp_path / "a.tif", values, **layout), 6), expected(6))


def test_pages_and_pictures_of_as_many_channels(tmp_path):
    pages = [Image.fromarray(BANDS[..., page].copy()) for page in range(5)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    torch.testing.assert_close(seen(tmp_path / "pages.tif", 5), expected(5))
    for channels, mode in ((2, "LA"), (4, "RGBA")):
        Image.merge(mode, pages[:channels]).save(tmp_path / "a.png")
        torch.testing.assert_close(seen(tmp_path / "a.png", channels), expected(channels))
    assert seen(tmp_path / "pages.tif", 4) == "pages.tif: the image has 5 pages of 1 channels, and the model takes 4"
    assert seen(tmp_path / "a.png", 6) == "a.png: the image has 4 channels, and the model takes 6"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros((5, 5, 3), np.uint8), "the array is (5, 5, 3), and the model takes 4 channels"),
        (np.zeros((4,), np.uint8), "the array is (4,), expected (H, W)"),
        (np.zeros((0, 4, 4), np.uint8), "the array is (0, 4, 4), expected (H, W)"),
        (np.zeros((4, 4, 4), np.int32), "its numbers are int32, expected 8 or 16 bits without a sign, or floats"),
        (np.full((4, 4, 4), 2.0), "its numbers are from 2 to 2, expected 8 or 16 bits"),
        (np.full((4, 4, 4), np.nan), "its numbers are from nan to nan, expected"),
        (np.array([[print, print]], dtype=object), "not an array of numpy: "),
        (np.broadcast_to(np.uint8(0), (20000, 20000, 4)), "refused as a possible decompression bomb"),
        (HUGE, "not an array"),
        (b"\x93NUMPY\x01\x00\xff\xff(", "not an array"),
        (b"PK\x03\x04", "not an array"),
        (b"\x80\x04", "not an array"),
        (b"", "not an array"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, values, said):
    path = tmp_path / "a.npy"
    if isinstance(values, bytes):
        path.write_bytes(values)
    elif values.nbytes > 1 << 20:  # a file of holes, which takes no room
        with path.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": values.shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + values.nbytes)
    else:
        np.save(path, values, allow_pickle=True)
    assert isinstance(why := seen(path, 4), str) and why.startswith("a.npy: ") and said in why


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"t256": [200_000], "t257": [200_000]}, "refused as a possible decompression bomb"),
        ({"t257": [9000]}, "parts, expected 4500"),
        ({"t257": [9000], "t278": [9000]}, "parts, expected 1"),
        ({"t279": [1, 1, 1]}, "buffer is smaller"),
        ({"t273": [1 << 31] * 3}, "buffer is smaller"),
        ({"t259": [7]}, "compressed in a way that is not read"),
        ({"t259": [5]}, "what it packs is damaged"),  # its strips are no LZW
        ({"t258": [12] * 6}, "its bands have [12] bits"),
        ({"t277": [0]}, "expected at least one of each"),
        ({"t278": [0]}, "expected at least one of each"),
        ({"t258": [8, 16]}, "its bands have [8, 16] bits"),
    ],
)
def test_tiffs_that_are_not_read(tmp_path, wrong, said):
    why = seen(tiff(tmp_path / "a.tif", BANDS, **wrong), 6)
    assert isinstance(why, str) and why.startswith("a.tif: ") and said in why, why


def test_arrays_beside_pictures_are_no_images(tmp_path):
    picture(tmp_path / "0" / "a.png")
    for name in "01":
        (tmp_path / name).mkdir(exist_ok=True)
        np.save(tmp_path / name / "a.npy", BANDS[..., :3])
    samples = open_samples(tmp_path, config=make_config())
    assert ([each.file for each in samples.samples], samples.skipped) == (["0/a.png"], ("0/a.npy", "1/a.npy"))
    (tmp_path / "0" / "a.png").unlink()
    assert len(open_samples(tmp_path, config=make_config())) == 2


def test_photographs_repeat_their_colours():
    batch = next(iterate(photograph_crops().take(2), prep(5, 6), batch_size=2))
    assert not batch.errors and torch.equal(batch.images[:, :2], batch.images[:, 3:])
    three = next(iterate(photograph_crops().take(2), prep(3, 6), batch_size=2))
    torch.testing.assert_close(batch.images[:, :3], three.images)


def test_a_model_of_four_channels_is_checked_written_and_measured(tmp_path):
    config = make_config(2, channels=4)
    initialize(ViM(config)).save_pretrained(tmp_path / "dense")
    report = compress(
        str(tmp_path / "dense"), merge=MergeOptions(saving=0.1, schedule="border"), out=tmp_path / "small"
    )
    assert report.eval is not None and report.eval.agreement is not None
    assert any(
        "the model takes 4 channels and the photographs of the check have three" in note for note in report.notes
    )
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        np.save(tmp_path / "set" / name / "a.npy", np.float32(BANDS[..., :4] / 255))
        np.save(tmp_path / "set" / name / "b.npy", BANDS[..., :4].transpose(2, 0, 1))
    measured = evaluate(str(tmp_path / "small"), images=EvalOptions(data=str(tmp_path / "set"), batch_size=3))
    assert (measured.n, measured.failed) == (4, 0) and measured.top1 is not None
