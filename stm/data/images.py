"""Turn a sample into the pixels that a model sees. Uses Pillow alone, as processes that decode do not import torch."""

import dataclasses
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image, UnidentifiedImageError

from stm.config import Preprocess, Size, as_size, sides
from stm.data.arrays import ARRAY, Array, planes, read_bands, read_npy, shown, stacked
from stm.data.formats import check_file, open_image
from stm.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from stm.data.ranges import HubFile

MODES = {1: "L", 3: "RGB"}  # by channels of the model
FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True)
class ImageFile:
    """An image in a file."""

    path: Path

    def open(self) -> Image.Image | Array:
        """Return the image. As in every source below, the caller closes it."""
        if self.path.suffix.lower() == ARRAY:
            return read_npy(self.path)
        try:
            return open_image(self.path)
        except UnidentifiedImageError:
            bands = read_bands(self.path)
            if bands is None:
                raise
            return bands

    def fingerprint(self) -> str:
        """Return the size in bytes, which is a cheap way to tell two contents apart."""
        try:
            return str(self.path.stat().st_size)
        except OSError:  # the image will be counted as broken when it is opened
            return "missing"


@dataclass(frozen=True)
class Crop:
    """A part of an embedded photograph: `box` is left, top, right, bottom in pixels.

    A model of more than three channels sees its colours repeated, as it sees drawn pictures (`as_channels`).
    """

    path: Path
    box: tuple[int, int, int, int]

    def open(self) -> Image.Image:
        with open_image(self.path) as whole:
            return whole.crop(self.box)

    def fingerprint(self) -> str:
        return f"{self.path.stat().st_size} {self.box}"


@dataclass(frozen=True)
class Pixels:
    """A square grayscale image in memory, one byte per pixel, row by row."""

    data: bytes
    side: int

    def open(self) -> Image.Image:
        return Image.frombytes("L", (self.side, self.side), self.data)

    def fingerprint(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class ParquetImage:
    """An encoded image in a parquet file: the column of its bytes, its row group, and its row in that group."""

    path: "Path | HubFile"
    column: str
    group: int
    row: int

    def open(self) -> Image.Image:
        # The group, not the row, is what parquet can read at once: see `_row_group`.
        data = _row_group(self.path, self.column, self.group)[self.row].as_py()
        if data is None:
            raise DataError("the image is not in the parquet file: it was left out, or is only named there")
        return open_image(data)

    def fingerprint(self) -> str:
        return f"{_mark(self.path)} {self.group} {self.row}"


@dataclass(frozen=True)
class TarImage:
    """An encoded image in a tar file: the offset and the number of its bytes."""

    path: "Path | HubFile"
    offset: int
    size: int

    def open(self) -> Image.Image:
        with open_shard(self.path) as stream:
            stream.seek(self.offset)
            return open_image(stream.read(self.size))

    def fingerprint(self) -> str:
        return f"{_mark(self.path)} {self.offset} {self.size}"


def open_shard(path: "Path | HubFile") -> BinaryIO:
    """Open a shard for reading, from the disk or from the Hub."""
    if isinstance(path, Path):
        check_file(path)
    return path.open("rb")


def _mark(path: "Path | HubFile") -> str:
    return ImageFile(path).fingerprint() if isinstance(path, Path) else path.fingerprint()


@contextmanager
def open_parquet(path: "Path | HubFile", metadata: Any = None) -> Iterator[Any]:
    """Yield an open parquet file. Only this thread reads its bytes.

    With `pre_buffer`, threads of pyarrow read from the Python stream. If such a thread still reads when the interpreter
    ends, it aborts the process (SIGABRT, exit 134). A command that refuses a set ends at once, and so would hit that.
    """
    from pyarrow.parquet import ParquetFile  # an extra

    with open_shard(path) as stream, ParquetFile(stream, metadata=metadata, pre_buffer=False) as file:
        yield file


def read_column(file: Any, group: int, column: str) -> Any:
    """Return a column of a row group as pyarrow's ChunkedArray."""
    # The column is one range of bytes, so that threads would gain nothing.
    return file.read_row_group(group, columns=[column], use_threads=False).column(0)


@lru_cache(maxsize=1)
def _row_group(path: "Path | HubFile", column: str, group: int) -> Any:
    """Return a column of a row group. Images are read in order, so that a cache of one reads each group once."""
    with open_parquet(path, _footer(path)) as file:
        array = read_column(file, group, column).combine_chunks()
    return array.field(column.rpartition(".")[2]) if "." in column else array


@lru_cache(maxsize=8)
def _footer(path: "Path | HubFile") -> Any:
    """Return a parquet file's metadata: where the columns of each row group are."""
    from pyarrow.parquet import read_metadata  # an extra

    with open_shard(path) as stream:
        return read_metadata(stream)


Openable = ImageFile | Crop | Pixels | ParquetImage | TarImage


@dataclass(frozen=True)
class Sample:
    """One image of a sample set.

    Args:
        file: the image's name in the set.
        label: the index of its class, if that is known.
        source: the way to open the image; a tensor (C, H, W) float32 is ready for the model as it is, and one of
            (3, H, W) uint8 is red, green and blue of the model's size.
    """

    file: str
    label: int | None
    source: "Openable | Tensor"


def pixels(image: Image.Image | Array, prep: Preprocess, *, repeat: bool = False) -> bytes:
    """Return an image as a model of any number of channels sees it.

    Args:
        repeat: whether red, green and blue repeat in a model of another number of channels than 1 and 3.

    Returns:
        (H, W, C) in uint8, or in float32 from 0 to 1 if the image has more than 8 bits per channel.

    Raises:
        DataError: as `fit`, or the image has another number of channels.
    """
    channels = len(prep.mean)
    if isinstance(image, Image.Image) and channels in MODES:
        return fit(image, prep).tobytes()
    if repeat and isinstance(image, Image.Image):
        colours = image.convert("RGB").split()
        return stacked([cropped(colours[channel % 3], prep) for channel in range(channels)])
    return stacked([cropped(plane, prep) for plane in planes(image, channels)])


def fit(image: Image.Image, prep: Preprocess) -> Image.Image:
    """Resize the short side and crop the center, pixel for pixel as torchvision's Resize and CenterCrop on PIL images.

    For a crop that is no square, the image is resized as timm's ResizeKeepRatio does it: it just covers `prep.resize`.

    The image becomes RGB, or grayscale for a model of one channel, as Pillow's `convert` does it: transparency is
    dropped. Of 16-bit grayscale the high byte is taken, because Pillow would clip nearly everything to white. EXIF
    orientation is not applied, because the official evaluation (hustvl/Vim datasets.py, through torchvision's
    ImageFolder) does not apply it.

    Raises:
        DataError: the pixels have no known range, the image is so narrow that resizing would explode it, or the model
            takes no resizing and the image does not have the size of the crop.
    """
    return cropped(_as_mode(image, len(prep.mean)), prep)


def cropped(image: Image.Image, prep: Preprocess) -> Image.Image:
    """Resize the short side and crop the center, in the mode of the image; see `fit`."""
    width, height = image.size
    down, across = sides(prep.crop)
    if prep.interpolation == "none":
        if image.size != (across, down):
            raise DataError(
                f"the image is {width} x {height} pixels, expected {across} x {down}: this model takes no resizing"
            )
        return image
    if not width or not height:
        raise DataError(f"the image is {width} x {height} pixels, expected at least one")
    resized = _resized(width, height, prep.resize)
    if Image.MAX_IMAGE_PIXELS is not None and resized[0] * resized[1] > Image.MAX_IMAGE_PIXELS:
        raise DataError(f"the image is {width} x {height} pixels: too narrow to resize its short side to {prep.resize}")
    image = image.resize(resized, FILTERS[prep.interpolation])
    # Python rounds halves to even here, as in torchvision: 0.5 becomes 0, and 1.5 becomes 2.
    left, top = round((resized[0] - across) / 2), round((resized[1] - down) / 2)
    return image.crop((left, top, left + across, top + down))


def _resized(width: int, height: int, to: Size) -> tuple[int, int]:
    """Return the width and the height of an image that keeps its proportions and just covers a size."""
    if isinstance(to, int):
        long = int(to * max(width, height) / min(width, height))  # rounded down, as torchvision does
        return (to, long) if width <= height else (long, to)
    ratio = min(height / to[0], width / to[1])
    return round(width / ratio), round(height / ratio)  # to the nearest, as timm does


def enlarged(sample: Sample, prep: Preprocess, side: int) -> Image.Image:
    """Return, for people, the part of an image that a model sees, with at least `side` pixels if it may be resized.

    Raises:
        DataError: `fit` refuses the image, or the sample is a tensor and never was a picture.
    """
    if not isinstance(sample.source, Openable):
        raise DataError(f"{sample.file} is a tensor, expected an image that can be shown")
    times = 1 if prep.interpolation == "none" else -(-side // min(sides(prep.crop)))
    resize, crop = (as_size(*(times * each for each in sides(size))) for size in (prep.resize, prep.crop))
    larger = dataclasses.replace(prep, resize=resize, crop=crop)
    with sample.source.open() as image:
        if isinstance(image, Image.Image) and len(prep.mean) in MODES:
            return fit(image, larger)
        if isinstance(sample.source, Crop) and isinstance(image, Image.Image):
            return cropped(image.convert("RGB"), larger)
        return cropped(shown(planes(image, len(prep.mean))), larger)


def _as_mode(image: Image.Image, channels: int) -> Image.Image:
    if channels not in MODES:
        raise DataError(f"the model takes {channels} channels, expected 1 or 3")
    if image.mode in ("I", "F"):
        raise DataError(
            f"the image has 32 bits per pixel (mode {image.mode}), whose range is not known: expected 8 or 16 bits"
        )
    if image.mode.startswith("I;16"):  # two bytes per pixel, the low byte first except in "I;16B"
        high = 0 if image.mode == "I;16B" else 1
        image = Image.frombytes("L", image.size, image.tobytes()[high::2])
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns of the direct way, whose colours are the same
    return image.convert(MODES[channels])
