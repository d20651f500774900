"""Make folders of images for the proxy, a ViM of the real geometry trained on 20 classes of Tiny-ImageNet:
docs/paper.md says what it is.

    python benchmarks/proxy_images.py --train tiny-imagenet-100-train.npz --val tiny-imagenet-100-val.npz --out images/

Each archive holds `blob` (encoded images, one after the other), `offsets`, `labels` and `wnids`. Written, each with a
labels.csv:

- `images/evaluation`: 2,000 images that the proxy was never trained on. All 50 of each class of the validation archive,
  and the 50 of each class that were held out of the training archive.
- `images/calibration`: 200 of the 9,000 images that it was trained on, for choosing schedules.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

CLASSES, HELD_OUT, CALIBRATION = 20, 50, 10  # the last two per class


class Archive(NamedTuple):
    """Encoded images: image i is the bytes offsets[i] to offsets[i + 1] of `blob`; `labels` has n values."""

    name: str
    blob: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray

    @classmethod
    def read(cls, path: Path, name: str) -> "Archive":
        with np.load(path) as data:
            return cls(name, data["blob"], data["offsets"], data["labels"])

    def of(self, label: int) -> np.ndarray:
        """Return the indices of a class's images."""
        return np.flatnonzero(self.labels == label)

    def image(self, index: int) -> bytes:
        return self.blob[self.offsets[index] : self.offsets[index + 1]].tobytes()


class Selected(NamedTuple):
    """An image: its archive, its index there, and its class among the proxy's twenty."""

    archive: Archive
    index: int
    label: int


def split(train: Archive, val: Archive) -> dict[str, list[Selected]]:
    """Return the proxy's own split, with the seeds that it was trained with."""
    # numpy's legacy generators: they draw the same in every version of numpy, which the new ones do not promise.
    classes = sorted(np.random.RandomState(0).choice(100, CLASSES, replace=False))
    generator = np.random.RandomState(1)
    evaluation, calibration = [], []
    for label, original in enumerate(classes):
        mixed = train.of(original)[generator.permutation(len(train.of(original)))]
        held_out, trained_on = mixed[:HELD_OUT], mixed[HELD_OUT:]
        evaluation += [Selected(val, index, label) for index in val.of(original)]
        evaluation += [Selected(train, index, label) for index in held_out]
        calibration += [Selected(train, index, label) for index in trained_on[:CALIBRATION]]
    return {"evaluation": evaluation, "calibration": calibration}


def rows(folder: Path, images: list[Selected]) -> Iterator[tuple[str, int]]:
    """Write the images, and yield the row of labels.csv of each."""
    for archive, index, label in images:
        name = f"{archive.name}-{index:05}.webp"
        (folder / name).write_bytes(archive.image(index))
        yield name, label


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("train", "val"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="NPZ")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    options = parser.parse_args()
    for name, images in split(Archive.read(options.train, "train"), Archive.read(options.val, "val")).items():
        folder = options.out / name
        folder.mkdir(parents=True)
        with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(("filename", "label"))
            writer.writerows(rows(folder, images))
        print(f"{len(images)} images in {folder}")


if __name__ == "__main__":
    main()
