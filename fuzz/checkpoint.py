"""Checkpoints of torch.save: zip files, pickles of old versions, documents with anything in them.

Each is read twice, with torch's tensors and with headers (`stm.checkpoint.headers`). Both ways must say the same.
"""

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fuzz import containers, small
from fuzz.harness import Fault, judge
from stm.checkpoint.contents import Contents, describe
from stm.checkpoint.official import read
from stm.errors import StmError


def run(data: bytes, folder: Path) -> None:
    path = folder / small.OFFICIAL
    path.write_bytes(data[1:])
    averaged = data[:1] == b"1"
    refusals: list[str] = []

    def told(reading: Callable[..., Any]) -> Any:
        try:
            return reading(path, ema=averaged)
        except StmError as error:
            refusals.append(repr((type(error), vars(error))))
            raise

    checkpoint = judge(lambda: told(read), len(data))
    described = judge(lambda: told(describe), len(data))
    contents = checkpoint and Contents(
        **{each.name: getattr(checkpoint, each.name) for each in dataclasses.fields(Contents)}
    )
    if described != contents or len({*refusals}) > 1:
        raise Fault(f"torch reads {contents or refusals[0]}, and the headers say {described or refusals[-1]}")
    if checkpoint is not None and not all(bool(torch.isfinite(v).all()) for v in checkpoint.tensors.values()):
        raise Fault("a checkpoint that was read has weights that are no numbers")


def mutate(data: bytes, draw: random.Random) -> bytes:
    return data[:1] + (containers.zipped if data[1:3] == b"PK" else containers.pickle)(data[1:], draw)
