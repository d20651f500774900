"""A Hugging Face Hub on the loopback interface, for tests: real HTTP, real huggingface_hub on the other side.

    with Hub() as hub:
        hub.repos["owner/vim"] = Repo({"vim.pth": b"..."})
        ...  # a process with hub.environment(tmp_path) in its environment

Faults are served once each, in the order in which they were asked for, to the first request that fits.
"""

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit


@dataclass
class Fault:
    """What one request that fits meets: a status with headers, or a body of which `cut` bytes come before the line is dropped."""

    method: str
    path: str
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None


class Seen(NamedTuple):
    """A request that came."""

    method: str
    path: str
    headers: dict[str, str]


class Repo:
    """A model repo: commits, the names that point to them, and who may read it."""

    def __init__(self, files: Mapping[str, bytes] | None = None, *, token: str | None = None, gated: bool = False) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.refs: dict[str, str] = {}
        self.token, self.gated = token, gated
        self.commit(files or {})

    def commit(self, files: Mapping[str, bytes], ref: str = "main") -> str:
        """A new commit with these files alone; `ref` points to it. Returns its id."""
        commit = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[commit], self.refs[ref] = dict(files), commit
        return commit

    def resolve(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)


class Hub:
    """The server. `seen` is every request, `faults` what is still to go wrong."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> "Hub":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self, home: Path) -> dict[str, str]:
        """What a process needs to take this for the Hub; huggingface_hub reads it when it is imported."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def fault(self, method: str, path: str) -> Fault | None:
        fitting = next((fault for fault in self.faults if fault.method == method and fault.path in path), None)
        if fitting:
            self.faults.remove(fitting)
        return fitting


class _Refused(Exception):
    """An answer in the Hub's way of refusing: status, X-Error-Code, X-Error-Message."""

    def __init__(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message} | headers


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        cut: int | None = None

        def do_HEAD(self) -> None:
            self._serve()

        def do_GET(self) -> None:
            self._serve()

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet: tests look at `seen`."""

        def _serve(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.seen.append(Seen(self.command, path, {key.lower(): value for key, value in self.headers.items()}))
            fault = hub.fault(self.command, path)
            self.cut = fault.cut if fault else None
            try:
                if fault and fault.status:
                    raise _Refused(fault.status, **fault.headers)
                if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                    self._file(*found.groups())
                elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
                    self._info(found[1], found[2] or "main")
                elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
                    self._tree(*found.groups())
                else:
                    raise _Refused(404)
            except _Refused as refused:
                self._answer(refused.status, b"", refused.headers)

        def _commit(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
            repo = hub.repos.get(name)
            login = self.headers.get("authorization", "").removeprefix("Bearer ")
            if repo is None or (repo.token and login != repo.token):
                raise _Refused(404 if login else 401, "RepoNotFound", "Repository not found")
            if repo.gated:
                raise _Refused(403, "GatedRepo", f"Access to model {name} is restricted")
            commit = repo.resolve(revision)
            if commit is None:
                raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return commit, repo.commits[commit]

        def _file(self, name: str, revision: str, file: str) -> None:
            commit, files = self._commit(name, revision)
            if file not in files:
                raise _Refused(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit})
            body = files[file]
            headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(body).hexdigest()}"', "Accept-Ranges": "bytes"}
            if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", "")):
                start = int(wanted[1])
                self._answer(206, body[start:], headers | {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"})
            else:
                self._answer(200, body, headers)

        def _info(self, name: str, revision: str) -> None:
            commit, files = self._commit(name, revision)
            siblings = [{"rfilename": file, "size": len(body)} for file, body in files.items()]
            self._json({"id": name, "modelId": name, "sha": commit, "private": False, "tags": [], "siblings": siblings})

        def _tree(self, name: str, revision: str) -> None:
            _, files = self._commit(name, revision)
            self._json(
                [{"type": "file", "oid": hashlib.sha1(body).hexdigest(), "size": len(body), "path": file} for file, body in files.items()]
            )

        def _json(self, value: Any) -> None:
            self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for key, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body if self.cut is None else body[: self.cut])
            self.close_connection = self.close_connection or self.cut is not None

    return Handler
