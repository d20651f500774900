"""Calls of stm.hub.fetch, each in a process of its own, because huggingface_hub reads its environment when it is
imported.

Waits between retries are left out, and files come in small pieces.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.hang import HANG
from tests.hub.server import Hub

ROOT = Path(__file__).resolve().parents[2]
SECRET = "hf_ThisIsNotToBeShown"
WEIGHTS = bytes(range(256)) * 400
CARD = b"---\ntags:\n- vim\nlicense: apache-2.0\n---\n# A model\nlicense: mit\n"
CLIENT = """
import json, sys, time, warnings
from pathlib import Path
warnings.simplefilter("error")
time.sleep = lambda seconds: None
import stm.hub.fetch as hub
from stm.errors import StmError
assert "huggingface_hub" not in sys.modules and "torch" not in sys.modules
import huggingface_hub.constants
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 1 << 14  # from 10 MB: a small file then comes in several pieces
call, args, kwargs = json.loads(sys.argv[1])
told = []
if patience := kwargs.pop("patience", 0):
    from stm.hub import guard
    guard._PATIENCE, huggingface_hub.constants.FILELOCK_LOG_EVERY_SECONDS = patience, patience / 4
if kwargs.pop("told", False):
    kwargs["on_progress"] = lambda progress: told.append(list(progress)[:4])
try:
    result = getattr(hub, call)(*args, **kwargs)
    found = result if isinstance(result, list) else {key: str(value) for key, value in vars(result).items()}
    out = {"result": found, "told": told}
except StmError as error:
    out = {"kind": type(error).__name__, "code": error.exit_code, "message": error.message, "hint": error.hint}
print(json.dumps(out))
"""


class Client:
    """Calls stm.hub.fetch in a new process; the cache lives as long as the test."""

    def __init__(self, hub: Hub, home: Path) -> None:
        self.home, self.environment = home, hub.environment(home)
        self.clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}

    def __call__(self, name: str, *args: str, offline: bool = False, **kwargs: Any) -> dict[str, Any]:
        return self.end(self.begin(name, *args, offline=offline, **kwargs))

    def begin(self, name: str, *args: str, offline: bool = False, **kwargs: Any) -> subprocess.Popen[str]:
        """The process that makes the call."""
        environment = self.clean | self.environment | ({"HF_HUB_OFFLINE": "1"} if offline else {})
        command = [sys.executable, "-c", CLIENT, json.dumps([name, args, kwargs])]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
        )

    def end(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """What its call returned."""
        stdout, stderr = process.communicate(timeout=HANG)
        assert process.returncode == 0, stderr
        assert SECRET not in stdout + stderr
        out: dict[str, Any] = json.loads(stdout)
        assert "\n" not in out.get("message", "")
        return out | {"stderr": stderr}


def refused(out: dict[str, Any], *words: str) -> str:
    """A HubError with these words in its sentence; returns the hint."""
    assert (out.get("kind"), out.get("code")) == ("HubError", 1), out
    assert all(word in out["message"] for word in words), out["message"]
    assert out["hint"]
    return str(out["hint"])


def gets(hub: Hub, file: str) -> list[dict[str, str]]:
    return [seen.headers for seen in hub.seen if seen.method == "GET" and seen.path.endswith(file)]
