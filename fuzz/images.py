"""Images of every format, arrays, and shards of images: parquet, tar, and archives that are unpacked."""

import random
import shutil
from pathlib import Path
from typing import Any

from fuzz import containers, small
from fuzz import mutate as change
from fuzz.harness import Fault, check_text, judge
from stm.config import Config
from stm.data.decode import Decoded, decode
from stm.data.images import ImageFile, Sample
from stm.data.streams import open_stream
from stm.data.unpack import Limits, unpack

PIXELS = 89_478_485  # that an image may have: Pillow's MAX_IMAGE_PIXELS
# What decoding may take, whatever the file's size is: a few bytes of the file can be an image of one colour. Four bytes
# for a pixel, in the image, its copy in another mode, and what resizing needs.
MOST = 3 * 4 * PIXELS + (96 << 20)


def run(data: bytes, folder: Path) -> None:
    kind, content = data[:1], data[1:]
    size = len(content)
    match kind:
        case b"0" | b"1" | b"2":
            path = folder / ("image", "array.npy", "bands.tif")[int(kind)]
            path.write_bytes(content)
            config = small.config(channels=5 if kind == b"2" else 3)
            _check([Sample("image", 0, ImageFile(path))], config, size)
        case b"3" | b"4":
            path = folder / ("shard.parquet" if kind == b"3" else "shard.tar")
            path.write_bytes(content)
            config = small.config()
            held = judge(lambda: open_stream(str(path), config=config), size)
            judge(lambda: open_stream(str(path), config=config, need_labels=False), size)
            for sample in () if held is None else held.samples:
                if type(sample.label) is not int or not 0 <= sample.label < 10:
                    raise Fault(f"{sample.file} has class {sample.label!r}")
            if held is not None:
                for text in held.skipped:
                    judge(lambda text=text: text.encode("utf-8", "surrogateescape"), size)
                _check(list(held.samples[:4]), config, size)
        case _:
            archive, to = folder / "set.tar.gz", folder / "set"
            archive.write_bytes(content)
            judge(lambda: unpack(archive, to, limits=Limits(100, 1 << 20, 1 << 18)), size)
            for path in to.rglob("*"):
                if path.is_symlink() or not (path.is_file() or path.is_dir()):
                    raise Fault(f"{path} was unpacked")
            shutil.rmtree(to, ignore_errors=True)


def _check(samples: list[Any], config: Config, size: int) -> None:
    """Decode samples: each is all pixels that the model takes, twice the same, or one sentence."""
    prep = config.preprocessing
    shape = 8 * 8 * config.model.in_chans
    for sample in samples:
        first: list[Decoded] | None = judge(lambda sample=sample: decode([sample], prep), size, most=MOST)
        if first is None:
            raise Fault("an image ended the run")
        match first[0]:
            case str(text):
                check_text(text)
            case bytes(pixels) if len(pixels) not in (shape, 4 * shape):
                raise Fault(f"{len(pixels)} bytes of pixels, expected {shape}")
            case pixels if decode([sample], prep) != [pixels]:
                raise Fault("an image has other pixels when it is decoded again")


def mutate(data: bytes, draw: random.Random) -> bytes:
    kind, content = data[:1], data[1:]
    if kind == b"0":
        return kind + (containers.png if content[:4] == b"\x89PNG" else change.raw)(content, draw)
    if kind == b"4":
        return kind + containers.tarred(content, draw)
    if kind == b"5":
        return kind + containers.gzipped(content, draw)
    return kind + (containers.npy if kind == b"1" else change.raw)(content, draw)
