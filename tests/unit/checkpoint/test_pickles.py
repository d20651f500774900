"""Pickles: what trainers store is read; anything else is refused by the name of what it wants, and nothing in it
runs."""

import argparse
import collections
import datetime
import decimal
import enum
import functools
import importlib
import io
import pathlib
import pickle
import sys
import types
import uuid
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.checkpoint.cases import MINI, OFFICIAL, State, read, refused, save


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


def honest() -> dict[str, Any]:
    """What trainers leave beside the weights: of numpy, the standard library and a config's own classes."""
    return {
        "array": np.arange(6.0).reshape(2, 3),
        "rng": np.random.RandomState(0).get_state(),
        "when": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        "lasted": datetime.timedelta(1),
        "counts": collections.defaultdict(int, {"a": 1}),
        "history": collections.defaultdict(list, {"loss": [1.0]}),
        "recent": collections.deque([1.0, 2.0], maxlen=5),
        "ordered": collections.OrderedDict(a=1),
        "norm": functools.partial(Config, eps=1e-5),
        "config": Config(a=Config(b=[1, 2])),
        "listed": Config(a=[Config()]),
        "plain": Plain(),
        "kind": Kind.A,
        "class": Plain,
        "number": decimal.Decimal("1.5"),
        "id": uuid.UUID(int=1),
    }


class Config(dict):  # type: ignore[type-arg]
    """As yacs, easydict and mmcv have it: a dict with attributes."""

    def __init__(self, *args: Any, **items: Any) -> None:
        super().__init__(*args, **items)
        self.__dict__["frozen"] = True


class Plain:
    """As omegaconf has it: an object with a state."""

    def __init__(self) -> None:
        self.content = {"a": 1}


class Kind(enum.Enum):
    A = 1


@pytest.mark.parametrize("name", honest())
@pytest.mark.parametrize("zipped", [True, False])
def test_what_honest_trainers_leave_is_left_out(state: State, tmp_path: Path, name: str, zipped: bool) -> None:
    content = {"model": state, name: honest()[name], "args": argparse.Namespace(input_size=64, model=OFFICIAL)}
    path = save(tmp_path / "x.pth", content, _use_new_zipfile_serialization=zipped)
    got = read(path)
    assert torch.equal(got.tensors["norm_f.weight"], state["norm_f.weight"])
    assert got.model.image_size == 64


def test_what_is_left_out_is_listed(state: State, tmp_path: Path) -> None:
    path = save(tmp_path / "x_midclstok.pth", {"model": state, "when": datetime.date(2026, 1, 1)})
    assert any("datetime.date" in note for note in read(path, image_size=64).notes)


@pytest.mark.parametrize("module", ["honest_module", "unlikely.to.exist"])
def test_nothing_is_imported_or_called(state: State, tmp_path: Path, module: str, monkeypatch: Any) -> None:
    """A module of that name lies where Python would find it, and leaves a mark if anything in it runs."""
    folder = tmp_path / "path"
    folder.mkdir()
    mark = tmp_path / "imported"
    source = f"open({str(mark)!r}, 'w')\ndef make(*a): open({str(mark)!r}, 'w')\n"
    (folder / "honest_module.py").write_text(source)
    monkeypatch.syspath_prepend(str(folder))
    base = save(tmp_path / "base.pth", state)
    content = {"stored": Renamed(module, "make", "x"), "deep": [Renamed(module, "Make.inner", Renamed(module, "x"))]}
    before = set(sys.modules)
    refused(repickled(base, tmp_path / "x.pth", {"model": {}, **content}), f"wants {module}.make")
    assert not mark.exists() and module not in set(sys.modules) - before


@pytest.mark.parametrize(
    "stored",
    [
        Renamed("numpy.core.multiarray", "_reconstruct", 1),
        Renamed("somebody.models", "build"),
    ],
    ids=["numpy", "model"],
)
@pytest.mark.parametrize("place", ["model", "cls_token", "layers.0.mixer.A_log"])
def test_a_value_made_of_an_unknown_name_is_never_a_weight(tmp_path: Path, stored: Renamed, place: str) -> None:
    content = {"model": stored} if place == "model" else {"model": {place: stored}}
    refused(repickled(save(tmp_path / "base.pth", {}), tmp_path / "x.pth", content), f"wants {stored.module}")


def test_weights_inside_an_unknown_container_are_not_taken(state: State, tmp_path: Path) -> None:
    refused(save(tmp_path / "x_midclstok.pth", {"model": Config(state)}), "wants ", "Config", image_size=64)


@pytest.mark.parametrize(
    "opcodes",
    [
        b"cmod\nName\n)R(U\x01ad.",  # no such opcode there
        b"cmod\nName\n)R)R.",  # what a stand-in made is called
        b"cmod\nName\n)R]a.",  # it is appended to
        b"cmod\nName\n)RcC\nD\nb.",  # its state is a class
        b"cmod\nName\n(U\x07storagecmod\nX\nU\x010U\x03cpuK\x01tQ.",  # it is the type of a storage
        b"ctorch._utils\n_rebuild_parameter\n(cmod\nName\n\x89N}tR.",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cmod\nName\ncmod\nT\n)}tR.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(cmod\nName\n)RK\x00)))\x89}tR.",
    ],
)
def test_stand_ins_in_places_where_no_pickler_puts_one(tmp_path: Path, opcodes: bytes) -> None:
    base = save(tmp_path / "base.pth", {})
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(base) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, b"\x80\x02" + opcodes if name.endswith("/data.pkl") else old.read(name))
    refused(path, "wants mod.Name")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("subprocess", "Popen"),
        ("builtins", "exec"),
        ("operator", "attrgetter"),
        ("runpy", "run_path"),
    ],
)
def test_what_could_run_something_is_refused_beside_good_weights_too(
    state: State, tmp_path: Path, module: str, name: str
) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return getattr(importlib.import_module(module), name), ("1",)

    path = save(tmp_path / "x_midclstok.pth", {"model": state, "x": Payload()})
    refused(path, "wants ", name, "not read", image_size=64)


def test_the_stand_ins_names_are_taken_back(state: State, tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    read(save(tmp_path / "x_midclstok.pth", {"model": state, "x": Plain()}), image_size=64)
    assert set(torch.serialization.get_safe_globals()) == before
