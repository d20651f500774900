"""Write the seeds of all targets: `python -m fuzz.seeds`. Inputs that were faults lie beside them: `fault-*`."""

import argparse
import collections
import gzip
import io
import json
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from fuzz import small
from fuzz.harness import corpus
from fuzz.tables import SWEPT, good_records
from fuzz.weights import shards
from stm.artifact.folder import CONFIG, WEIGHTS
from stm.codec import encode
from stm.commands.recipe_file import Choice, Merges, dumps
from stm.data.labels import imagenet
from stm.findings import SweepRow
from stm.measure.flops import Flops
from stm.merging.schedule import Step
from stm.options import EvalOptions, MergeOptions
from stm.recipe import Fit, Tried


def main() -> None:
    """Write every seed anew. All but the legacy pickles, which hold addresses of memory, stay the same bytes."""
    for target, seeds in (
        ("config", _config),
        ("weights", _weights),
        ("checkpoint", _checkpoints),
        ("tables", _tables),
        ("images", _images),
    ):
        folder = corpus(target)
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in seeds().items():
            (folder / name).write_bytes(data)
            print(f"{len(data):8,} {folder / name}")


def _config() -> dict[str, bytes]:
    merged, dense = (small.document(small.files(compressed)[CONFIG]).encode() for compressed in (True, False))
    old = json.loads(merged)
    del old["recipe"]["fit"]
    old["protection"]["initial_state"] = False
    beside = json.dumps({"id2label": dict(enumerate(small.NAMES)), "architectures": ["Vim"]}).encode()
    return {
        "merged": b"0" + merged,
        "dense": b"0" + dense,
        "before-release": b"0" + json.dumps(old).encode(),
        "folder": b"1" + merged,
        "beside": b"2" + beside,
        "recipe": b"3" + merged,
        "recipe-file": b"4" + dumps(_choice()).encode(),
        "recipe-aliases": b"4recipe_version: 1\na: &a [x, x]\nb: &b [*a, *a]\nsaving: no\nrate: 010\n",
    }


def _choice() -> Choice:
    fit = Fit(
        data="drawn pictures", n=6, judges=2, sha256="ab" * 32, tried=(Tried(cut="flat", step_scale=0.5, kl=1e-5),)
    )
    return Choice(
        merge=MergeOptions(saving=0.3, weights="hsp", hsp="static"),
        images=EvalOptions(data="no", limit=3, seed=1),
        max_drop=0.01,
        export=("official",),
        merges=Merges(tokens=5, class_token=2, steps=(Step(1, ((0, 1),)),), step_scale=0.75, source="1e3", fit=fit),
    )


def _weights() -> dict[str, bytes]:
    state = {name: tensor.contiguous() for name, tensor in small.official().items()}
    half = {name: tensor.to(torch.float16) for name, tensor in state.items()}
    index, first, _ = shards()
    return {
        "whole": b"0" + save(state),
        "half": b"0" + save(half, metadata={"format": "pt"}),
        "index": b"1" + index,
        "shard": b"2" + first,
        "folder": b"3" + small.files()[WEIGHTS],
    }


def _saved(document: Any, **options: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.pth")
        torch.save(document, path, **options)
        return path.read_bytes()


def _checkpoints() -> dict[str, bytes]:
    state = small.official()
    args = argparse.Namespace(model="vim_tiny_patch2_4", input_size=8, num_classes=10, output_dir=Path("out"))
    trained = {
        "model": state,
        "args": args,
        "epoch": 3,
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": np.float64(0.1)}]},
    }
    nested = {
        "state_dict": collections.OrderedDict((f"module.{name}", v) for name, v in state.items()),
        "arch": "vim",
        "classes": list(small.NAMES),
    }
    some = {name: state[name] for name in list(state)[:3]}
    return {
        "bare": b"0" + _saved(state),
        "trained": b"0" + _saved(trained),
        "averaged": b"1" + _saved({"model": some, "model_ema": {"module": state}}),
        "nested": b"0" + _saved(nested),
        "parameters": b"0" + _saved({name: torch.nn.Parameter(v) for name, v in state.items()}),
        "legacy": b"0" + _saved({"model": state}, _use_new_zipfile_serialization=False),
        "legacy-args": b"0"
        + _saved({"model": some, "args": args, "x": {1, 2}, "y": (1.5, b"z")}, _use_new_zipfile_serialization=False),
    }


def _row() -> SweepRow:
    return SweepRow(
        data="set",
        n=2,
        top1=0.5,
        top1_ci=(0.1, 0.9),
        top5=1.0,
        top5_ci=(0.5, 1.0),
        method="stm",
        rate=0.4,
        static=True,
        tokens_per_block=(17, 9),
        tokens_left=9,
        flops=Flops(paper=1, honest=2, paper_saving=0.1, honest_saving=0.2),
    )


def _tables() -> dict[str, bytes]:
    names = [*small.NAMES]
    cells = [json.dumps({"key": key, "row": encode(_row())}, sort_keys=True) for key in ("one", "two")]
    beside = {"model": "a" * 64, "reference": None, "data": "d" * 64, "limit": None, "seed": 0}
    beside["preprocessing"] = encode(SWEPT.preprocessing)
    wnids = imagenet().wnids
    rows = [f"ILSVRC2012_val_{n:08},{wnids[n]} 85 1 499 272" for n in (1, 2, 3)]
    return {
        "labels.csv": b'0filename,label\na.png,class 3\nb.png,class_4\n"c.png",Class 5\n',
        "numbers.csv": b"0filename,label\na.png,3\nb.png,4\nc.png,0\n",
        "labels.tsv": b"1image\tlabel\na.png\t3\nb.png\t4\nc.png\t5\n",
        "metadata.jsonl": b'2{"file_name": "a.png", "label": 3}\n{"file_name": "b.png", "label": 4}\n'
        b'{"file_name": "c.png", "label": 0}\n',
        "val_annotations.txt": b"3a.png\t1\t0\t0\t62\t62\nb.png\t2\t0\t0\t1\t1\nc.png\t3\t0\t0\t1\t1\n",
        "records.csv": b"4" + good_records(),
        "records.csv.json": b"5" + json.dumps(beside, indent=2, sort_keys=True).encode(),
        "cells.jsonl": b"6" + "\n".join([*cells, ""]).encode(),
        "sweep-of.json": b"7" + json.dumps(encode(SWEPT)).encode(),
        "names.txt": b"8" + "\n".join(names).encode(),
        "numbered.txt": b"8" + "".join(f"{i}: {name}\n" for i, name in enumerate(names)).encode(),
        "names.json": b"9" + json.dumps(dict(enumerate(names))).encode(),
        "order.json": b"9" + json.dumps({"classes": names}).encode(),
        "names.csv": b"aindex,name\n" + "".join(f"{i},{name}\n" for i, name in enumerate(names)).encode(),
        "kaggle.csv": b"bImageId,PredictionString\n" + "\n".join([*rows, ""]).encode(),
        "val.txt": b"c" + "".join(f"ILSVRC2012_val_{n:08}.JPEG {n * 65}\n" for n in (1, 2, 3)).encode(),
        "synsets.txt": b"d" + "\n".join(wnids[:40]).encode(),
        "ground-truth.txt": b"e1\n2\n3\n",
        "meta.mat": b"f" + _meta(),
    }


def _meta() -> bytes:
    import scipy.io

    fields = ["ILSVRC2012_ID", "WNID", "words"]
    synsets = np.empty((4, 1), dtype=[(field, object) for field in fields])
    for row, wnid in enumerate(imagenet().wnids[:4]):
        synsets[row, 0] = (float(row + 1), wnid, "words")
    made = io.BytesIO()
    scipy.io.savemat(made, {"synsets": synsets}, do_compression=True)
    return b"MATLAB 5.0 MAT-file".ljust(116) + made.getvalue()[116:]  # without the time


def _picture(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    image = Image.open(io.BytesIO(small.png())).convert(mode)
    made = io.BytesIO()
    image.save(made, kind, **options)
    return made.getvalue()


def _images() -> dict[str, bytes]:
    made = {
        f"{kind.lower()}": b"0" + _picture(kind)
        for kind in ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF", "JPEG2000", "TGA", "DDS", "ICO", "SGI", "PCX")
    }
    made |= {
        "gif": b"0" + _picture("GIF", "P"),
        "palette.png": b"0" + _picture("PNG", "P"),
        "16bit.png": b"0" + _picture("PNG", "I;16"),
    }
    made |= {
        "one-bit.png": b"0" + _picture("PNG", "1"),
        "cmyk.tif": b"0" + _picture("TIFF", "CMYK"),
        "deflate.tif": b"0" + _picture("TIFF", compression="tiff_adobe_deflate"),
    }
    for name, values in (
        ("bytes", np.arange(192, dtype=np.uint8)),
        ("floats", np.linspace(0, 1, 192, dtype=np.float32)),
    ):
        held = io.BytesIO()
        np.save(held, values.reshape(8, 8, 3))
        made[f"{name}.npy"] = b"1" + held.getvalue()
    made["bands.tif"] = b"2" + _bands()
    made |= _parquet()
    made["shard.tar"] = b"4" + _tar(
        {"a.png": small.png(), "a.cls": b"3", "b.png": small.png(1), "b.json": b'{"label": 4}'}
    )
    made["set.tar.gz"] = b"5" + gzip.compress(_tar({"set/a.png": b"x", "set/b/c.png": b"y"}), mtime=0)
    return made


def _tar(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.pax_headers = {"comment": "x"}
            tar.addfile(info, io.BytesIO(content))
    return made.getvalue()[: -(-made.tell() // 512) * 512][:10240]


def _bands() -> bytes:
    """Return a TIFF of five bands: its first page's tags, then its pixels."""
    pixels = np.arange(8 * 8 * 5, dtype=np.uint8).tobytes()
    tags = [
        (256, 3, 8),
        (257, 3, 8),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 1),
        (277, 3, 5),
        (278, 3, 8),
        (284, 3, 1),
        (339, 3, 1),
    ]
    count = len(tags) + 2
    at = 8 + 2 + 12 * count + 4
    entries = sorted([*tags, (273, 4, at), (279, 4, len(pixels))])
    body = b"".join(
        tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + (1).to_bytes(4, "little") + value.to_bytes(4, "little")
        for tag, kind, value in entries
    )
    return b"II*\0" + (8).to_bytes(4, "little") + count.to_bytes(2, "little") + body + bytes(4) + pixels


def _parquet() -> dict[str, bytes]:
    import pyarrow as pa
    from pyarrow import parquet

    columns: dict[str, Callable[[], Any]] = {
        "index": lambda: pa.array([3, 4], pa.int64()),
        "name": lambda: pa.array(["class 3", None]),
        "dictionary": lambda: pa.array(["class 3", "class 4"]).dictionary_encode(),
        "floating": lambda: pa.array([3.0, float("nan")]),
    }
    made = {}
    for name, labels in columns.items():
        images = pa.array([{"bytes": small.png(), "path": "a.png"}, {"bytes": small.png(1), "path": None}])
        held = io.BytesIO()
        parquet.write_table(
            pa.table({"image": images, "label": labels()}), held, compression="none", write_statistics=False
        )
        made[f"{name}.parquet"] = b"3" + held.getvalue()
    return made


if __name__ == "__main__":
    main()
