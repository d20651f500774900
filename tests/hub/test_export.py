"""`stm export`: the official layout and back. The official file is hustvl/Vim's own, of the golden outputs."""

import errno
import json
import shlex
from pathlib import Path

import pytest
import torch
from torch import Tensor

import stm as library
from tests.hub.conftest import MINI, Stm


def states(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The golden file's weights and those of an exported one, read as hustvl/Vim reads them: what is under "model"."""
    ours = torch.load(path, weights_only=True)
    assert ours.keys() == {"model"}
    theirs: dict[str, Tensor] = torch.load(MINI, weights_only=False)["model"]
    return theirs, ours["model"]


def same(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> bool:
    assert ours.keys() == theirs.keys()
    return all(ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_there_and_back(stm: Stm, tmp_path: Path) -> None:
    assert stm("export", MINI, "--format", "folder", "--out", "dense").code == 0
    run = stm("export", "dense", "--format", "official", "--json")
    report = json.loads(run.out)
    theirs, ours = states(tmp_path / "dense.pth")
    assert same(theirs, ours), "equal keys and values"
    assert (report["output"], report["format"], report["tensors"], report["notes"]) == (
        "dense.pth",
        "official",
        len(theirs),
        [],
    )
    assert (
        stm("compress", "dense.pth", "--image-size", "64", "--class-token", "middle", "--no-eval", "--quiet").code == 0
    )


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--class-token", "head", "--no-divide-out", "--mean", "0.5", "--std", "0.1,0.2,0.3", "--crop-ratio", "0.9"),
        ("--no-divide-out", "--crop-ratio", "1", "--interpolation", "nearest"),
    ],
)
def test_the_next_step_reads_the_same_model(stm: Stm, tmp_path: Path, options: tuple[str, ...]) -> None:
    """An official file holds tensors alone: what else the model is goes into the command."""
    run = stm("export", MINI, "--out", "out.pth", *options)
    (command,) = (line.removeprefix("Next: ") for line in run.err.splitlines() if line.startswith("Next: "))
    first, again = (
        json.loads(stm(*words, "--json").out)["config"]
        for words in (("info", MINI, *options), shlex.split(command)[1:])
    )
    assert (again["model"], again["preprocessing"]) == (first["model"], first["preprocessing"])


def test_of_a_compressed_folder_the_plan_is_lost(stm: Stm, folder: Path, tmp_path: Path) -> None:
    run = stm("export", folder)
    assert run.code == 0 and "the merge plan is not part of it" in run.err
    assert same(*states(tmp_path / "mini-stm40.pth"))
    assert stm("export", folder, "--format", "folder", "--out", "dense").code == 0
    dense = library.load(tmp_path / "dense", device="cpu")
    assert dense.plan is None and dense.config.recipe is None
    assert not same(dense.state_dict(), {name: tensor + 1 for name, tensor in dense.state_dict().items()})


def test_what_is_there_stays_without_force(stm: Stm, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out.pth").write_text("mine")
    run = stm("export", folder, "--out", "out.pth")
    assert run.code == 2 and "out.pth already exists" in run.err and (tmp_path / "out.pth").read_text() == "mine"
    assert stm("export", folder, "--out", "out.pth", "--force", "--quiet").out == "out.pth\n"
    assert same(*states(tmp_path / "out.pth"))
    run = stm("export", folder, "--out", tmp_path)
    assert run.code == 2 and "is a folder" in run.err
    run = stm("export", folder, "--out", "none/out.pth")
    assert run.code == 2 and "the folder none does not exist" in run.err
    assert "'onnx2' is not one of official, folder" in stm("export", folder, "--format", "onnx2").err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.pth"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("PytorchStreamWriter failed writing file\nand more"), "PytorchStreamWriter failed writing file"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
    ],
)
def test_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    from stm.checkpoint import write as checkpoint_write
    from stm.errors import CheckpointError

    (tmp_path / "out.pth").write_text("mine")

    def full(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=f"out.pth cannot be written: {reason}(\n|$)"):
        checkpoint_write.write(tmp_path / "out.pth", {})
    assert [path.name for path in tmp_path.iterdir()] == ["out.pth"] and (tmp_path / "out.pth").read_text() == "mine"
