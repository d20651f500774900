"""What a model on the Hub may be called, and what is recorded of where it came from."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stm.hub.aliases import ALIASES
from tests.hang import HANG
from tests.hub.conftest import MINI, ROOT, SECRET, Run, Stm
from tests.hub.server import Fault, Hub, Repo

CARD = b"---\nlicense: mit\ndatasets:\n- someone/pictures\n---\n# A model\n"


@pytest.fixture
def repo(hub: Hub, mini: bytes) -> Repo:
    """A repository as people make them, with one checkpoint."""
    hub.repos["owner/vim"] = Repo({"weights/vim.pth": mini, "README.md": CARD, "log.txt": b"."})
    return hub.repos["owner/vim"]


def source(run: Run) -> dict[str, str]:
    assert run.code == 0, run.err
    found: dict[str, str] = json.loads(run.out)["source"]
    return found


def test_every_way_to_name_a_checkpoint(hub: Hub, repo: Repo, stm: Stm) -> None:
    commit = repo.refs["main"]
    found = source(stm("info", "owner/vim", "--json"))
    assert (found["repo"], found["file"], found["revision"], found["license"]) == (
        "owner/vim",
        "vim.pth",
        commit,
        "mit",
    )
    for words in (
        ("owner/vim", "--file", "weights/vim.pth"),
        ("owner/vim", "--revision", commit),
        ("hf://owner/vim",),
        ("hf://owner/vim/weights/vim.pth",),
        (f"hf://owner/vim@{commit}/weights/vim.pth",),
        (f"{hub.url}/owner/vim",),
        (f"{hub.url}/owner/vim/resolve/main/weights/vim.pth?download=true",),
        (f"{hub.url}/owner/vim/blob/{commit}/weights/vim.pth",),
        ("hf://owner/vim", "--file", "weights/vim.pth"),
        ("owner/vim/weights/vim.pth",),
    ):
        assert source(stm("info", *words, "--json")) == found, words
    run = stm("info", "owner/no/vim.pth")
    assert run.code == 1 and "owner/no/vim.pth is no file here, and on the Hub owner/no was not found" in run.err


def test_an_error_names_the_file_of_the_repository(hub: Hub, stm: Stm) -> None:
    """And no path in the cache, which nobody typed: with torch and without."""
    hub.repos["owner/run"] = Repo({"a/best.pth": b"PK\x03\x04 and no archive"})
    for command in ("info", "compress"):
        run = stm(command, "owner/run", "--file", "a/best.pth")
        assert run.code == 1 and run.err.startswith("Error: owner/run/a/best.pth is cut off or damaged"), run.err


def test_the_class_names_beside_somebodys_weights(hub: Hub, mini: bytes, stm: Stm) -> None:
    names = {str(index): f"class {index}" for index in range(10)}
    config = json.dumps({"model_type": "vim", "id2label": names}).encode()
    hub.repos["owner/trainer"] = Repo({"a/pytorch_model.bin": mini, "a/config.json": config, "optimizer.pt": b"."})
    for words in (("owner/trainer",), ("owner/trainer/a/pytorch_model.bin",)):
        run = stm("info", *words, "--json")
        assert json.loads(run.out)["config"]["label_names"] == list(names.values()), run.err


def test_an_alias(hub: Hub, mini: bytes, stm: Stm) -> None:
    alias = ALIASES["vim-ti"]
    assert {each["name"]: each["cached"] for each in json.loads(stm("models", "--json").out)["models"]} == {
        name: name == "vim-digits" for name in ("vim-digits", *ALIASES)
    }
    hub.repos[alias.repo] = Repo({alias.file: mini, "other.pth": b""})
    found = source(stm("info", "vim-ti", "--json"))
    assert (found["repo"], found["file"], found["license"]) == (alias.repo, alias.file, "apache-2.0"), (
        "the license of the table"
    )
    listed = {each["name"]: each for each in json.loads(stm("models", "--json").out)["models"]}
    assert (listed["vim-ti"]["cached"], listed["vim-ti"]["bytes"], listed["vim-ti"]["top1"]) == (True, len(mini), 0.761)
    assert not listed["vim-s"]["cached"] and listed["vim-s"]["bytes"] is None
    assert stm("models", "--quiet").out.split() == ["vim-digits", *ALIASES]
    assert "cached, " in stm("models").out


def test_one_call_lists_the_repository_and_several_checkpoints_are_named(hub: Hub, mini: bytes, stm: Stm) -> None:
    hub.repos["owner/two"] = Repo({"a.pth": mini, "b.pth": mini, "config.json": b"{}"})
    run = stm("info", "owner/two")
    assert run.code == 1
    assert run.err == "Error: owner/two holds 2 checkpoints: a.pth, b.pth\nHint: name one: --file a.pth\n"
    assert [seen.path for seen in hub.seen if "/api/models" in seen.path] == ["/api/models/owner/two/tree/main"]
    assert stm("info", "owner/two", "--file", "b.pth").code == 0


def test_the_next_step_is_about_the_same_file_and_repeats_no_token(repo: Repo, mini: bytes, stm: Stm) -> None:
    repo.commit({"second.pth": mini}, ref="main")
    run = stm("info", "owner/vim", "--file", "second.pth", "--revision", "main", "--no-divide-out", "--token", SECRET)
    assert run.code == 0, run.err
    assert run.err.splitlines()[-1] == "Next: stm compress owner/vim --file second.pth --revision main --no-divide-out"
    assert SECRET not in run.out + run.err


@pytest.mark.parametrize(
    ("repository", "file", "reading"),
    [
        ("OpenGVLab/VideoMamba", "weights.pth", ("head", False)),
        ("hustvl/Vim-tiny-midclstok", "weights.pth", ("middle", True)),
        ("someone/weights", "videomamba_t16_in1k.pth", ("head", False)),
        ("someone/weights", "weights.pth", None),
    ],
)
def test_names_on_the_hub_tell_what_the_tensors_cannot(
    hub: Hub, stm: Stm, tmp_path: Path, repository: str, file: str, reading: tuple[str, bool] | None
) -> None:
    torch.save({"model": torch.load(MINI, weights_only=False)["model"]}, tmp_path / "bare.pth")
    hub.repos[repository] = Repo({file: (tmp_path / "bare.pth").read_bytes()})
    run = stm("info", repository, "--image-size", "64", "--json")
    if reading is None:
        assert (
            run.code == 1
            and f"stm info {repository} --image-size 64 --json --class-token middle --divide-out" in run.err
        )
        return
    config = json.loads(run.out)["config"]
    assert (config["model"]["class_token"], config["model"]["divide_out"]) == reading
    assert config["extra"]["asked"] == {"image_size": 64, "class_token": reading[0], "divide_out": reading[1]}


@pytest.mark.parametrize(
    ("link", "said"),
    [
        (
            "https://example.com/owner/vim/resolve/main/vim.pth",
            "the link leads to https://example.com, expected the Hub's own host",
        ),
        ("https://huggingface.co/owner/vim/resolve/main/vim.pth", "the link leads to https://huggingface.co"),
        (f"https://me:{SECRET}@example.com/owner/vim", "the link leads to https://example.com"),
        ("ftp://example.com/vim.pth", "the link leads to ftp://example.com"),
        ("file:///etc/passwd", "the link leads to file://"),
        ("HUB@example.com/owner/vim", "the link leads to"),
        (f"HUB/owner/vim/resolve/main/vim.pth?token={SECRET}", "the link carries a query"),
        ("hf://datasets/owner/set/x.pth", "is a dataset, expected a model"),
        ("hf://vim", "names no repo on the Hub"),
        ("HUB/settings", "names no repo on the Hub"),
    ],
)
def test_no_other_host_is_asked(hub: Hub, stm: Stm, link: str, said: str) -> None:
    run = stm("compress", link.replace("HUB", hub.url), "--no-eval")
    assert (run.code, run.out) == (2, "")
    assert said in run.err and "hf://OWNER/NAME/FILE" in run.err
    assert hub.seen == []


def test_a_link_that_says_it_takes_no_option_that_says_it_again(hub: Hub, stm: Stm) -> None:
    assert "--file was given" in stm("info", "hf://owner/vim/vim.pth", "--file", "b.pth").err
    assert "--revision was given" in stm("info", "hf://owner/vim@main", "--revision", "v2").err
    assert hub.seen == []


def test_names_of_folders(repo: Repo, stm: Stm, tmp_path: Path) -> None:
    for link, name in (("hf://owner/vim@main", "vim"), ("owner/vim", "vim"), ("hf://owner/vim/weights/vim.pth", "vim")):
        run = stm("compress", link, "--no-eval", "--quiet", "--dry-run")
        assert run.out == f"{name}-stm40\n", run.err


def test_offline_with_and_without_the_cache(hub: Hub, repo: Repo, stm: Stm) -> None:
    run = stm("info", "owner/vim", offline=True)
    assert run.code == 1 and "owner/vim is not in the local cache" in run.err and "run it once online" in run.err
    online = stm("info", "owner/vim", "--json")
    seen = len(hub.seen)
    assert stm("info", "owner/vim", "--json", offline=True) == online
    assert len(hub.seen) == seen


def test_what_the_source_says_of_itself_is_carried_over(repo: Repo, stm: Stm, tmp_path: Path) -> None:
    assert stm("compress", "owner/vim", "--no-eval", "--out", "small").code == 0
    card, commit = (tmp_path / "small/README.md").read_text(), repo.refs["main"]
    assert 'license: "mit"\nbase_model: "owner/vim"\n' in card and 'datasets:\n- "someone/pictures"\n' in card
    (command,) = (line for line in card.splitlines() if line.startswith("stm compress owner/vim "))
    assert f"--file weights/vim.pth --revision {commit} " in command
    again = stm(*shlex.split(command)[1:], "--no-eval", "--out", "again")
    assert again.code == 0, again.err
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "small/model.safetensors").read_bytes()


def test_a_dense_folder_is_the_source_of_what_is_made_of_it(hub: Hub, stm: Stm, tmp_path: Path) -> None:
    assert stm("export", MINI, "--format", "folder", "--out", "dense").code == 0
    hub.repos["owner/dense"] = Repo({path.name: path.read_bytes() for path in (tmp_path / "dense").iterdir()})
    commit = hub.repos["owner/dense"].refs["main"]
    assert stm("compress", "owner/dense", "--no-eval", "--out", "small").code == 0
    config = json.loads((tmp_path / "small/config.json").read_text())
    assert config["source"] == {
        "repo": "owner/dense",
        "file": "model.safetensors",
        "revision": commit,
        "sha256": json.loads((tmp_path / "dense/config.json").read_text())["files"]["model.safetensors"]["sha256"],
        "license": None,
    }
    assert stm("compress", "owner/dense", "--recipe", "small", "--out", "again").code == 0
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "small" / name).read_bytes()


def test_a_compressed_folder_is_taken_everywhere(
    hub: Hub, folder: Path, stm: Stm, python: Callable[[str], Run], tmp_path: Path
) -> None:
    hub.repos["owner/small"] = Repo({path.name: path.read_bytes() for path in folder.iterdir()})
    old = hub.repos["owner/small"].refs["main"]
    hub.repos["owner/small"].commit({"config.json": b"{}", "model.safetensors": b""})
    assert stm("info", "owner/small").code == 1, "the main branch is something else now"
    photo = ROOT / "stm/assets/photographs/chelsea.jpg"
    for words in (
        ("info", "owner/small"),
        ("eval", "owner/small", "--limit", "3"),
        ("predict", "owner/small", photo),
        ("report", "owner/small", "--limit", "3"),
        ("bench", "owner/small", "--rounds", "1"),
        ("info", "hf://owner/small"),
    ):
        run = stm(*words, "--revision", old, "--json")
        assert run.code == 0, run.err
    assert len(json.loads(stm("info", folder, "--json").out)["config"]["schedule"]["steps"]) > 0
    assert "which does not take it" in stm("info", "owner/small", "--revision", old, "--class-token", "head").err
    run = python(
        "import stm, torch\n"
        f"a = stm.load('owner/small', revision='{old}', device='cpu')\n"
        f"b = stm.ViM.from_pretrained('owner/small', revision='{old}', device='cpu')\n"
        f"c = stm.load({str(folder)!r}, device='cpu')\n"
        "x = torch.randn(1, 3, 64, 64)\n"
        "print(torch.equal(a(x), c(x)) and torch.equal(b(x), c(x)))\n"
    )
    assert run.out == "True\n", run.err
    hub.repos["owner/small"].commit({path.name: path.read_bytes() for path in folder.iterdir()})
    run = stm("compress", MINI, "--recipe", "owner/small", "--out", "again")
    assert run.code == 0, run.err
    assert (tmp_path / "again/config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_python_opens_what_a_command_opens(hub: Hub, mini: bytes, python: Callable[[str], Run], stm: Stm) -> None:
    """Short names, repositories of checkpoints and links: `stm.load` knew folders of ours alone."""
    alias = ALIASES["vim-ti"]
    hub.repos[alias.repo] = Repo({alias.file: mini, "other.pth": b""})
    sha256 = source(stm("info", "vim-ti", "--json"))["sha256"]
    for call in (
        "'vim-ti'",
        f"'{alias.repo}', file='{alias.file}'",
        f"'hf://{alias.repo}/{alias.file}'",
        f"'{alias.repo}', file='{alias.file}', revision='main', class_token='middle', divide_out=True",
    ):
        run = python(f"import stm\nprint(stm.load({call}, device='cpu').config.source.sha256)\n")
        assert run.out == f"{sha256}\n", (call, run.err)
    run = python(
        "import stm\ntry:\n    stm.load('vim-ti', file='missing.pth')\n"
        "except stm.StmError as error:\n    print(error.message)\n"
    )
    assert "missing.pth" in run.out and len(run.out.splitlines()) == 1, run.err


def test_a_damaged_download_does_not_stay(hub: Hub, folder: Path, stm: Stm) -> None:
    hub.repos["owner/small"] = Repo({path.name: path.read_bytes() for path in folder.iterdir()})
    hub.faults = [Fault("GET", "model.safetensors", flip=True)]
    run = stm("info", "owner/small")
    assert (
        run.code == 1 and "model.safetensors of owner/small" in run.err and "is not what the Hub says it is" in run.err
    )
    assert stm("info", "owner/small").code == 0


def test_without_huggingface_hub_folders_load_and_names_say_what_to_install(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['huggingface_hub'] = None\n"
        "import stm\n"
        f"assert stm.load({str(folder)!r}, device='cpu').plan is not None\n"
        "try:\n    stm.load('owner/small')\n"
        "except stm.StmError as error:\n    print(error.message, '|', error.hint)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=HANG)
    expected = "the Hub needs huggingface_hub, which is not installed | pip install huggingface_hub\n"
    assert run.stdout == expected, run.stderr
