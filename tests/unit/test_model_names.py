"""What MODEL means: one table of names, on the command line and in Python."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import stm
from stm.errors import CheckpointError, UsageError
from stm.hub.aliases import ALIASES
from stm.loading import open_model
from stm.model_names import Embedded, File, Folder, HubFile, HubRepo, ModelName, is_repo, model_of, name_of, parse
from stm.options import ModelOptions
from tests.cli.conftest import MINI

TI = ALIASES["vim-ti"]


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: `small/` and `vim-s/` are there, and a checkpoint `a/b.pth`."""
    monkeypatch.chdir(tmp_path)
    for name in ("small", "vim-s", "a"):
        Path(name).mkdir()
    Path("a/b.pth").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("model", "options", "meant"),
    [
        ("vim-digits", {}, Embedded()),
        ("vim-ti", {}, HubFile(TI.repo, TI.file, None, TI.license)),
        ("vim-ti", {"file": "x.pth", "revision": "r"}, HubFile(TI.repo, "x.pth", "r", TI.license)),
        ("vim-s", {}, HubFile(ALIASES["vim-s"].repo, ALIASES["vim-s"].file, None, TI.license)),
        ("./vim-s", {}, Folder(Path("./vim-s"))),
        (Path("vim-s"), {}, Folder(Path("vim-s"))),
        ("small", {}, Folder(Path("small"))),
        ("a/b.pth", {}, File(Path("a/b.pth"))),
        ("a/missing.safetensors", {}, File(Path("a/missing.safetensors"))),
        (Path("a/missing"), {}, File(Path("a/missing"))),
        ("user/repo", {}, HubRepo("user/repo", None)),
        ("user/repo", {"revision": "r"}, HubRepo("user/repo", "r")),
        ("user/repo", {"file": "x.pth"}, HubFile("user/repo", "x.pth", None)),
        ("user/repo/x.pth", {}, HubFile("user/repo", "x.pth", None, path="user/repo/x.pth")),
        ("user/repo/in/x.bin", {"revision": "r"}, HubFile("user/repo", "in/x.bin", "r", path="user/repo/in/x.bin")),
        ("a/missing/x.pth", {}, File(Path("a/missing/x.pth"))),
        ("./user/repo/x.pth", {}, File(Path("./user/repo/x.pth"))),
        ("user/repo/../x.pth", {}, File(Path("user/repo/../x.pth"))),
        (Path("user/repo/x.pth"), {}, File(Path("user/repo/x.pth"))),
        ("hf://user/repo", {}, HubRepo("user/repo", None)),
        ("hf://user/repo@r/deep/x.pth", {}, HubFile("user/repo", "deep/x.pth", "r")),
    ],
)
def test_the_table(model: str | Path, options: dict[str, Any], meant: ModelName) -> None:
    assert parse(model, ModelOptions(**options)) == meant


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        ("vim-digits", {"revision": "r"}, "--revision was given, but vim-digits is the embedded model"),
        ("vim-digits", {"image_size": 64}, "--image-size was given, but vim-digits is the embedded model"),
        ("small", {"divide_out": False}, "--no-divide-out was given, but small is a folder"),
        ("a/b.pth", {"file": "x"}, "--file was given, but a/b.pth is a file"),
        ("user/repo/x.pth", {"file": "y"}, "a file in a repository, which does not take it"),
        ("hf://user/repo/x.pth", {"file": "y"}, "a link that says its file, which does not take it"),
    ],
)
def test_no_option_is_ignored(model: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        parse(model, ModelOptions(**options))


def test_a_name_that_means_nothing_lists_what_there_is() -> None:
    with pytest.raises(CheckpointError, match="vim-xl is neither a file or folder here nor an alias") as caught:
        stm.load("vim-xl")
    assert caught.value.hint is not None and "vim-digits, vim-ti" in caught.value.hint


def test_names_for_people() -> None:
    assert [name_of(each) for each in ("a/b.pth", "small/", "hf://user/repo/x.pth")] == ["b", "small", "x"]
    assert (model_of("vim-s"), model_of("small"), model_of("vim-digits")) == ("./vim-s", "small", "./vim-digits")
    assert is_repo("user/repo") and not is_repo("a/b/c") and not is_repo("name")


@pytest.mark.parametrize("door", [stm.load, stm.load_checkpoint])
def test_python_reads_a_checkpoint_as_the_command_does(door: Callable[..., stm.ViM]) -> None:
    """`stm.load` had no way to a checkpoint; it and `load_checkpoint` make the model of the command's options."""
    model = door(MINI, image_size=64, mean=0.5, std=(0.2, 0.3, 0.4), device="cpu")
    options = ModelOptions(image_size=64, mean=(0.5,), std=(0.2, 0.3, 0.4), device="cpu")
    other = open_model(str(MINI), options)
    assert model.config == other.config
    assert model.config.preprocessing.mean == (0.5, 0.5, 0.5) and model.config.preprocessing.std == (0.2, 0.3, 0.4)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
