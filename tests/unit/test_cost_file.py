"""Costs that are kept: read as they were written, computed again if they cannot be read, and never in anybody's way."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stm.artifact.written import noting, unkept
from stm.merging import cost_file
from stm.merging.cost_file import Effects

NAME = "0" * 64


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "stm" / "costs"


def effects(probes: int = 2, seed: int = 0) -> Effects:
    g = torch.Generator().manual_seed(seed)
    cost = torch.rand(3, 5, 17, generator=g, dtype=torch.float64)
    return Effects(cost, torch.rand(probes, 3, 5, 17, generator=g))


def same(found: Effects | None, expected: Effects) -> bool:
    return (
        found is not None
        and torch.equal(found.cost, expected.cost)
        and torch.equal(found.probes, expected.probes)
        and found.cost.dtype == torch.float64
        and found.probes.dtype == torch.float32
    )


@pytest.mark.parametrize("probes", [0, 2])
def test_what_is_written_is_read(cache: Path, probes: int) -> None:
    assert cost_file.read(NAME) is None
    cost_file.write(NAME, effects(probes))
    assert same(cost_file.read(NAME), effects(probes))
    assert [path.name for path in cache.glob("*.safetensors")] == [f"{NAME}.safetensors"]


def test_tensors_that_are_no_blocks_of_memory_are_written_too(cache: Path) -> None:
    whole = effects()
    cost_file.write(NAME, Effects(whole.cost.mT.contiguous().mT, whole.probes))
    assert same(cost_file.read(NAME), whole)


def test_a_second_writing_replaces_the_first(cache: Path) -> None:
    cost_file.write(NAME, effects())
    cost_file.write(NAME, effects(seed=1))
    assert same(cost_file.read(NAME), effects(seed=1))


@pytest.mark.parametrize("content", [b"", b"short", b"\0" * 400, b"\xff" * 400])
def test_a_file_that_is_none_is_no_costs(cache: Path, content: bytes) -> None:
    cost_file.write(NAME, effects())
    (cache / f"{NAME}.safetensors").write_bytes(content)
    assert cost_file.read(NAME) is None
    cost_file.write(NAME, effects())
    assert same(cost_file.read(NAME), effects())


def test_a_file_that_was_cut_short_is_no_costs(cache: Path) -> None:
    cost_file.write(NAME, effects())
    path = cache / f"{NAME}.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert cost_file.read(NAME) is None


def test_a_file_of_other_tensors_is_no_costs(cache: Path) -> None:
    cache.mkdir(parents=True)
    save_file({"cost": torch.zeros(2)}, cache / f"{NAME}.safetensors")
    assert cost_file.read(NAME) is None


def not_kept(effects: Effects) -> str:
    """What is said of costs that could not be written."""
    with noting():
        cost_file.write(NAME, effects)
        (sentence,) = unkept()
    assert sentence.startswith("the costs of the fit cannot be kept in ")
    return sentence


def test_a_folder_in_the_files_place_is_no_costs(cache: Path) -> None:
    (cache / f"{NAME}.safetensors").mkdir(parents=True)
    assert cost_file.read(NAME) is None
    assert "(Is a directory)" in not_kept(effects())


@pytest.mark.parametrize("place", ["cache", "cache/stm", "cache/stm/costs"])
def test_a_cache_that_cannot_be_written_is_no_fault(cache: Path, tmp_path: Path, place: str) -> None:
    """A file stands where a folder should be, which stops the super-user too."""
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text("in the way")
    assert "exists)" in (said := not_kept(effects())) or "Not a directory" in said
    assert cost_file.read(NAME) is None
    assert (tmp_path / place).read_text() == "in the way"


def test_a_home_that_is_not_known_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    assert "a cache folder (Could not determine home directory.)" in not_kept(effects())
    assert cost_file.read(NAME) is None


def test_a_cache_that_can_only_be_read_is_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    cost_file.write(NAME, effects())
    monkeypatch.setattr(os, "utime", denied)
    assert same(cost_file.read(NAME), effects())


def test_a_failed_writing_leaves_nothing_half(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cost_file.write(NAME, effects())

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert str(cache) + " (No space left on device): the next" in not_kept(effects(seed=1))
    assert same(cost_file.read(NAME), effects())
    assert [path.name for path in cache.iterdir() if path.suffix == ".safetensors"] == [f"{NAME}.safetensors"]


def test_the_oldest_go_first_and_reading_counts(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [str(number) * 64 for number in range(4)]
    for age, name in enumerate(names[:3]):
        cost_file.write(name, effects())
        os.utime(cache / f"{name}.safetensors", (1000 + age, 1000 + age))
    assert cost_file.read(names[0]) is not None  # the oldest was used now
    size = (cache / f"{names[0]}.safetensors").stat().st_size
    monkeypatch.setattr(cost_file, "_MOST_BYTES", 3 * size)
    cost_file.write(names[3], effects())
    assert sorted(path.stem for path in cache.glob("*.safetensors")) == sorted([names[0], names[2], names[3]])


def test_the_name_is_of_all_that_decides_the_numbers() -> None:
    decisive = {"model": "a", "images": "b", "kinds": {"crops": 3}, "seed": 0}
    name = cost_file.key(**decisive)
    assert len(name) == 64 and name == cost_file.key(**dict(reversed(decisive.items())))
    for key, other in (("model", "c"), ("images", "c"), ("kinds", {"crops": 4}), ("seed", 1)):
        assert cost_file.key(**{**decisive, key: other}) != name
