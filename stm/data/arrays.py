"""Read images of any number of channels: arrays of numpy (.npy), and TIFF with several pages or bands.

Without torch, as processes that decode do not import it; numpy is imported when there is such a file.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, TiffImagePlugin

from stm.data.formats import check_file
from stm.errors import DataError, damage

if TYPE_CHECKING:
    import numpy as np

ARRAY = ".npy"
# TIFF's numbers for what packs bytes without loss: LZW, zlib's deflate under two numbers, PackBits; LZMA and Zstandard
# if Pillow's library has them.
_PACKED = (5, 8, 32946, 32773, 34925, 50000)
_DEFLATE = (8, 32946)
_MOST_PACKED = 1400  # times the bytes of a file: the best of deflate and LZW
_KINDS = {1: "u", 3: "f"}  # TIFF's numbers for unsigned integers and floats, as numpy calls them
_VALUES = "8 or 16 bits without a sign, or floats from 0 to 1"


@dataclass(frozen=True)
class Array:
    """An image of any number of channels, (H, W), (H, W, C) or (C, H, W). It opens and closes as Pillow's images do."""

    values: "np.ndarray[Any, Any]"

    def __enter__(self) -> "Array":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def read_npy(path: Path) -> Array:
    """Return the array of a file, mapped and not read. Nothing in the file is run.

    Raises:
        OSError: the file cannot be read.
        DataError: it is no array, or one of objects, without pixels or with more than an image may have.
    """
    import numpy as np

    check_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about headers that Python 2 wrote
            values = np.lib.format.open_memmap(path, mode="r")  # never unpickles
    except OSError:
        raise
    except Exception as error:  # a damaged header makes numpy raise anything at all
        raise DataError(f"not an array of numpy: {damage(error)}") from error
    if values.ndim not in (2, 3) or not values.size:
        raise DataError(f"the array is {values.shape}, expected (H, W), (H, W, C) or (C, H, W)")
    return Array(values)


def planes(image: Image.Image | Array, channels: int) -> list[Image.Image]:
    """Return the channels of an image, each in Pillow's mode L, or F from 0 to 1.

    Raises:
        DataError: the image has another number of channels, or numbers whose range is not known.
    """
    if isinstance(image, Array):
        return _of_array(image, channels)
    pages = getattr(image, "n_frames", 1)
    bands = len(image.getbands())
    if pages == channels > 1 and bands == 1:
        return [_of_page(image, page) for page in range(pages)]
    if bands == channels and pages == 1 and image.mode in ("L", "LA", "RGB", "RGBA", "RGBX", "CMYK"):
        return list(image.split())
    held = f"{pages} pages of {bands}" if pages > 1 else str(bands)
    raise DataError(f"the image has {held} channel{'' if held == '1' else 's'}, and the model takes {channels}")


def _of_page(image: Image.Image, page: int) -> Image.Image:
    import numpy as np

    image.seek(page)
    if image.mode == "L":
        return image.copy()
    if image.mode in ("1", "F") or image.mode.startswith("I;16"):
        return _plane(np.asarray(image))
    raise DataError(f"page {page + 1} has mode {image.mode}, expected {_VALUES}")


def _of_array(image: Array, channels: int) -> list[Image.Image]:
    values = image.values if image.values.ndim == 3 else image.values[..., None]
    if values.shape[-1] != channels and values.shape[0] == channels:
        values = values.transpose(1, 2, 0)
    height, width, count = values.shape
    if count != channels:
        raise DataError(f"the array is {image.values.shape}, and the model takes {channels} channels")
    _check_size(height, width, count)
    return [_plane(values[..., channel]) for channel in range(channels)]


def _check_size(height: int, width: int, channels: int) -> None:
    """Refuse what no photograph is: its pixels as floats would take too much memory."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and (height * width > limit or height * width * channels > 4 * limit):
        raise DataError(f"more than {limit} pixels, or {4 * limit} numbers: refused as a possible decompression bomb")


def _plane(values: "np.ndarray[Any, Any]") -> Image.Image:
    """Return one channel (H, W) as an image."""
    import numpy as np

    if values.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(values))
    if values.dtype == np.bool_:
        return Image.fromarray(values.astype(np.uint8) * 255)
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return Image.fromarray(values.astype(np.float32) / 65535)
    if values.dtype.kind != "f":
        raise DataError(f"its numbers are {values.dtype}, expected {_VALUES}")
    floats = values.astype(np.float32)
    low, high = float(floats.min()), float(floats.max())
    if not (low >= 0 and high <= 1):  # also of NaN
        raise DataError(f"its numbers are from {low:g} to {high:g}, expected {_VALUES}")
    return Image.fromarray(floats)


def stacked(images: Sequence[Image.Image]) -> bytes:
    """Return channels as (H, W, C): uint8 if all are bytes, else float32 from 0 to 1."""
    import numpy as np

    if all(image.mode == "L" for image in images):
        return np.stack([np.asarray(image) for image in images], -1).tobytes()
    floats = [np.asarray(image, np.float32) / (255 if image.mode == "L" else 1) for image in images]
    return np.stack(floats, -1).clip(0, 1).tobytes()  # a bicubic filter may leave the range


def shown(images: Sequence[Image.Image]) -> Image.Image:
    """Return a picture for people: the first three channels as red, green and blue, or the first alone."""
    bytes_ = [image if image.mode == "L" else image.point(lambda value: value * 255).convert("L") for image in images]
    return Image.merge("RGB", bytes_[:3]) if len(bytes_) >= 3 else bytes_[0]


def read_bands(path: Path) -> Array | None:
    """Return the first page of a TIFF with many bands, which Pillow does not read; None if the file is no TIFF.

    Raises:
        OSError: the file cannot be read.
        DataError: it is compressed with a loss or by what Pillow lacks, damaged, or larger than an image may be.
    """
    with path.open("rb") as file:
        head = file.read(8)
        if head[:4] not in (b"II*\0", b"MM\0*"):
            return None
        try:
            tags = TiffImagePlugin.ImageFileDirectory_v2(head)
            file.seek(tags.next)
            tags.load(file)
            return Array(_bands(tags, path))
        except (OSError, DataError):
            raise
        except Exception as error:  # tags may hold anything
            raise DataError(f"not a TIFF that can be read: {damage(error)}") from error


def _bands(tags: Any, path: Path) -> "np.ndarray[Any, Any]":
    """Return (H, W, C) from the strips or tiles of a page."""
    import numpy as np

    width, height, samples = int(tags[256]), int(tags[257]), int(tags.get(277, 1))
    compression, predictor, apart = int(tags.get(259, 1)), int(tags.get(317, 1)), int(tags.get(284, 1)) == 2
    bits, formats = {*tags.get(258, (1,))}, {*tags.get(339, (1,))}
    if len(bits) != 1 or len(formats) != 1 or not {*bits} <= {8, 16, 32, 64} or not {*formats} <= {*_KINDS}:
        raise DataError(f"its bands have {sorted(bits)} bits, expected {_VALUES}")
    if compression not in (1, *_PACKED) or predictor not in (1, 2) or (predictor == 2 and formats != {1}):
        raise DataError(
            "compressed in a way that is not read: save it without compression, with deflate or LZW, or as .npy"
        )
    dtype = np.dtype(f"{'<' if tags.prefix == b'II' else '>'}{_KINDS[formats.pop()]}{bits.pop() // 8}")
    tiled = 322 in tags
    across, down = (int(tags[322]), int(tags[323])) if tiled else (width, min(int(tags.get(278, height)), height))
    offsets, counts = (tags[324], tags[325]) if tiled else (tags[273], tags[279])
    depth, layers = (1, samples) if apart else (samples, 1)
    if min(width, height, samples, across, down) < 1:
        raise DataError(f"the image is {width} x {height} pixels of {samples} channels, expected at least one of each")
    _check_size(height, width, samples)
    _check_size(down, across, depth)
    columns, rows = -(-width // across), -(-height // down)
    if len(offsets) != len(counts) or len(offsets) != columns * rows * layers:
        raise DataError(f"it has {len(offsets)} parts, expected {columns * rows * layers}")
    size = path.stat().st_size
    if width * height * samples * dtype.itemsize > size * (1 if compression == 1 else _MOST_PACKED):
        raise DataError("cut off: it holds fewer bytes than its pixels take")
    out = np.empty((height, width, samples), dtype.newbyteorder("="))
    with path.open("rb") as file:
        for number, (offset, count) in enumerate(zip(offsets, counts, strict=True)):
            layer, tile = divmod(number, columns * rows)
            top, left = tile // columns * down, tile % columns * across
            tall = down if tiled else min(down, height - top)
            row = across * depth * dtype.itemsize
            wanted = tall * row
            file.seek(offset)
            data = file.read(min(count, size))
            data = _unpacked(data, compression, row, tall)
            part = np.frombuffer(data, dtype, wanted // dtype.itemsize).reshape(tall, across, depth)
            if predictor == 2:
                part = np.cumsum(part, axis=1, dtype=dtype.newbyteorder("="))
            bands = slice(layer, layer + 1) if apart else slice(None)
            kept = out[top : top + tall, left : left + across, bands]
            kept[...] = part[: kept.shape[0], : kept.shape[1]]
    return out


def _unpacked(data: bytes, compression: int, row: int, rows: int) -> bytes:
    """Return `rows` rows of `row` bytes from a packed strip or tile."""
    if compression == 1:
        return data
    if compression in _DEFLATE:
        return zlib.decompressobj().decompress(data, row * rows)
    # Pillow reads no page of many bands, but its library unpacks: as a grey picture, the strip is a page that it reads.
    tags = {256: row, 257: rows, 258: 8, 259: compression, 262: 1, 273: 8, 277: 1, 278: rows, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    pad = len(data) % 2 * b"\0"  # a directory begins at an even byte
    head = struct.pack("<2sHI", b"II", 42, 8 + len(data) + len(pad))
    page = head + data + pad + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a size that `_check_size` has allowed
        try:
            with Image.open(io.BytesIO(page), formats=("TIFF",)) as grey:
                return grey.tobytes()
        except Exception as error:  # of a library without this compression too
            raise DataError("what it packs is damaged, or packed in a way that Pillow lacks here") from error
