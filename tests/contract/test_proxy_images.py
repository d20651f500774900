"""The proxy's images: what chooses a schedule is never in what confirms it, and each image has its own label."""

import csv
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "proxy_images.py"
TRAIN, VAL = 62, 2  # images a class


def _archive(path: Path, each: int) -> None:
    """100 classes; an image is its archive, its class and its number."""
    images = [f"{path.stem} {label} {number}".encode() for label in range(100) for number in range(each)]
    np.savez(
        path,
        blob=np.frombuffer(b"".join(images), np.uint8),
        offsets=np.cumsum([0, *map(len, images)]),
        labels=np.repeat(np.arange(100), each),
    )


def test_evaluation_and_calibration_share_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, each in (("train", TRAIN), ("val", VAL)):
        _archive(tmp_path / f"{name}.npz", each)
    arguments = [f"--train={tmp_path / 'train.npz'}", f"--val={tmp_path / 'val.npz'}", f"--out={tmp_path / 'images'}"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")

    classes = [2, 7, 8, 13, 16, 22, 24, 26, 30, 33, 53, 54, 55, 73, 75, 78, 86, 92, 93, 95]  # the proxy's own notes
    seen: dict[str, set[bytes]] = {}
    for folder, each in (("evaluation", 50 + VAL), ("calibration", 10)):
        with (tmp_path / "images" / folder / "labels.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        images = {row["filename"]: (tmp_path / "images" / folder / row["filename"]).read_bytes() for row in rows}
        assert len(images) == len(set(images.values())) == 20 * each
        assert all(int(images[row["filename"]].split()[1]) == classes[int(row["label"])] for row in rows)
        seen[folder] = set(images.values())
    assert not seen["evaluation"] & seen["calibration"]
