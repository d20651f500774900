"""safetensors: a checkpoint, an index with its shards, and the weights of a model's folder."""

import hashlib
import json
import random
from pathlib import Path

import torch
from safetensors.torch import save

from fuzz import containers, small
from fuzz import mutate as change
from fuzz.harness import Fault, judge
from stm.artifact import folder as artifact
from stm.artifact.folder import CONFIG, WEIGHTS
from stm.checkpoint import file, official
from stm.loading import open_model
from stm.options import ModelOptions

INDEX, FIRST, SECOND = (
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
)
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def shards() -> tuple[bytes, bytes, bytes]:
    """Return an index and its two shards."""
    names = sorted(small.official())
    parts = names[::2], names[1::2]
    held = [save({name: small.official()[name].contiguous() for name in part}) for part in parts]
    where = {name: shard for part, shard in zip(parts, (FIRST, SECOND), strict=True) for name in part}
    return json.dumps({"metadata": {}, "weight_map": where}).encode(), *held


_GOOD = shards()


def run(data: bytes, folder: Path) -> None:
    kind, content = data[:1], data[1:]
    place = folder / "model"
    place.mkdir(exist_ok=True)
    (place / CONFIG).unlink(missing_ok=True)
    size = len(content) + sum(map(len, _GOOD))
    match kind:
        case b"0":
            path = place / "vim_midclstok_div2.safetensors"
            path.write_bytes(content)
            loaded = judge(lambda: file.load(path), size)
            if loaded is not None and isinstance(loaded.document, dict):
                _check_values(loaded.document, content)
            judge(lambda: official.read(path), size)
        case b"1" | b"2":
            parts = (content, *_GOOD[1:]) if kind == b"1" else (_GOOD[0], content, _GOOD[2])
            for name, part in zip((INDEX, FIRST, SECOND), parts, strict=True):
                (place / name).write_bytes(part)
            judge(lambda: official.read(place / INDEX, class_token="middle", divide_out=True), size)
            judge(lambda: file.shards(place / INDEX), size)
        case _:
            document = json.loads(small.files()[CONFIG])
            document["files"] = {WEIGHTS: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
            (place / CONFIG).write_text(json.dumps(document))
            (place / WEIGHTS).write_bytes(content)
            judge(lambda: artifact.describe(place), size)
            judge(lambda: open_model(place, ModelOptions(device="cpu", backend="reference")), size)


def _check_values(tensors: dict[str, torch.Tensor], content: bytes) -> None:
    """Compare each tensor with the bytes that the header gives it."""
    length = int.from_bytes(content[:8], "little")
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    for name, tensor in tensors.items():
        if header[name]["dtype"] in _SIZES:
            start, end = header[name]["data_offsets"]
            if tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() != rest[start:end]:
                raise Fault(f"{name} has other values than the file")


def mutate(data: bytes, draw: random.Random) -> bytes:
    return data[:1] + (change.json_bytes if data[:1] == b"1" else containers.safetensors)(data[1:], draw)
