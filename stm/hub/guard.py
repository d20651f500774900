"""What we hold the Hub's answers to, beyond what huggingface_hub does: bytes come, waits end, nothing leads elsewhere.

The rules are hooks of huggingface_hub's own client, and a look at each of its connections. So they hold for every
request of every call, and the client's proxies and certificates stay as they are. Every failure is an exception that
huggingface_hub does not repeat. `stm.hub.errors` has its sentence.

Xet, a second client that huggingface_hub brings for large files, has connections of its own, in Rust: no hook, no look
and no timeout of ours reaches it. So it is switched off meanwhile, and files come and go over HTTP.
"""

import logging
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import SplitResult, urljoin, urlsplit

from stm.artifact.locks import holder
from stm.hub.errors import announced_wait, endpoint

_PATIENCE = 40.0  # seconds that a call waits for nothing, all its attempts together
_RATE = 1024.0  # bytes per second: a slower line counts as one that is silent for the rest of the time
_PAGES = 1000  # of one list; the Hub names up to 1,000 files on a page
_HUB = ("https://huggingface.co", "https://hf.co")  # a mirror may lead to them
_PORTS = {"http": 80, "https": 443}
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ETAG = re.compile(r'(?:W/)?"?[\w+=-][\w.+=-]{0,127}"?')  # the cache names a file by it
_WAITING = re.compile(r"acquire lock on (.+) \(elapsed")  # huggingface_hub says so every 10 seconds
_REPEATED = (408, 429, 500, 502, 503, 504)  # huggingface_hub asks again, after the time that the answer names


class _Call(threading.local):
    """What a call of this thread has waited for.

    Args:
        debt: seconds that passed, less those that the bytes were worth at `_RATE`; never below 0.
        announced: seconds that answers asked it to wait.
        pages: of a list that had a next one.
        last: the last request, by its method and address.
        repeated: whether it was the one before too.
        active: whether the call runs.
        part: bytes of the file that another process downloads meanwhile.
        moved: when that number was last another one.
    """

    debt = 0.0
    announced = 0.0
    pages = 0
    last = ""
    repeated = False
    active = False
    part = -1
    moved = 0.0


_call = _Call()
_lock = threading.Lock()
_calls = 0  # of all threads, that run now
_XET = "HF_HUB_DISABLE_XET"  # of huggingface_hub, which reads the variable when it is imported


@contextmanager
def guarded() -> Iterator[None]:
    """Hold every request of the block to the rules, and keep what huggingface_hub says of its attempts from stderr.

    Xet is switched off meanwhile, unless the user has set HF_HUB_DISABLE_XET.
    """
    global _calls
    _watch_clients()
    _watch_locks()
    _hush()
    before = dict(vars(_call))
    vars(_call).clear()
    _call.active = True
    with _lock:
        _calls += 1
        _switch_xet()
    try:
        yield
    finally:
        with _lock:
            _calls -= 1
            _switch_xet()
        vars(_call).clear()
        vars(_call).update(before)


def _switch_xet() -> None:
    """Switch Xet off while calls run, and on again after the last one. Who set the variable has chosen."""
    from huggingface_hub import constants

    if _XET not in os.environ:
        setattr(constants, _XET, _calls > 0)


def _watch_clients() -> None:
    """Put the rules on the client that is, and on each that huggingface_hub makes after a connection failed."""
    from huggingface_hub.utils import _http, get_session, set_client_factory

    make = getattr(_http, "_GLOBAL_CLIENT_FACTORY", None)
    if make is not None and not hasattr(make, "of_stm"):

        def watched() -> Any:
            return _watch(make())

        watched.of_stm = True  # type: ignore[attr-defined]
        set_client_factory(watched)
    _watch(get_session())


def _watch(client: Any) -> Any:
    hooks = client.event_hooks
    if _check_answer not in hooks["response"]:
        client.event_hooks = {
            "request": [*hooks["request"], _check_request],
            "response": [*hooks["response"], _check_answer],
        }
        # No public way leads to the connections. A client with a transport of the user's own is left without this.
        for transport in (getattr(client, "_transport", None), *getattr(client, "_mounts", {}).values()):
            pool: Any = getattr(transport, "_pool", None)
            if hasattr(pool, "_network_backend"):
                pool._network_backend = _Network(pool._network_backend)
    return client


def _hush() -> None:
    """Keep what huggingface_hub tells of each attempt to itself, unless the user asked for it: our sentence says it."""
    # It warns if the announced size does not fit on the disk. If it does not fit, writing it fails, with a sentence.
    warnings.filterwarnings("ignore", message="Not enough free disk space")
    for handler in logging.getLogger("huggingface_hub").handlers:
        if _is_wanted not in handler.filters:
            handler.addFilter(_is_wanted)


def _is_wanted(record: logging.LogRecord) -> bool:
    asked = os.environ.get("HF_HUB_VERBOSITY") or os.environ.get("HF_DEBUG")
    return bool(asked) or not _calls or record.levelno >= logging.ERROR


# --- time


class _Network:
    """The connections of a client: httpcore's network backend, with an eye on the time."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, **how: Any) -> "_Stream":
        return _Stream(_wait(lambda left: self._network.connect_tcp(host, port, timeout=left, **how), timeout))

    def connect_unix_socket(self, path: str, timeout: float | None = None, **how: Any) -> "_Stream":
        return _Stream(_wait(lambda left: self._network.connect_unix_socket(path, timeout=left, **how), timeout))

    def sleep(self, seconds: float) -> None:
        self._network.sleep(seconds)


class _Stream:
    """One connection: httpcore's network stream, with an eye on the time."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data: bytes = _wait(lambda left: self._stream.read(max_bytes, left), timeout, len)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        _wait(lambda left: self._stream.write(buffer, left), timeout, lambda _: len(buffer))

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> "_Stream":
        return _Stream(_wait(lambda left: self._stream.start_tls(ssl_context, server_hostname, left), timeout))

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _wait(act: Callable[[float], Any], timeout: float | None, size: Callable[[Any], int] = lambda _: 0) -> Any:
    """Run one step of a connection for the time that is left, and count the time and the bytes.

    A timeout of the client holds for a single step: a byte per second never meets it.
    """
    left = max(_PATIENCE - _call.debt, 0.001)
    begun = time.monotonic()
    try:
        result = act(left if timeout is None else min(timeout, left))
    except Exception as error:
        _call.debt += time.monotonic() - begun
        if _call.debt >= _PATIENCE:
            _give_up("HubIsSlow", f"no answer for {_PATIENCE:.0f} seconds", error)
        raise
    _call.debt = max(0.0, _call.debt + time.monotonic() - begun - size(result) / _RATE)
    if _call.debt >= _PATIENCE:
        _give_up("HubIsSlow", f"less than {_RATE:.0f} bytes per second for {_PATIENCE:.0f} seconds")
    return result


def _give_up(kind: str, message: str, cause: Exception | None = None, **facts: Any) -> NoReturn:
    """Raise what huggingface_hub does not repeat. For a download it reads its cache instead."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    error = type(kind, (OfflineModeIsEnabled,), facts)(message)
    raise error from cause


def _watch_locks() -> None:
    """Look at each line in which huggingface_hub says that it waits for another process. It sets no end to that."""
    log = logging.getLogger("huggingface_hub.utils._fixes")
    if _moves not in log.filters:
        log.setLevel(logging.INFO)
        log.addFilter(_moves)


def _moves(record: logging.LogRecord) -> bool:
    """Raise an error if another process holds the lock of a file and downloads nothing of it. Else keep the line."""
    waiting = _WAITING.search(str(record.msg))  # the path as it is, not as a terminal may show it
    if waiting is None:
        return True
    if _call.active:
        lock, now = Path(waiting[1]), time.monotonic()
        parts = (lock.parents[2] / lock.parent.name / "blobs").glob(f"{lock.stem}*.incomplete")
        part = sum(map(_size, parts))
        if part != _call.part:
            _call.part, _call.moved = part, now
        elif now - _call.moved >= _PATIENCE:
            _give_up("HubIsHeld", f"nothing for {_PATIENCE:.0f} seconds", lock=lock, who=holder(lock))
    return logging.getLogger("huggingface_hub").isEnabledFor(logging.INFO)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # it has just got its name
        return 0


# --- requests and answers


class HubIsStrange(Exception):
    """An answer that no Hub gives."""


def begin_attempt() -> None:
    """Take the next request for a new one, whatever came before."""
    _call.last, _call.repeated = "", False


def was_repeated() -> bool:
    """Return whether huggingface_hub has sent the last request of this attempt again by itself."""
    return _call.repeated


def _check_request(request: Any) -> None:
    now = f"{request.method} {request.url}"
    _call.last, _call.repeated = now, now == _call.last
    # A list's next page and a check of an upload are where the answer says, and get the login.
    if "authorization" in request.headers and not _is_hub(urlsplit(str(request.url))):
        raise HubIsStrange("it asks for the login at another host")


def _check_answer(answer: Any) -> None:
    url = urlsplit(str(answer.request.url))
    is_file = "/resolve" in url.path  # also /api/resolve-cache/
    if answer.status_code in _REPEATED:
        wait = announced_wait(answer)
        _call.announced += wait or 0.0
        if _call.announced > _PATIENCE:
            _give_up("HubIsBusy", f"a wait of {wait} seconds", response=answer)
    if "location" in answer.headers and answer.status_code // 100 == 3:
        _check_redirect(url, answer.headers["location"], is_file)
    if is_file and _is_hub(url):
        _check_names(answer.headers)
    if 'rel="next"' in answer.headers.get("link", ""):
        _call.pages += 1
        if _call.pages > _PAGES:
            raise HubIsStrange(f"its list has more than {_PAGES} pages")


def _check_redirect(url: SplitResult, location: str, is_file: bool) -> None:
    try:
        given, target = urlsplit(location), urlsplit(urljoin(url.geturl(), location))
        is_whole = bool(given.hostname) or not (given.scheme or location.startswith("//"))
        is_address = is_whole and target.scheme in _PORTS and bool(target.hostname) and target.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise HubIsStrange("its redirect leads to no address of the web")
    if url.scheme == "https" and target.scheme == "http":
        raise HubIsStrange("its redirect leaves HTTPS")
    # Files are elsewhere, and their hash is known. What the Hub itself says, nobody else may say.
    if not is_file and _is_hub(url) and not _is_hub(target):
        raise HubIsStrange("its redirect leads to another host")


def _check_names(headers: Any) -> None:
    """The cache makes names of folders and files from these."""
    if not _COMMIT.fullmatch(headers.get("x-repo-commit", "0" * 40)):
        raise HubIsStrange("its commit is no hash")
    if not all(_ETAG.fullmatch(headers[name]) for name in ("x-linked-etag", "etag") if name in headers):
        raise HubIsStrange("its ETag is no name")


def _is_hub(url: SplitResult) -> bool:
    return _origin(url) in {_origin(urlsplit(each)) for each in (endpoint(), *_HUB)}


def _origin(url: SplitResult) -> tuple[str, str, int]:
    return url.scheme, url.hostname or "", url.port or _PORTS.get(url.scheme, 0)
