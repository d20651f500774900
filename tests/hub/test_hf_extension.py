"""`hf stm ...`: the real `hf` command runs ours, from the folder that `hf extensions install` leaves."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hang import HANG
from tests.hub.client import ROOT, SECRET
from tests.hub.conftest import clean_environment
from tests.hub.server import Hub

SOURCE = ROOT / "tools" / "hf-stm"
HF, STM = (shutil.which(name, path=str(Path(sys.executable).parent)) for name in ("hf", "stm"))


def installed(home: Path) -> None:
    """Do by hand what huggingface_hub's cli/extensions.py does for a repository with a file `hf-stm` (2.4.0,
    `_install_binary_extension` and `ExtensionManifest.save`): only its three requests to GitHub are left out."""
    folder = home / ".local/share/hf/extensions/hf-stm"
    folder.mkdir(parents=True)
    executable = folder / "hf-stm"
    executable.write_bytes((SOURCE / "hf-stm").read_bytes())
    executable.chmod(0o755)
    manifest = {
        "owner": "someone",
        "repo": "hf-stm",
        "repo_id": "someone/hf-stm",
        "short_name": "stm",
        "executable_path": str(executable),
        "type": "binary",
        "installed_at": "2026-11-29T12:00:00+00:00",
        "description": json.loads((SOURCE / "manifest.json").read_text())["description"],
        "commit_sha": None,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def run(home: Path, *words: str, **more: str) -> "subprocess.CompletedProcess[str]":
    environment = clean_environment(HOME=str(home), HF_HUB_DISABLE_UPDATE_CHECK="1", **more)
    command = [str(HF), *words]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=HANG)


def test_it_says_what_is_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        [SOURCE / "hf-stm", "info"], env={"PATH": "/bin"}, capture_output=True, text=True, timeout=HANG
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: hf stm needs the stm command, which is not on the PATH\nHint: ")
    assert os.access(SOURCE / "hf-stm", os.X_OK)


@pytest.mark.slow(seconds=110)
def test_hf_stm_compresses_and_pushes(hub: Hub, home: Path, tmp_path: Path) -> None:
    if HF is None or STM is None:
        pytest.skip("the hf command and the stm command are not both installed beside this Python")
    installed(tmp_path)
    path = {"PATH": f"{Path(STM).parent}{os.pathsep}{os.environ['PATH']}"}
    listed = run(tmp_path, "extensions", "list", "--json", **path)
    assert json.loads(listed.stdout)[0]["command"] == "hf stm", listed.stderr

    compressed = run(
        tmp_path,
        "stm",
        "compress",
        "vim-digits",
        "--method",
        "paper",
        "--rate",
        "0.4",
        "--out",
        "my small",
        "--json",
        **path,
    )
    assert compressed.returncode == 0, compressed.stderr
    assert json.loads(compressed.stdout)["output"] == "my small"
    pushed = run(
        tmp_path, "stm", "push", "my small", "me/small", "--token", SECRET, "--json", **path, **hub.environment(home)
    )
    assert pushed.returncode == 0, pushed.stderr
    assert {"README.md", "config.json", "model.safetensors"} <= set(hub.repos["me/small"].files)

    refused = run(tmp_path, "stm", "compress", "vim-digits", "--rate", "2", **path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "Error: " in refused.stderr
