"""A model's folder: round trips, and every refusal with its sentence. Failures while saving are in
test_artifact_failures.py."""

import dataclasses
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stm import __version__
from stm.artifact import folder as artifact
from stm.config import Config, FileInfo, ModelConfig, Preprocess, Source, dense_schedule
from stm.config_file import dumps
from stm.errors import ArtifactError, UsageError

ROOT = Path(__file__).resolve().parents[2]
MODEL = ModelConfig(image_size=8, patch=4, stride=4, d_model=4, depth=2, d_state=2, dt_rank=1)
CONFIG = Config(model=MODEL, num_classes=3, schedule=dense_schedule(MODEL), preprocessing=Preprocess(resize=8, crop=8))
CARD = "# a model\n"


def tensors() -> dict[str, Tensor]:
    """Of every kind that a folder holds. The names need not be a model's: whether it takes them, the model says."""
    g = torch.Generator().manual_seed(0)
    return {
        "head.weight": torch.randn(3, 4, generator=g).bfloat16(),
        "cls_token": torch.randn(1, 1, 4, generator=g),
        "odd": torch.randn(7, generator=g).half(),
        "plan.3.weight": torch.randn(5, generator=g),
        "turned": torch.randn(4, 3, generator=g).T,
        "learned": torch.nn.Parameter(torch.randn(2, generator=g)),
        "one": torch.tensor(-0.0),
        "none": torch.zeros(0, 3),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    artifact.write(tmp_path / "out", CONFIG, tensors(), CARD)
    return tmp_path / "out"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_what_is_read_is_what_was_written(folder: Path) -> None:
    config, found = artifact.read(folder)
    assert {path.name for path in folder.iterdir()} == set(artifact.FILES) - {artifact.RESULTS}
    assert found.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert (
            found[name]
            .view(torch.uint8 if tensor.dim() else torch.int32)
            .equal(tensor.detach().contiguous().view(torch.uint8 if tensor.dim() else torch.int32))
        ), name
    weights = (folder / "model.safetensors").read_bytes()
    files = {"model.safetensors": FileInfo(sha256=hashlib.sha256(weights).hexdigest(), bytes=len(weights))}
    assert config == dataclasses.replace(CONFIG, files=files, stm_version=__version__)
    assert (folder / "README.md").read_text() == CARD
    assert artifact.read_config(folder) == config


def test_write_returns_what_was_written(tmp_path: Path) -> None:
    assert artifact.write(tmp_path / "out", CONFIG, tensors(), CARD) == artifact.read_config(tmp_path / "out")


def test_the_size_is_known_before(folder: Path) -> None:
    meta = {name: tensor.to("meta") for name, tensor in tensors().items()}
    assert artifact.weights_size(meta) == (folder / "model.safetensors").stat().st_size


def test_a_model_may_be_written_over_the_folder_that_it_was_read_from(folder: Path) -> None:
    config, found = artifact.read(folder)  # mapped from the file that is replaced
    before = snapshot(folder)
    artifact.write(folder, config, found, CARD, force=True)
    assert snapshot(folder) == before
    assert found["cls_token"].equal(tensors()["cls_token"])


def test_saving_copies_one_tensor_at_most(tmp_path: Path) -> None:
    """Peak memory while writing 8 x 8 MiB, in a process of its own: less than two of the tensors on top of what was
    there."""
    code = """
import resource, sys, torch
from pathlib import Path
from stm.artifact import folder as artifact
torch.set_num_threads(1)
weights = {str(i): torch.ones(2 << 20) for i in range(8)}
artifact._write_weights(Path(sys.argv[1], "small"), {"x": torch.ones(2 << 20)})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
artifact._write_weights(Path(sys.argv[1], "all"), weights)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=environment(), check=True
    )
    grown = int(run.stdout) * (1 if sys.platform == "darwin" else 1024)
    assert grown < 2 * 8 << 20


# Refused before anything is written


def test_an_output_that_exists_is_refused(folder: Path) -> None:
    before = snapshot(folder)
    for attempt in (lambda: artifact.check_output(folder), lambda: artifact.write(folder, CONFIG, tensors(), CARD)):
        with pytest.raises(UsageError, match="out already exists"):
            attempt()
    assert snapshot(folder) == before
    artifact.check_output(folder, force=True)
    artifact.check_output(folder.parent / "new" / "folder")
    assert snapshot(folder.parent) == {f"out/{name}": data for name, data in before.items()}


@pytest.mark.parametrize("config", [None, "{}", '{"format": "pt"}', "[]", "not json", '{"model_type": "vit"}'])
def test_force_replaces_no_other_programs_folder(tmp_path: Path, config: str | None) -> None:
    """A folder of transformers has the very names of ours."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.safetensors").write_bytes(b"theirs")
    if config is not None:
        (out / "config.json").write_text(config)
    before = snapshot(tmp_path)
    with pytest.raises(UsageError, match=r"out holds no model that stm wrote \(config.json does not say so\)"):
        artifact.check_output(out, force=True)
    assert snapshot(tmp_path) == before


def test_force_replaces_a_damaged_folder_of_ours_and_an_empty_one(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "README.md").unlink()
    (tmp_path / "empty").mkdir()
    for out in (folder, tmp_path / "empty"):
        artifact.write(out, CONFIG, tensors(), CARD, force=True)
        artifact.read(out)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_folder_is_written_that_could_not_be_read(tmp_path: Path, value: float) -> None:
    with pytest.raises(ArtifactError, match=r"NaN or infinity in 1 of 8 tensors \(plan.3.weight\)"):
        artifact.write(tmp_path / "a" / "out", CONFIG, tensors() | {"plan.3.weight": torch.tensor([1.0, value])}, CARD)
    assert list(tmp_path.iterdir()) == []


def test_text_that_is_not_unicode_is_named(tmp_path: Path) -> None:
    """A file name that is not UTF-8 reaches Python as lone surrogates."""
    config = dataclasses.replace(CONFIG, source=Source(file="vim-\udcff.pth"))
    with pytest.raises(ArtifactError, match=r"config.json cannot hold .*vim-"):
        artifact.write(tmp_path / "out", config, tensors(), CARD)
    assert list(tmp_path.iterdir()) == []


# Refused when read


def break_weights(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (
        (folder / "model.safetensors").write_bytes(change((folder / "model.safetensors").read_bytes())) and None
    )


def break_config(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / "config.json").read_text()
        assert old in text
        (folder / "config.json").write_text(text.replace(old, new, 1))

    return change


def written_by_others(data: bytes) -> Callable[[Path], None]:
    """Weights that are no safetensors, with a config that vouches for them."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(data)
        info = FileInfo(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
        (folder / "config.json").write_text(
            dumps(dataclasses.replace(CONFIG, files={"model.safetensors": info}, stm_version="0"))
        )

    return change


def other_files(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        files = dict.fromkeys(names, FileInfo(sha256="0", bytes=0))
        (folder / "config.json").write_text(dumps(dataclasses.replace(CONFIG, files=files, stm_version="0")))

    return change


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "config.json").unlink(), "out has no config.json: it is not a folder that stm wrote"),
        (lambda folder: (folder / "model.safetensors").unlink(), "out has no model.safetensors"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe{"), "config.json cannot be read: .*utf-8"),
        (lambda folder: (folder / "config.json").write_text(""), "config.json is not valid JSON"),
        (
            break_config('"schema_version": 1', '"schema_version": 2'),
            "config.json: schema_version is 2, this stm reads 1 to 1",
        ),
        (break_config('"num_classes": 3', '"num_klasses": 3'), "config.json: unknown key num_klasses"),
        (break_weights(lambda data: data[:-1]), r"model.safetensors has \d+ bytes, expected the \d+ that were written"),
        (break_weights(lambda data: b""), "model.safetensors has 0 bytes"),
        (
            break_weights(lambda data: data[:-1] + bytes([data[-1] ^ 1])),
            (
                r"model.safetensors is not the file that was written: its SHA-256 is [0-9a-f]{12}\.\.\., expected"
                r" [0-9a-f]{12}\.\.\."
            ),
        ),
        (written_by_others(b"text"), "model.safetensors cannot be read: .*header"),
        (written_by_others(b"\xff" * 8), "model.safetensors cannot be read: .*header"),
        (written_by_others((2).to_bytes(8, "little") + b"{}"), None),
        (other_files(), r"config.json: files names \[\], expected exactly model.safetensors"),
        (other_files("model.safetensors", "../../etc/passwd"), "config.json: files names .*passwd"),
    ],
)
def test_a_damaged_folder_is_refused(folder: Path, damage: Callable[[Path], object], says: str | None) -> None:
    damage(folder)
    if says is None:
        assert artifact.read(folder)[1] == {}
        return
    with pytest.raises(ArtifactError, match=says) as caught:
        artifact.read(folder)
    assert str(folder) in caught.value.message


def test_a_truncated_file_is_refused_wherever_it_ends(folder: Path) -> None:
    """Also where the config was made for the truncated file, so that safetensors itself has to notice."""
    data = (folder / "model.safetensors").read_bytes()
    for end in (0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1):
        written_by_others(data[:end])(folder)
        with pytest.raises(ArtifactError, match=r"model.safetensors cannot be read"):
            artifact.read(folder)


def test_a_git_lfs_pointer_is_recognised(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ArtifactError) as caught:
        artifact.read(folder)
    assert "git lfs pull" in str(caught.value.hint)


def test_no_folder_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "weights").mkdir()
    for name, says in (
        ("none", "there is no folder .*none"),
        ("file", "file is a file, expected a folder"),
        ("file/x", "there is no folder"),
    ):
        with pytest.raises(ArtifactError, match=says):
            artifact.read(tmp_path / name)
        with pytest.raises(ArtifactError, match=says):
            artifact.read_config(tmp_path / name)
    (tmp_path / "weights" / "config.json").mkdir()
    with pytest.raises(ArtifactError, match=r"config.json cannot be read: .*directory"):
        artifact.read(tmp_path / "weights")


def test_a_folder_that_a_kill_moved_away_is_read_where_it_is(folder: Path) -> None:
    artifact.write(folder.with_name(".out.stm-tmp-0123abcd"), CONFIG, {"x": torch.ones(1)}, "new")
    folder.rename(folder.with_name(".out.stm-old-0123abcd"))
    assert artifact.is_model(folder)
    assert artifact.read(folder)[1].keys() == tensors().keys()
    with pytest.raises(UsageError, match="already exists"):
        artifact.check_output(folder)
    assert {path.name for path in folder.parent.iterdir()} == {"out"}


def test_is_model(folder: Path, tmp_path: Path) -> None:
    assert artifact.is_model(folder)
    assert not artifact.is_model(tmp_path)
    assert not artifact.is_model(tmp_path / "none")
    assert not artifact.is_model(folder / "config.json")
