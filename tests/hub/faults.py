"""What a server may do wrong, and what then becomes of a command: a table of (fault, expected outcome).

A row is tried on one request of one command. `AT` names the requests. Its outcome is the empty text if the command gets
through, or words of its one sentence.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tests.hub.server import Fault

RESUMED = ""
FAILED = "the Hub failed ("
BUSY = "the Hub takes no more requests for now (429)"
UNREACHABLE = "cannot be reached for"
SLOW = "sends too little for"
STRANGE = "does not answer as a Hub does for"
UNREADABLE = "huggingface_hub cannot read the answer of"
WRONG = "is not what the Hub says it is"
PART = "did not come whole"
ALWAYS = 60


@dataclass(frozen=True)
class Row:
    """A fault of one request.

    Args:
        at: which request, a key of `AT`.
        fault: the keywords of a `Fault`; OTHER in a header stands for the address of another host.
        times: in a row.
        outcome: words of the sentence, or several of which one is right.
        patience: seconds, in place of the real 40, for a fault that nothing but time ends.
        asked: whether the other host may be asked, without a login.
    """

    name: str
    at: str
    fault: Mapping[str, Any]
    outcome: str | tuple[str, ...]
    times: int = 1
    patience: float | None = None
    asked: bool = False

    def __str__(self) -> str:
        return f"{self.at}: {self.name}"

    def faults(self, other: str) -> list[Fault]:
        method, path = AT[self.at]
        put = {key: _there(value, other) for key, value in self.fault.items()}
        return [replace(Fault(method, path), **put) for _ in range(self.times)]


def _there(value: Any, other: str) -> Any:
    if isinstance(value, dict):
        return {key: text.replace("OTHER", other) for key, text in value.items()}
    return value


AT = {
    "model list": ("GET", "/api/models/owner/vim/tree"),
    "model head": ("HEAD", "/owner/vim/resolve/main/vim.pth"),
    "model": ("GET", "/owner/vim/resolve/main/vim.pth"),
    "card head": ("HEAD", "README.md"),
    "card": ("GET", "README.md"),
    "set list": ("GET", "/api/datasets/owner/set/tree"),
    "set head": ("HEAD", "val.parquet"),
    "set": ("GET", "val.parquet"),
    "whoami": ("GET", "whoami-v2"),
    "look": ("GET", "/api/models/me/vim"),
    "preupload": ("POST", "/preupload/"),
    "batch": ("POST", "/info/lfs/objects/batch"),
    "upload": ("PUT", "/lfs/"),
    "commit": ("POST", "/commit/"),
}
_FILES = ("model", "card", "set")
_LISTS = ("model list", "set list", "look")
_READS = (*_FILES, *_LISTS)


def _rows() -> list[Row]:
    rows: list[Row] = []

    def add(name: str, where: tuple[str, ...] | str, outcome: str | tuple[str, ...], **more: Any) -> None:
        own = {key: more.pop(key) for key in ("times", "patience", "asked") if key in more}
        rows.extend(Row(name, at, more, outcome, **own) for at in ([where] if isinstance(where, str) else where))

    # storms
    for status in (500, 503):
        add(f"{status} once", _READS, RESUMED, status=status)
    for status in (500, 502, 503, 504):
        add(f"{status} always", "model", FAILED, status=status, times=ALWAYS)
    add(
        "500 always",
        ("model list", "model head", "card", "set", "batch", "upload", "look"),
        FAILED,
        status=500,
        times=ALWAYS,
    )
    add("503 once", ("batch", "upload", "preupload"), RESUMED, status=503)
    add("503 once", "commit", FAILED, status=503)  # huggingface_hub asks once: a second commit could be a second write
    # waits
    add("429, a second", (*_READS, "preupload"), RESUMED, status=429, headers={"Retry-After": "1"})
    for header in ({"Retry-After": "999999"}, {"ratelimit": '"api";r=0;t=999999'}):
        add(
            f"429, {next(iter(header))} of days",
            ("model", "model head"),
            BUSY,
            status=429,
            headers=header,
            times=ALWAYS,
        )
    endless = {"Retry-After": "999999"}
    add(
        "429 of days",
        ("card", "set", "model list", "set list", "look", "whoami", "preupload", "commit"),
        BUSY,
        status=429,
        headers=endless,
        times=ALWAYS,
    )
    add(
        "503 of days",
        ("model", "model head", "model list", "set", "upload"),
        FAILED,
        status=503,
        headers=endless,
        times=ALWAYS,
    )
    add("429, 9 digits and a date", "model list", BUSY, status=429, headers={"Retry-After": "9" * 5000}, times=ALWAYS)
    add(
        "429, a date",
        "model list",
        BUSY,
        status=429,
        headers={"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"},
        times=ALWAYS,
    )
    # lines that drop
    for tenth in range(10):
        add(f"cut at {tenth} tenths", "model", RESUMED, cut=MODEL * tenth // 10)
    add("cut in the middle", ("card", "set", *_LISTS), RESUMED, cut=20)
    add("cut always", _FILES, UNREACHABLE, cut=20, times=ALWAYS)
    add("cut always", "model list", UNREACHABLE, cut=20, times=ALWAYS)
    add(
        "no answer at all",
        ("model", "model list", "model head", "commit", "upload"),
        UNREACHABLE,
        raw=b"",
        times=ALWAYS,
    )
    # slow
    slow = {"drip": 0.02, "times": ALWAYS, "patience": 0.5}
    add("a body by drops", (*_FILES, "model list", "look", "whoami"), SLOW, **slow)
    head = b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: %d\r\n" % (i, i) for i in range(5000))
    add("headers by drops", ("model head", "model", "card", "model list", "commit", "upload"), SLOW, raw=head, **slow)
    add("silence", ("model head", "model", "model list", "commit"), SLOW, wait=1.5, times=ALWAYS, patience=0.5)
    # wrong content
    add("another byte", _FILES, WRONG, flip=True, times=ALWAYS)
    add("another hash", ("model head", "set head"), WRONG, more={"ETag": '"' + "ab" * 32 + '"'})
    add("less than announced", "model head", PART, more={"X-Linked-Size": "1"}, times=ALWAYS)
    add("more than announced", "model head", UNREADABLE, more={"X-Linked-Size": str(10**16)}, times=ALWAYS)
    add("a size below zero", "model head", PART, more={"X-Linked-Size": "-5"}, times=ALWAYS)
    add("a size that is no number", "model head", RESUMED, more={"X-Linked-Size": "many"})
    add("an empty file", "model", PART, body=b"", more={"Content-Length": "0"})
    # names that lead out of the cache
    for commit in ("../../../../evil", "/tmp/evil", "main", "A" * 40, "0" * 41, "", "x\ty"):
        add(f"commit {commit!r}", "model head", STRANGE, more={"X-Repo-Commit": commit}, times=ALWAYS)
    add("commit '../evil'", ("card head", "set head"), STRANGE, more={"X-Repo-Commit": "../../evil"}, times=ALWAYS)
    for etag in ('"../../../../evil"', '"/tmp/evil"', '".."', '"a/b"', '"' + "a" * 300 + '"', ""):
        add(f"ETag {etag[:20]}", "model head", STRANGE, more={"ETag": etag}, times=ALWAYS)
    add("no commit at all", "model head", STRANGE, status=204, times=ALWAYS)
    # redirects
    for location in (
        "file:///etc/passwd",
        "gopher://x/",
        "http:///",
        "//",
        "http://[::1",
        "http://x:99999999/",
        "http://h:0/",
    ):
        row = {"status": 302, "headers": {"Location": location}, "times": ALWAYS}
        add(f"redirect to {location}", ("model head", "model", "model list"), STRANGE, **row)
    add(
        "redirect to file:",
        ("card", "set", "look", "commit", "upload"),
        STRANGE,
        status=302,
        headers={"Location": "file:///etc/passwd"},
        times=ALWAYS,
    )
    for status in (302, 307):
        row = {"status": status, "headers": {"Location": "OTHER/api"}, "times": ALWAYS}
        add(
            f"{status} to another host",
            ("model list", "set list", "look", "whoami", "preupload", "batch", "commit"),
            STRANGE,
            **row,
        )
    add(
        "a file elsewhere that is not there",
        _FILES,
        "refused",
        status=302,
        headers={"Location": "OTHER/none"},
        times=ALWAYS,
        asked=True,
    )
    circle = {"Location": "/owner/vim/resolve/main/vim.pth"}
    add("in a circle", ("model head", "model"), UNREACHABLE, status=302, headers=circle, times=200)
    circle = {"Location": "/api/models/owner/vim/tree/main"}
    add("in a circle", "model list", UNREACHABLE, status=302, headers=circle, times=200)
    # answers of another kind
    html = {"body": b"<html>Sign in to the hotel</html>", "times": ALWAYS}
    add(
        "HTML for JSON",
        ("model list", "set list", "look", "whoami", "preupload", "batch", "commit"),
        UNREADABLE,
        **html,
    )
    for text in (b"null", b"[1]", b'{"a": 1}', b'"x"', b"[" * 100_000, b"\xff\xfe", b'[{"type": "file"}]', b""):
        add(f"JSON {text[:20]!r}", "model list", (UNREADABLE, STRANGE), body=text, times=ALWAYS)
    for text in (b"null", b"[1]", b"{}", b"3"):
        add(
            f"JSON {text!r}",
            ("look", "whoami", "preupload", "batch", "commit"),
            (UNREADABLE, STRANGE),
            body=text,
            times=ALWAYS,
        )
    add(
        "a header of a megabyte",
        ("model head", "model list"),
        UNREACHABLE,
        more={"X-Long": "a" * (1 << 20)},
        times=ALWAYS,
    )
    add("no HTTP", ("model head", "model list", "commit"), UNREACHABLE, raw=b"SSH-2.0-OpenSSH_9.6\r\n", times=ALWAYS)
    add(
        "no chunks",
        "model list",
        UNREACHABLE,
        raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        times=ALWAYS,
    )
    add(
        "a length below zero",
        "model list",
        UNREACHABLE,
        raw=b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        times=ALWAYS,
    )
    add("zip that is none", "model list", UNREACHABLE, more={"Content-Encoding": "gzip"}, times=ALWAYS)
    # lists
    for name in ("../../evil.pth", "/tmp/evil.pth", "a/../../evil.pth"):
        add(f"a file {name}", "model list", "is no file of a repo", body=_listed(name))
    add("a name of two lines", "model list", "the Hub refused a\\nb.pth", body=_listed("a\\nb.pth"))
    add(
        "a list that goes on at another host",
        ("model list", "set list"),
        STRANGE,
        more={"Link": '<OTHER/next>; rel="next"'},
    )
    add(
        "a list without an end",
        "model list",
        STRANGE,
        more={"Link": '</api/models/owner/vim/tree/main>; rel="next"'},
        times=ALWAYS,
    )
    return rows


def _listed(name: str) -> bytes:
    return f'[{{"type": "file", "path": "{name}", "size": 3, "oid": "{"0" * 40}"}}]'.encode()


MODEL = 452_000  # bytes, about, of the file that a model is read from
ROWS = _rows()
