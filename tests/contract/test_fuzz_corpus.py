"""The seeds of fuzz/, and every input that once was a fault, keep the rule of fuzz/harness.py.

`make fuzz` searches for more. This needs no atheris.
"""

import importlib
import random
import sys
from pathlib import Path

import pytest

from fuzz import containers, harness
from stm.errors import DataError, StmError

pytest.importorskip("pyarrow")  # some seeds are parquet
TARGETS = ("config", "weights", "checkpoint", "tables", "images")
SEEDS = [(target, path.name) for target in TARGETS for path in sorted(harness.corpus(target).iterdir())]


@pytest.mark.parametrize("target", TARGETS)
def test_every_seed_keeps_the_rule(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "SECONDS", float("inf"))  # a busy machine fails no test
    for path in sorted(harness.corpus(target).iterdir()):
        try:
            importlib.import_module(f"fuzz.{target}").run(path.read_bytes(), tmp_path)
        except harness.Fault as fault:
            raise AssertionError(f"{target}/{path.name}: {fault}") from None


@pytest.mark.parametrize("target", TARGETS)
def test_mutators_change_every_seed(target: str) -> None:
    """Each format's mutator parses the seeds of its format: otherwise only bytes would be changed, without a word."""
    module = importlib.import_module(f"fuzz.{target}")
    for path in sorted(harness.corpus(target).iterdir()):
        data = path.read_bytes()
        if not path.name.startswith("fault-"):
            assert any(module.mutate(data, random.Random(seed)) != data for seed in range(4)), path.name


@pytest.mark.parametrize(
    "call",
    [
        lambda: {}["absent"],
        lambda: (_ for _ in ()).throw(StmError("")),
        lambda: (_ for _ in ()).throw(DataError("x" * 5000)),
        lambda: (_ for _ in ()).throw(DataError("'NoneType' object is not subscriptable")),
        lambda: [b"x" * (300 << 20)],
        lambda: __import__("subprocess").run(["true"], check=True),
        lambda: Path("stm-fuzz").mkdir(),
    ],
    ids=["exception", "empty", "long", "internal", "memory", "process", "outside"],
)
def test_the_rule_can_be_broken(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(harness._watch, "inside", ["/nowhere"])
    with pytest.raises(harness.Fault):
        harness.judge(lambda: _and_clean(call, tmp_path), 10)


def _and_clean(call, folder: Path) -> object:
    try:
        return call()
    finally:
        for path in folder.iterdir():
            path.rmdir()


def test_a_hang_breaks_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "SECONDS", -1.0)
    with pytest.raises(harness.Fault, match="of the processor"):
        harness.judge(lambda: None, 10)


def test_the_corpus_is_small() -> None:
    sizes = [path.stat().st_size for target in TARGETS for path in harness.corpus(target).iterdir()]
    assert sum(sizes) < 1 << 20
    assert max(sizes) <= harness.LARGEST


def test_mutated_pickles_name_the_canary() -> None:
    """What a target watches for is what the mutators plant."""
    assert any(harness.CANARY in name for name in containers.NAMES)


def test_what_an_import_keeps_is_no_write_of_the_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_module_of_this_test.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(harness._watch, "inside", ["/nowhere"])
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    harness.judge(lambda: importlib.import_module("a_module_of_this_test"), 0)
    assert [path.name for path in tmp_path.iterdir()] == ["a_module_of_this_test.py"]
    assert not sys.dont_write_bytecode
