"""Checkpoints of torch.save: zip files, pickles of old versions, documents with anything in them."""

import random
from pathlib import Path

import torch

from fuzz import containers, small
from fuzz.harness import Fault, judge
from stm.checkpoint.official import read


def run(data: bytes, folder: Path) -> None:
    path = folder / small.OFFICIAL
    path.write_bytes(data[1:])
    averaged = data[:1] == b"1"
    checkpoint = judge(lambda: read(path, ema=averaged), len(data))
    if checkpoint is not None and not all(bool(torch.isfinite(v).all()) for v in checkpoint.tensors.values()):
        raise Fault("a checkpoint that was read has weights that are no numbers")


def mutate(data: bytes, draw: random.Random) -> bytes:
    return data[:1] + (containers.zipped if data[1:3] == b"PK" else containers.pickle)(data[1:], draw)
