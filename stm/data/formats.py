"""Which files are images, and the one place that opens one. Pillow alone: the processes that decode images do not
import torch."""

import errno
import io
import os
import re
import stat
from functools import cache
from pathlib import Path

from PIL import Image

# The formats that are decoded, with the suffixes that Pillow knows them by: those that Pillow's own code decodes in
# this process. EPS and PS run Ghostscript, WMF and EMF the system's drawing, GRIB, HDF5 and BUFR whatever was
# registered for them; IPTC, ICNS, BLP, FPX and MIC open another image inside; and what has neither a signature nor a
# checked header would make pictures of noise. MPO is what phones write as .jpg: Pillow's JPEG decoder takes its first
# picture. TGA has no signature and is therefore tried last.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "PPM": (".pbm", ".pgm", ".ppm", ".pnm", ".pfm"),
    "TIFF": (".tif", ".tiff"),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    "AVIF": (".avif", ".avifs"),
    "QOI": (".qoi",),
    "PSD": (".psd",),
    "DDS": (".dds",),
    "ICO": (".ico",),
    "SUN": (".ras",),
    "SGI": (".bw", ".rgb", ".rgba", ".sgi"),
    "PCX": (".pcx",),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
}
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
HEAD = 16  # bytes that a signature may need
# What the formats begin with that are known by it. Only files without a suffix are judged by this: raw photographs
# (.dng, .nef) begin as TIFF does and hold a thumbnail first, and a copy called a.jpg~ or a.jpg.part is not one more
# image.
SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|GIF8[79]a|BM....\0\0\0\0|P[1-6]["
    rb" \t\r\n#]|II\*\0|MM\0\*|II\+\0|MM\0\+"
    rb"|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51|....ftypavi[fs]|qoif|8BPS\0\x01|DDS \x7c\0\0\0",
    re.DOTALL,
)
_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}


def is_image(path: Path) -> bool:
    """Whether a file is taken for an image: by its suffix, or without one by its first bytes.

    An image by its suffix need not be one that can be read; where it is opened, that is said.
    """
    if path.suffix:
        return path.suffix.lower() in SUFFIXES
    try:
        check_file(path)
        with path.open("rb") as stream:
            return SIGNATURE.match(stream.read(HEAD)) is not None
    except OSError:  # without a suffix and without bytes, nothing says that it is one
        return False


def open_image(source: Path | bytes) -> Image.Image:
    """Open an image of one of `FORMATS` alone, whatever its name says; its pixels are decoded when they are wanted.

    Raises:
        OSError: it cannot be read, is no plain file, or (UnidentifiedImageError) is of no such format.
    """
    if isinstance(source, bytes):
        return Image.open(io.BytesIO(source), formats=_formats())
    check_file(source)
    return Image.open(source, formats=_formats())


@cache
def _formats() -> tuple[str, ...]:
    """Those that this Pillow has at all: AVIF came with 11.3."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def check_file(path: Path) -> None:
    """Refuse what would hang a reader: who opens a named pipe waits for ever for someone to write, and a device has no
    end.

    Raises:
        OSError: it is not there, or no plain file; `strerror` says what. A folder passes, as opening it fails at once.
    """
    kind = stat.S_IFMT(path.stat().st_mode)
    if kind not in (stat.S_IFREG, stat.S_IFDIR):
        raise OSError(errno.EINVAL, f"{_KINDS.get(kind, 'a device')}, expected a file", os.fspath(path))
