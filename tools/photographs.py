"""Make stm/assets/photographs/ from the wheels of scikit-learn and scikit-image.

    pip download --no-deps scikit-learn scikit-image
    python tools/photographs.py scikit_learn-*.whl scikit_image-*.whl stm/assets/photographs

Each photograph keeps its size and its whole frame; it is encoded again as a JPEG of the best quality that fits.
"""

import argparse
import io
import zipfile
from pathlib import Path

from PIL import Image

MOST_BYTES = 60_000
SOURCES = {
    "china.jpg": "sklearn/datasets/images/china.jpg",
    "chelsea.jpg": "skimage/data/chelsea.png",
    "coffee.jpg": "skimage/data/coffee.png",
}


def encode(image: Image.Image) -> tuple[int, bytes]:
    """Return the best quality whose file fits, and the file."""
    for quality in range(95, 30, -1):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True, progressive=True)
        if buffer.tell() <= MOST_BYTES:
            return quality, buffer.getvalue()
    raise SystemExit(f"{image.size[0]} x {image.size[1]} pixels do not fit into {MOST_BYTES} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path, nargs=2)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    wheels = [zipfile.ZipFile(path) for path in args.wheels]
    for name, member in SOURCES.items():
        wheel = next(wheel for wheel in wheels if member in wheel.namelist())
        image = Image.open(io.BytesIO(wheel.read(member)), formats=("JPEG", "PNG")).convert("RGB")
        quality, data = encode(image)
        (args.folder / name).write_bytes(data)
        print(f"{name}: {image.size[0]} x {image.size[1]}, quality {quality}, {len(data)} bytes")


if __name__ == "__main__":
    main()
