"""A file that asks for more memory than it could fill is refused before any of it exists; honest files of all kinds are
read."""

import argparse
import collections
import io
import pathlib
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from stm.checkpoint.claims import Claim, Reader
from tests.hang import HANG
from tests.unit.checkpoint.cases import State, read, refused, save
from tests.unit.checkpoint.test_pickles import Renamed, dumps

HUGE = 2 * 10**9
HEAD, END = b"\x80\x02}X\x01\x00\x00\x00a", b"s."  # {"a": ...}


def doubled(call: bytes, first: bytes, times: int) -> bytes:
    """The dict's key is `first`, then `times` times what `call` makes of the last, which is memo 0."""
    return HEAD + b"(" + first + b"q\x00" + (call + b"q\x00") * times + b"t}h\x00Ns\x86" + END


SIZE = b"\x8a\x05" + (10**10).to_bytes(5, "little")  # LONG1
STORAGE = b"ctorch\nFloatStorage\n"


def storage(count: bytes) -> bytes:
    return b"(X\x07\x00\x00\x00storage" + STORAGE + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + count + b"tQ"


ONE = storage(b"K\x01")
SCALAR = (
    b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\nX\x02\x00\x00\x00i8\x85R"
    + b"U\x08"
    + struct.pack("<q", HUGE)
    + b"tR"
)
HOOKS = b"\x89ccollections\nOrderedDict\n)R"

HOSTILE = {
    "a bytearray": dumps({"a": Renamed("builtins", "bytearray", HUGE)}),
    "a bytearray of Python 2": dumps({"a": Renamed("__builtin__", "bytearray", HUGE)}),
    "a bytearray of numpy's number": HEAD + b"cbuiltins\nbytearray\n" + SCALAR + b"\x85R" + END,
    "a bytearray from a dict": HEAD + b"cbuiltins\nbytearray\n}" + SIZE + b"NsR" + END,
    "a bytearray called by torch": HEAD
    + b"ctorch._tensor\n_rebuild_from_type_v2\n(cbuiltins\nbytearray\nctorch\nTensor\n"
    + SIZE
    + b"\x85}tR"
    + END,
    "a new bytearray": HEAD + b"cbuiltins\nbytearray\n" + SIZE + b"\x85\x81" + END,
    "a storage's class": dumps({"a": Renamed("torch.storage", "UntypedStorage", HUGE)}),
    "a tensor's class": dumps({"a": Renamed("torch", "FloatTensor", 10**5, 10**5)}),
    "numpy's dtype": dumps({"a": Renamed("numpy", "dtype", f"V{HUGE}")}),
    "numpy's number without bytes": dumps({"a": Renamed("numpy.core.multiarray", "scalar", np.dtype("float64"))}),
    "codecs": doubled(b"c_codecs\nencode\nh\x00X\x03\x00\x00\x00hex\x86R", b"U\x01a", 31),
    "paths": doubled(b"cpathlib\nPurePosixPath\nh\x00h\x00\x86R", b"X\x01\x00\x00\x00a", 31),
    "tuples": doubled(b"h\x00h\x00\x86", b")", 40),
    "deep tuples": HEAD + b"})" + b"\x85" * 10**5 + b"Ns" + END,
    "copies": HEAD + b"](" + b"K\x01" * 50_000 + b"eq\x00(" + b"cbuiltins\nset\nh\x00\x85R" * 5000 + b"t\x86" + END,
    "containers": HEAD + b"(" + b"\x8f" * 10**6 + b"t" + END,
    "an expanded tensor": HEAD
    + b"ctorch._utils\n_rebuild_tensor_v2\n("
    + ONE
    + b"K\x00"
    + SIZE
    + b"\x85K\x00\x85"
    + HOOKS
    + b"tR"
    + END,
    "an expanded tensor in a list": HEAD
    + b"ctorch._utils\n_rebuild_tensor_v2\n("
    + ONE
    + b"K\x00]"
    + SIZE
    + b"a]K\x00a"
    + HOOKS
    + b"tR"
    + END,
    "a tensor's state": HEAD + b"ctorch\nFloatTensor\n)R(" + ONE + b"K\x00" + SIZE + b"\x85K\x00\x85tb" + END,
    "a tensor without storage": dumps(
        {
            "a": Renamed(
                "torch._utils",
                "_rebuild_meta_tensor_no_storage",
                Renamed("torch", "Size"),
                (10**6, 10**6),
                (1, 1),
                False,
            )
        }
    ),
    "a quantized tensor": HEAD
    + b"ctorch._utils\n_rebuild_qtensor\n("
    + ONE
    + b"K\x00"
    + SIZE
    + b"\x85K\x01\x85(ctorch\nper_tensor_affine\nG?\xf0\x00\x00\x00\x00\x00\x00K\x00t"
    + HOOKS
    + b"tR"
    + END,
    "a storage": HEAD + storage(SIZE) + END,
    "a text": HEAD + b"X\xff\xff\xff\x7f" + END,
}


def zipped(path: Path, data: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", data)
        archive.writestr("x/version", "3\n")
        archive.writestr("x/data/0", b"\0\0\x80?")
    return path


def legacy(path: Path, data: bytes) -> Path:
    saved = io.BytesIO()
    torch.save({}, saved, _use_new_zipfile_serialization=False)
    start = saved.getvalue()
    for _ in range(3):
        start_of_rest = pickle_end(start)
        start = start[start_of_rest:]
    path.write_bytes(saved.getvalue()[: -len(start)] + data + b"\x80\x02]." + b"\0" * 8)
    return path


def pickle_end(data: bytes) -> int:
    stream = io.BytesIO(data)
    pickle.load(stream)
    return stream.tell()


CONTAINERS: dict[str, Callable[[Path, bytes], Path]] = {
    "zip": zipped,
    "deflated": lambda path, data: zipped(path, data, zipfile.ZIP_DEFLATED),
    "legacy": legacy,
}


LONG = ("containers", "copies")  # of many opcodes: they take most of the time


def hostile(folder: Path, *, long: bool = True, short: bool = True) -> list[Path]:
    """All of them as files, and zip files that claim by themselves."""
    files = [
        make(folder / f"{name}, {kind}.pth", data)
        for kind, make in CONTAINERS.items()
        for name, data in HOSTILE.items()
        if (long if name in LONG else short)
    ]
    return files + [bomb(folder)] * long + [claiming(folder)] * short


def bomb(folder: Path) -> Path:
    path = folder / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", HEAD + storage(SIZE[:2] + (10**8).to_bytes(5, "little")) + END)
        archive.writestr("x/version", "3\n")
        archive.writestr("x/data/0", bytes(4 * 10**8))
    return path


def claiming(folder: Path) -> Path:
    """A zip file whose directory gives a record two billion bytes."""
    path = zipped(folder / "claims.pth", b"\x80\x02}.")
    raw = path.read_bytes()
    at = raw.rindex(b"PK\x01\x02")  # the directory's entry of data/0: its two sizes
    path.write_bytes(raw[: at + 20] + struct.pack("<II", HUGE, HUGE) + raw[at + 28 :])
    return path


@pytest.mark.parametrize("kind", ["short", pytest.param("long", marks=pytest.mark.slow(seconds=40, search=True))])
def test_each_is_refused_by_what_it_asks_for(kind: str, tmp_path: Path) -> None:
    for path in hostile(tmp_path, long=kind == "long", short=kind == "short"):
        if path.name.startswith(("a text", "a bytearray from a dict")):  # neither is what a pickle writes
            refused(path, "its pickle is damaged")
        else:
            assert refused(path, " asks for ", "was not read").hint


PROGRAM = """
import resource, sys
from pathlib import Path
import torch
from stm.checkpoint.contents import describe
from stm.errors import CheckpointError

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 28), -1))
before = peak()
for path in sys.argv[1:]:
    try:
        describe(path)
    except CheckpointError:
        continue
    raise SystemExit(f"{path} was read")
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_none_takes_memory(tmp_path: Path) -> None:
    """All of them in one process that may take 256 MB more than it has."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, hostile(tmp_path))], capture_output=True, text=True, timeout=HANG
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100_000  # KB


def test_a_name_that_may_not_be_built_comes_first_where_the_pickle_is_damaged_as_well() -> None:
    reader = Reader(1000)
    with pytest.raises(Exception, match="nothing on the stack"):
        reader.read(io.BytesIO(b"\x80\x02cposix\nsystem\n(tR\x85\x85\x85(\x85."))
    assert reader.names == ["posix.system"]


@pytest.mark.parametrize(("held", "told"), [(10**6, False), (100, True)])
def test_the_bound_follows_from_the_file(held: int, told: bool) -> None:
    data = (
        HEAD
        + b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage(b"K\x01")
        + b"K\x00M\xe8\x03\x85K\x00\x85"
        + HOOKS
        + b"tR"
        + END
    )
    if told:
        with pytest.raises(Claim, match="a tensor of 1,000 elements"):
            Reader(held).read(io.BytesIO(data))
    else:
        Reader(held).read(io.BytesIO(data))


def test_what_trainers_keep_beside_the_weights(state: State, tmp_path: Path) -> None:
    """Optimizers, histories, lists of files and every kind of container, in every form, come through."""
    exponents = {
        number: {"step": torch.tensor(3.0), "exp_avg": torch.zeros_like(t)} for number, t in enumerate(state.values())
    }
    content = {
        "model": collections.OrderedDict(state),
        "optimizer": {"state": exponents, "param_groups": [{"lr": 1e-3, "params": list(range(len(state)))}]},
        "history": [{"epoch": epoch, "loss": 1 / (epoch + 1), "lr": [1e-3, 1e-4]} for epoch in range(2000)],
        "files": [pathlib.PurePosixPath("/data/train", f"n{number % 10}", f"{number}.JPEG") for number in range(2000)],
        "seen": set(range(5000)),
        "counts": collections.Counter("abracadabra" * 100),
        "bytes": b"\x00\xff" * 3000,
        "buffer": bytearray(b"\x00\xff" * 3000),
        "text": "é日" * 3000,
        "large": 10**300,
        "complex": 1 + 2j,
        "best": np.float64(0.5),
        "nested": ((((1,), 2), 3), [[[[]]]]),
        "args": argparse.Namespace(input_size=64, betas=(0.9, 0.999)),
        "rng": torch.get_rng_state(),
    }
    plain = save(tmp_path / "plain_midclstok.pth", content)
    with (
        zipfile.ZipFile(plain) as stored,
        zipfile.ZipFile(tmp_path / "deflated_midclstok.pth", "w", zipfile.ZIP_DEFLATED) as deflated,
    ):
        for name in stored.namelist():
            deflated.writestr(name, stored.read(name))
    old = save(tmp_path / "legacy_midclstok.pth", content, _use_new_zipfile_serialization=False)
    for path in (plain, tmp_path / "deflated_midclstok.pth", old):
        assert torch.equal(read(path).tensors["pos_embed"], state["pos_embed"])


@pytest.mark.parametrize("legacy_form", [False, True])
def test_shared_and_sliced_and_expanded_weights(state: State, tmp_path: Path, legacy_form: bool) -> None:
    """Blocks that share every tensor, slices of larger ones, and a few numbers that stand for many."""
    shared = {
        name: state[".".join(["layers", "0", *name.split(".")[2:]])] if name.startswith("layers.") else t
        for name, t in state.items()
    }
    shared["pos_embed"] = torch.cat([state["pos_embed"], state["pos_embed"]], 1)[:, : state["pos_embed"].shape[1]]
    rates = torch.arange(1.0, 1 + state["layers.0.mixer.A_log"].shape[1]).log()
    shared |= {name: rates.expand(t.shape) for name, t in shared.items() if name.endswith("_log")}
    path = save(tmp_path / "x_midclstok.pth", shared, _use_new_zipfile_serialization=not legacy_form)
    tensors = read(path, image_size=64).tensors
    assert torch.equal(tensors["pos_embed"], state["pos_embed"])
    assert torch.equal(tensors["layers.3.mixer.A_log"][1], rates.expand(tensors["layers.3.mixer.A_log"].shape[1:]))
    assert torch.equal(tensors["layers.3.mixer.in_proj.weight"], state["layers.0.mixer.in_proj.weight"])
