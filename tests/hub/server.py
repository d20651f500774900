"""A Hugging Face Hub on the loopback interface, for tests: real HTTP, real huggingface_hub on the other side.

    with Hub() as hub:
        hub.repos["owner/vim"] = Repo({"vim.pth": b"..."})
        ...  # a process with hub.environment(tmp_path) in its environment

A dataset's name begins with "datasets/". Faults are served once each, in the order in which they were asked for, to the
first request that fits. What it answers is in handler.py.
"""

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from tests.hub.handler import handler


@dataclass
class Fault:
    """What one request that fits meets.

    Args:
        status, headers: an answer in place of the true one.
        cut: so many bytes of the body come before the line is dropped.
        hold: after them, the line stays open until this is set.
        wait: seconds before anything comes.
        flip: the first byte of the body is another.
        more: headers beside, or in place of, those of the true answer.
        body: in place of the true one.
        raw: bytes in place of an answer, its headers included; then the line is dropped.
        drip: seconds before each byte of the body, or of `raw`.
        call: is run first, in the server's thread.
    """

    method: str
    path: str
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    hold: threading.Event | None = None
    wait: float = 0
    flip: bool = False
    more: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    raw: bytes | None = None
    drip: float = 0
    call: Callable[[], Any] | None = None


class Seen(NamedTuple):
    """A request that came."""

    method: str
    path: str
    headers: dict[str, str]


class Repo:
    """A repo: commits, the names that point to them, and who may read it. Who has a login may write it."""

    def __init__(
        self,
        files: Mapping[str, bytes] | None = None,
        *,
        token: str | None = None,
        gated: bool = False,
        private: bool = False,
    ) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.refs: dict[str, str] = {}
        self.messages: list[str] = []
        self.token, self.gated, self.private = token, gated, private or token is not None
        self.commit(files or {})

    def commit(self, files: Mapping[str, bytes], ref: str = "main") -> str:
        """A new commit with these files alone; `ref` points to it. Returns its id."""
        commit = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[commit], self.refs[ref] = dict(files), commit
        return commit

    def resolve(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)

    @property
    def files(self) -> dict[str, bytes]:
        """Those of the main branch."""
        return self.commits[self.refs["main"]]


class Hub:
    """The server. `seen` is every request, `faults` what is still to go wrong, `logins` the name behind each token that
    may write."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.logins: dict[str, str] = {}
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.blobs: dict[str, bytes] = {}
        self.elsewhere: str | None = None  # where large files are: a host of its own, as the real Hub has
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> "Hub":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self, home: Path) -> dict[str, str]:
        """What a process needs to take this for the Hub; huggingface_hub reads it when it is imported."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def fault(self, method: str, path: str) -> Fault | None:
        fitting = next((fault for fault in self.faults if fault.method == method and fault.path in path), None)
        if fitting:
            self.faults.remove(fitting)
        return fitting

    def see(self, method: str, path: str, headers: dict[str, str]) -> None:
        self.seen.append(Seen(method, path, headers))

    def make(self, name: str, private: bool) -> None:
        """A repo as the real Hub makes it."""
        self.repos[name] = Repo({".gitattributes": b"*.safetensors filter=lfs\n"}, private=private)

    def clear(self) -> None:
        """A new Hub, at the same address."""
        for each in (self.repos, self.logins, self.faults, self.seen, self.blobs):
            each.clear()
        self.elsewhere = None
