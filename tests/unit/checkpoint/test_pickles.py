"""Pickles: what trainers store is read; anything else is refused by the name of what it wants, and nothing in it
runs."""

import argparse
import io
import pathlib
import pickle
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stm.checkpoint.official import read
from tests.unit.checkpoint.cases import MINI, OFFICIAL, State, refused, save


class Renamed:
    """Pickles as a call of `module.name` with `args`, whether or not that exists here."""

    def __init__(self, module: str, name: str, *args: Any) -> None:
        self.module, self.name, self.args = module, name, args


def dumps(content: Any, protocol: int = 2) -> bytes:
    """Pickle in pure Python, so that a `Renamed` is written by the name it bears."""

    class Pickler(pickle._Pickler):
        def save(self, obj: Any, save_persistent_id: bool = True) -> None:
            if isinstance(obj, Renamed):
                self.write(f"c{obj.module}\n{obj.name}\n".encode())
                self.save(obj.args)
                self.write(b"R")
            else:
                super().save(obj, save_persistent_id)

    out = io.BytesIO()
    Pickler(out, protocol).dump(content)
    return out.getvalue()


def repickled(source: Path, target: Path, content: Any) -> Path:
    """The zip checkpoint `source` with another pickle in it."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, dumps(content) if name.endswith("/data.pkl") else old.read(name))
    return target


def test_settings_that_a_trainer_stores(state: State, tmp_path: Path) -> None:
    """Paths of any system and numpy scalars, beside the tensors; paths become pure ones."""
    args = argparse.Namespace(
        model=OFFICIAL,
        input_size=64,
        output_dir=pathlib.PosixPath("/out"),
        data=pathlib.PurePosixPath("a/b"),
        windows=pathlib.PureWindowsPath("C:/x"),
        lr=np.float32(1e-3),
        best=np.float64(76.1),
        seed=np.int64(3),
        flag=np.bool_(True),
        dtype=np.dtype("float32"),
        betas=(0.9, 0.999),
        nested=argparse.Namespace(a=None),
    )
    content = {"model": state, "args": args, "epoch": 3, "best": np.float64(0.5)}
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        assert read(save(tmp_path / "x.pth", content, **options)).model.image_size == 64


@pytest.mark.parametrize(
    "stored",
    [
        Renamed("pathlib", "PosixPath", "/", "out"),
        Renamed("pathlib._local", "PosixPath", "/", "out"),
        Renamed("pathlib", "WindowsPath", "C:\\", "out"),
        Renamed("pathlib._local", "PureWindowsPath", "out"),
        Renamed("numpy.core.multiarray", "scalar", np.dtype("float64"), b"\0" * 8),
        Renamed("numpy._core.multiarray", "scalar", np.dtype("int32"), b"\1\0\0\0"),
    ],
    ids=lambda stored: f"{stored.module}.{stored.name}",
)
def test_settings_by_the_names_of_other_versions(tmp_path: Path, stored: Renamed) -> None:
    """The names that Python 3.13's pathlib, Windows and numpy 1 write; tensors are left out, so the refusal comes after
    the pickle."""
    base = save(tmp_path / "base.pth", {})
    refused(repickled(base, tmp_path / "x.pth", {"model": {}, "stored": stored}), "holds no tensors under 'model'")


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "it-ran"


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("container", ["plain", "zip", "legacy"])
def test_a_payload_is_named_and_does_not_run(
    tmp_path: Path, canary: Path, state: State, container: str, protocol: int
) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            import os

            return os.system, (f"touch {canary}",)

    path = tmp_path / "payload.pth"
    if container == "plain":
        path.write_bytes(pickle.dumps({"model": Payload()}, protocol))
    else:
        save(
            path,
            {"model": state, "x": Payload()},
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=container == "zip",
        )
    error = refused(path, "wants posix.system (os.system)", "not read")
    assert "state_dict" in str(error.hint)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Payload(), protocol))  # the payload is live: run, it leaves its mark
    assert canary.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("torch.hub", "load"),
        ("models_mamba", "VisionMamba"),
        ("numpy.core.multiarray", "_reconstruct"),
    ],
)
def test_anything_else_is_refused_by_its_name(tmp_path: Path, module: str, name: str) -> None:
    base = save(tmp_path / "base.pth", {})
    refused(repickled(base, tmp_path / "x.pth", {"model": Renamed(module, name, "1")}), f"wants {module}.{name}")


def test_a_whole_module_is_refused_by_its_name(tmp_path: Path) -> None:
    refused(save(tmp_path / "module.pth", torch.nn.Linear(2, 2)), "wants ", "torch.nn.modules.linear.Linear")


def test_a_name_that_comes_out_of_the_memo(tmp_path: Path) -> None:
    """Protocol 4 may take both parts of a name from what was pickled before."""
    data = (
        pickle.PROTO
        + b"\x04"
        + b"".join(pickle.SHORT_BINUNICODE + bytes([len(t)]) + t + pickle.MEMOIZE for t in (b"posix", b"system"))
    )
    data += pickle.POP * 2 + pickle.BINGET + b"\0" + pickle.BINGET + b"\1" + pickle.STACK_GLOBAL + pickle.STOP
    (tmp_path / "x.pth").write_bytes(data)
    refused(tmp_path / "x.pth", "wants posix.system")


def test_nothing_is_allowed_for_others() -> None:
    """The allow-list is taken back, and what the caller had allowed stays."""
    with torch.serialization.safe_globals([types.SimpleNamespace, (argparse.Namespace, "argparse.Namespace")]):
        before = set(torch.serialization.get_safe_globals())
        read(MINI)
        assert set(torch.serialization.get_safe_globals()) == before
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_reading_prints_nothing_and_leaves_the_file(capfd: pytest.CaptureFixture[str]) -> None:
    before = MINI.stat()
    read(MINI)
    assert capfd.readouterr() == ("", "")
    assert (MINI.stat().st_mtime_ns, MINI.stat().st_size) == (before.st_mtime_ns, before.st_size)
