"""Tell which files are images, and open them: no other module does.

Uses Pillow alone, as processes that decode do not import torch.
"""

import errno
import io
import os
import re
import stat
from functools import cache
from pathlib import Path

from PIL import Image

# The formats that are decoded, with the suffixes by which Pillow knows them. Pillow's own code decodes all of them in
# this process. Left out are:
# - EPS and PS, which run Ghostscript; WMF and EMF, which run the system's drawing; GRIB, HDF5 and BUFR, which run
#   whatever was registered for them;
# - IPTC, ICNS, BLP, FPX and MIC, which open another image inside, of any format;
# - formats with neither a signature nor a checked header, which would make pictures of noise.
# Phones write MPO under the name .jpg: Pillow's JPEG decoder takes its first picture. TGA has no signature, so it is
# tried last.
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
# The first bytes of the formats that have a signature. Only files without a suffix are judged by them. Raw photographs
# (.dng, .nef) begin as TIFF does, and hold a thumbnail first. A copy called a.jpg~ or a.jpg.part is not one more image.
SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|GIF8[79]a|BM....\0\0\0\0|P[1-6]["
    rb" \t\r\n#]|II\*\0|MM\0\*|II\+\0|MM\0\+"
    rb"|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51|....ftypavi[fs]|qoif|8BPS\0\x01|DDS \x7c\0\0\0",
    re.DOTALL,
)
_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}


def is_image(path: Path) -> bool:
    """Return whether a file is taken for an image: by its suffix or, without a suffix, by its first bytes.

    A file with an image's suffix may still be unreadable. Whoever opens it reports that.
    """
    if path.suffix:
        return path.suffix.lower() in SUFFIXES
    try:
        check_file(path)
        with path.open("rb") as stream:
            return SIGNATURE.match(stream.read(HEAD)) is not None
    except OSError:  # without a suffix and without bytes, nothing shows that it is an image
        return False


def open_image(source: Path | bytes) -> Image.Image:
    """Open an image of one of `FORMATS`, whatever its name is. Its pixels are decoded when they are used.

    Args:
        source: a file, or the encoded bytes.

    Raises:
        OSError: the file cannot be read, is no plain file, or (UnidentifiedImageError) is of no such format.
    """
    if isinstance(source, bytes):
        return Image.open(io.BytesIO(source), formats=_formats())
    check_file(source)
    return Image.open(source, formats=_formats())


@cache
def _formats() -> tuple[str, ...]:
    """Return the formats that this Pillow has: AVIF came with 11.3."""
    Image.init()  # fills `Image.OPEN`, which until then holds at most the commonest formats
    return tuple(name for name in FORMATS if name in Image.OPEN)


def check_file(path: Path) -> None:
    """Refuse a file that would hang its reader.

    Opening a named pipe waits until somebody writes to it, and a device has no end.

    Raises:
        OSError: the file does not exist, or is no plain file; `strerror` names its kind. A folder passes, because
            opening it fails at once.
    """
    kind = stat.S_IFMT(path.stat().st_mode)
    if kind not in (stat.S_IFREG, stat.S_IFDIR):
        raise OSError(errno.EINVAL, f"{_KINDS.get(kind, 'a device')}, expected a file", os.fspath(path))
