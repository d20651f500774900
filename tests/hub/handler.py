"""What the Hub of server.py answers: the routes that huggingface_hub asks for, and refusals as the real one words them.

Files over LFS_SIZE bytes, and weights and archives of any size, go the way of LFS.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from tests.hub.server import Fault, Hub, Repo

LFS_SIZE = 1 << 20


class _Refused(Exception):
    """An answer in the Hub's way of refusing: status, X-Error-Code, X-Error-Message."""

    def __init__(self, status: int, code: str = "", message: str = "", *, body: bytes = b"", **headers: str) -> None:
        self.status, self.body, self.headers = (
            status,
            body,
            {"X-Error-Code": code, "X-Error-Message": message} | headers,
        )


def _is_lfs(file: str, size: int) -> bool:
    return size > LFS_SIZE or file.endswith((".safetensors", ".pth", ".parquet", ".gz", ".tar"))


def _oid(file: str, body: bytes) -> str:
    """As git names a file's content, or LFS."""
    return (
        hashlib.sha256(body).hexdigest()
        if _is_lfs(file, len(body))
        else hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
    )


_NAME = r"((?:datasets/)?[^/]+/[^/]+)"
_API_NAME = r"(models|datasets)/([^/]+/[^/]+)"


def handler(hub: "Hub") -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else every small answer waits 40 ms
        fault: "Fault | None" = None

        def do_HEAD(self) -> None:
            self._serve()

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def do_PUT(self) -> None:
            self._serve()

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet: tests look at `seen`."""

        def _serve(self) -> None:
            url = urlsplit(self.path)
            path = unquote(url.path)
            hub.see(self.command, path, {key.lower(): value for key, value in self.headers.items()})
            self.query = parse_qs(url.query)
            self.body = self._read()
            fault = self.fault = hub.fault(self.command, path)
            if fault and fault.call:
                fault.call()
            if fault and fault.wait:
                threading.Event().wait(fault.wait)
            try:
                if fault and fault.raw is not None:
                    self._write(fault.raw)
                    self.close_connection = True
                    return
                if fault and fault.status:
                    raise _Refused(fault.status, **fault.headers)
                for pattern, method in _ROUTES:
                    if found := re.fullmatch(pattern, f"{self.command} {path}"):
                        getattr(self, method)(*found.groups())
                        return
                raise _Refused(404)
            except _Refused as refused:
                self._answer(refused.status, refused.body, refused.headers)
            except OSError:
                self.close_connection = True  # the other side went away

        def _read(self) -> bytes:
            if self.headers.get("transfer-encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("content-length") or 0))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _login(self) -> str:
            return self.headers.get("authorization", "").removeprefix("Bearer ")

        def _user(self) -> str:
            if self._login() not in hub.logins:
                raise _Refused(401, message="Invalid username or password.")
            return hub.logins[self._login()]

        def _repo(self, name: str) -> "Repo":
            repo = hub.repos.get(name)
            if repo is None or (repo.token and self._login() != repo.token) or (repo.private and not self._login()):
                raise _Refused(404 if self._login() else 401, "RepoNotFound", "Repository not found")
            if repo.gated:
                raise _Refused(403, "GatedRepo", f"Access to model {name} is restricted")
            return repo

        def _commit_of(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
            repo = self._repo(name)
            commit = repo.resolve(revision)
            if commit is None:
                raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return commit, repo.commits[commit]

        # reading

        def _file(self, name: str, revision: str, file: str) -> None:
            commit, files = self._commit_of(name, revision)
            if file not in files:
                raise _Refused(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit})
            body = files[file]
            oid = _oid(file, body)
            if hub.elsewhere is not None and _is_lfs(file, len(body)):
                hub.blobs[oid] = body
                headers = {"X-Repo-Commit": commit, "X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(len(body))}
                self._answer(302, b"", headers | {"Location": f"{hub.elsewhere}/lfs/{oid}"})
                return
            self._body(body, {"X-Repo-Commit": commit, "ETag": f'"{oid}"'})

        def _blob(self, oid: str) -> None:
            self._body(hub.blobs[oid], {"ETag": f'"{oid}"'})

        def _body(self, body: bytes, headers: Mapping[str, str]) -> None:
            if self.fault and self.fault.flip:
                body = bytes([body[0] ^ 255]) + body[1:]
            if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", "")):
                start, stop = int(wanted[1]), min(int(wanted[2] or len(body) - 1), len(body) - 1) + 1
                self._answer(
                    206, body[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(body)}"}
                )
            else:
                self._answer(200, body, {**headers, "Accept-Ranges": "bytes"})

        def _info(self, kind: str, name: str, revision: str | None) -> None:
            repo_name = name if kind == "models" else f"datasets/{name}"
            commit, files = self._commit_of(repo_name, revision or "main")
            siblings = [{"rfilename": entry.pop("path"), **entry} for entry in map(self._entry, files.items())]
            for entry in siblings:
                entry["blobId"] = entry.pop("oid")
            private = hub.repos[repo_name].private
            self._json(
                {"id": name, "modelId": name, "sha": commit, "private": private, "tags": [], "siblings": siblings}
            )

        def _tree(self, kind: str, name: str, revision: str) -> None:
            _, files = self._commit_of(name if kind == "models" else f"datasets/{name}", revision)
            self._json([{"type": "file", **self._entry(each)} for each in files.items()])

        def _entry(self, item: tuple[str, bytes]) -> dict[str, Any]:
            path, body = item
            entry: dict[str, Any] = {"oid": _oid(path, body), "size": len(body), "path": path}
            if _is_lfs(path, len(body)):
                spec = "version https://git-lfs.github.com/spec/v1"
                pointer = f"{spec}\noid sha256:{_oid(path, body)}\nsize {len(body)}\n".encode()
                entry["oid"] = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()
                entry["lfs"] = {
                    "oid": _oid(path, body),
                    "sha256": _oid(path, body),
                    "size": len(body),
                    "pointerSize": len(pointer),
                }
            return entry

        # writing

        def _whoami(self) -> None:
            self._json({"type": "user", "name": self._user(), "orgs": [], "auth": {"type": "access_token"}})

        def _create(self) -> None:
            asked = json.loads(self.body)
            user = self._user()
            owner = asked["organization"] or user
            if owner != user:
                raise _Refused(403, message=f"You don't have the rights to create a model under the namespace {owner}")
            name = f"{owner}/{asked['name']}"
            url = json.dumps({"url": f"{hub.url}/{name}", "name": name}).encode()
            if name in hub.repos:
                raise _Refused(409, message="You already created this model repo", body=url)
            private = asked.get("visibility") == "private" or asked.get("private", False)
            hub.make(name, private)
            self._answer(200, url, {"Content-Type": "application/json"})

        def _validate(self) -> None:
            self._json({"errors": [], "warnings": []})

        def _branch(self, name: str, branch: str) -> None:
            self._writable(name)
            refs = hub.repos[name].refs
            if branch in refs:
                raise _Refused(409, message="Reference already exists")
            refs[branch] = refs["main"]
            self._json({})

        def _writable(self, name: str) -> "Repo":
            user, repo = self._user(), self._repo(name)
            if name.split("/")[0] != user and "create_pr" not in self.query:
                raise _Refused(403, message="Forbidden: you must use a write token to upload to a repository.")
            return repo

        def _preupload(self, name: str, revision: str) -> None:
            repo = self._writable(name)
            if repo.resolve(revision) is None:
                raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            files = repo.commits[repo.resolve(revision) or ""]
            answer = []
            for each in json.loads(self.body)["files"]:
                mode = "lfs" if _is_lfs(each["path"], each["size"]) else "regular"
                oid = {"oid": _oid(each["path"], files[each["path"]])} if each["path"] in files else {}
                answer.append({"path": each["path"], "uploadMode": mode, "shouldIgnore": False, **oid})
            self._json({"files": answer})

        def _batch(self, name: str) -> None:
            self._user()
            objects = []
            for each in json.loads(self.body)["objects"]:
                upload = {"upload": {"href": f"{hub.url}/lfs/{each['oid']}", "header": {}}}
                objects.append({**each, **({} if each["oid"] in hub.blobs else {"actions": upload})})
            self._json({"transfer": "basic", "objects": objects})

        def _put(self, oid: str) -> None:
            if hashlib.sha256(self.body).hexdigest() != oid:
                raise _Refused(400, message="the content is not what its name says")
            hub.blobs[oid] = self.body
            self._answer(200, b"", {})

        def _commit(self, name: str, revision: str) -> None:
            repo = self._writable(name)
            lines = [json.loads(line) for line in self.body.splitlines()]
            header = lines[0]["value"]
            with hub.lock:
                head = repo.resolve(revision)
                if head is None:
                    raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
                if header.get("parentCommit") not in (None, head):
                    raise _Refused(412, message="A commit has happened since. Please refresh and try again.")
                files = dict(repo.commits[head])
                for line in lines[1:]:
                    value = line["value"]
                    if line["key"] == "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        files[value["path"]] = hub.blobs[value["oid"]]
                    elif line["key"] == "deletedFile":
                        files.pop(value["path"])
                number = sum(ref.startswith("refs/pr/") for ref in repo.refs) + 1
                pr = f"refs/pr/{number}" if "create_pr" in self.query else None
                commit = repo.commit(files, pr or revision)
                repo.messages.append(header["summary"])
            found = {"success": True, "commitOid": commit, "commitUrl": f"{hub.url}/{name}/commit/{commit}"}
            self._json(found | {"pullRequestUrl": f"{hub.url}/{name}/discussions/{number}" if pr else None})

        # answers

        def _json(self, value: Any) -> None:
            self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
            cut = self.fault.cut if self.fault else None
            more: Mapping[str, str] = self.fault.more if self.fault else {}
            if self.fault and self.fault.body is not None:
                body = self.fault.body
            self.send_response(status)
            for key, value in ({"Content-Length": str(len(body))} | dict(headers) | dict(more)).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self._write(body if cut is None else body[:cut])
                if self.fault and self.fault.hold:
                    self.fault.hold.wait(60)
            self.close_connection = self.close_connection or cut is not None

        def _write(self, data: bytes) -> None:
            drip = self.fault.drip if self.fault else 0
            for piece in [data[at : at + 1] for at in range(len(data))] if drip else [data]:
                threading.Event().wait(drip)
                self.wfile.write(piece)

    return Handler


_ROUTES = [
    (rf"(?:GET|HEAD) /{_NAME}/resolve/([^/]+|refs/pr/\d+)/(.+)", "_file"),
    (rf"GET /api/{_API_NAME}(?:/revision/(.+))?", "_info"),
    (rf"GET /api/{_API_NAME}/tree/(.+)", "_tree"),
    (r"(?:GET|HEAD) /lfs/([0-9a-f]{64})", "_blob"),
    (r"GET /api/whoami-v2", "_whoami"),
    (r"POST /api/repos/create", "_create"),
    (r"POST /api/validate-yaml", "_validate"),
    (r"POST /api/models/([^/]+/[^/]+)/branch/(.+)", "_branch"),
    (r"POST /api/models/([^/]+/[^/]+)/preupload/(.+)", "_preupload"),
    (r"POST /([^/]+/[^/]+)\.git/info/lfs/objects/batch", "_batch"),
    (r"PUT /lfs/([0-9a-f]{64})", "_put"),
    (r"POST /api/models/([^/]+/[^/]+)/commit/(.+)", "_commit"),
]
