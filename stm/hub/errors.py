"""Turn what huggingface_hub raises into one sentence with a next step: one table, the specific before the general.

The table knows exceptions by the names of their types. So it needs no import, and works with every version of
huggingface_hub. Messages repeat no header of a request or of an answer, so that a token is never shown.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from stm.errors import HubError, StmError, UsageError, no_room, said

_LOGIN = "log in with: hf auth login, or give --token"
_LATER = "run it again in a while"
_CLIENTS = ("huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2", "h11")


@dataclass(frozen=True)
class Request:
    """A request to the Hub, as messages name it."""

    repo: str
    file: str | None = None
    revision: str | None = None
    upload: bool = False
    kind: str = "model"

    @property
    def page(self) -> str:
        """Return the address of the repo's web page."""
        return f"{address()}/{'' if self.kind == 'model' else f'{self.kind}s/'}{self.repo}"

    def __str__(self) -> str:
        what = f"{self.file} of {self.repo}" if self.file else self.repo
        return f"{what} at {self.revision}" if self.revision else what


Explained = tuple[str, str]


@contextmanager
def translate_errors(request: Request) -> Iterator[None]:
    """Turn what huggingface_hub raises in the block into a HubError. An error that the table does not know passes."""
    try:
        yield
    except StmError:
        raise
    except ModuleNotFoundError as error:  # the runtime works without these packages
        missing = (error.name or "huggingface_hub").partition(".")[0]
        raise HubError(f"the Hub needs {missing}, which is not installed", f"pip install {missing}") from error
    except ImportError as error:
        raise HubError(
            f"huggingface_hub is too old or broken: {said(error)}", "pip install --upgrade huggingface_hub"
        ) from error
    except Exception as error:
        explained = explain_error(error, request)
        if explained is None:
            raise
        raise HubError(*explained) from error


def explain_error(error: BaseException, request: Request) -> Explained | None:
    """Return the sentence and the next step for an exception; None if it is not of the Hub."""
    # The whole line of base classes is searched, so that a new subclass gets the sentence of its base.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    explainer = next((explainer for kind, explainer in _TABLE if kind in kinds), None)
    if explainer is None and _is_theirs(error):
        explainer = _theirs
    return None if explainer is None else explainer(error, request)


def _is_theirs(error: BaseException) -> bool:
    """Return whether huggingface_hub or its client failed on what they read: nothing of ours lies nearer to the error.

    An answer may hold anything, and what reads it may fail in any way: no list of exceptions is whole.
    """
    trace, theirs = error.__traceback__, False
    while trace is not None and not isinstance(error, MemoryError):
        room = trace.tb_frame.f_globals.get("__name__", "").partition(".")[0]
        theirs = room in _CLIENTS or (theirs and room != "stm")
        trace = trace.tb_next
    return theirs


def check_token(token: str | None) -> None:
    """Refuse a token that no header can carry, before a library quotes the token in its error.

    Raises:
        UsageError: the token is empty, or holds blanks or other characters that no token has.
    """
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise UsageError(
            "the token is empty or holds characters that no token has", "copy it again, without blanks or line ends"
        )


def announced_wait(response: Any) -> int | None:
    """Return the seconds after which an answer says to ask again; None if it says none, or names a date."""
    # The Hub's own form is `ratelimit: "api";r=0;t=55`.
    limit = re.search(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*([0-9]{1,9})\b", response.headers.get("ratelimit", ""))
    seconds = limit[1] if limit and response.status_code == 429 else response.headers.get("Retry-After", "").strip()
    return min(int(seconds[:10]), 10**9) if re.fullmatch(r"[0-9]+", seconds) else None


def _gated(error: Any, request: Request) -> Explained:
    return (
        f"{request.repo} is gated: its authors decide who may read it",
        f"ask for access at {request.page}, then {_LOGIN}",
    )


def _no_repo(error: Any, request: Request) -> Explained:
    access = "may not be written" if request.upload else "may not be seen"
    return (
        f"{request.repo} was not found on the Hub, or it {access} with this login",
        f"check the name; if it is private, {_LOGIN}",
    )


def _no_revision(error: Any, request: Request) -> Explained:
    return (
        f"{request.repo} has no revision {request.revision}",
        f"{request.page}/commits lists its branches, tags and commits",
    )


def _no_entry(error: Any, request: Request) -> Explained:
    return (
        f"{request.repo} has no file {request.file}",
        f"see what it has: {request.page}/tree/{request.revision or 'main'}",
    )


def _not_cached(error: Any, request: Request) -> Explained:
    # What came before it is the request that failed, which tells more. Offline, and without a network, there was none.
    from huggingface_hub.constants import is_offline_mode

    before = error.__cause__ or error.__context__
    cause = before and not is_offline_mode() and explain_error(before, request)
    return cause or (_offline if is_offline_mode() else _unreachable)(error, request)


def _offline(error: Any, request: Request) -> Explained:
    if request.upload:
        return f"{request} cannot be written: HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE"
    return (
        f"{request} is not in the local cache ({_cache()}), and HF_HUB_OFFLINE is set",
        "unset HF_HUB_OFFLINE and run it once online",
    )


def _status(error: Any, request: Request) -> Explained:
    # Statuses that have an exception of their own (gated, not found) stand above this row.
    status = error.response.status_code
    verb = "write" if request.upload else "read"
    if status == 401:
        return f"the Hub does not accept the login for {request} (401)", _LOGIN
    if status == 403:
        return f"this login may not {verb} {request} (403)", f"with a token that may {verb} it, {_LOGIN}"
    if status in (409, 412) and request.upload:
        return f"somebody else changed {request} meanwhile ({status}): nothing was written", "run it again"
    wait = announced_wait(error.response)
    later = _LATER if wait is None else f"wait {wait} seconds"
    if status == 429:
        return f"the Hub takes no more requests for now (429), {request} among them", later
    if status >= 500:
        return f"the Hub failed ({status}) on {request}", later
    return f"the Hub refused {request} ({status})", f"see {request.page}"


def _unreachable(error: Any, request: Request) -> Explained:
    cached = "" if request.upload else "; without one, only what is in the cache is read"
    return f"{address()} cannot be reached for {request}", f"check the connection and run it again{cached}"


def _slow(error: Any, request: Request) -> Explained:
    return f"{address()} sends too little for {request}: {error}", "check the connection and run it again"


def _held(error: Any, request: Request) -> Explained:
    return (
        f"{error.who} downloads {request} too, and has received {error}",
        f"end that process and run this again; if none downloads it any more, remove {error.lock}",
    )


def _no_hub(error: Any, request: Request) -> Explained:
    return f"{address()} does not answer as a Hub does for {request}", "check HF_ENDPOINT, and any proxy"


def _strange(error: Any, request: Request) -> Explained:
    return f"{address()} does not answer as a Hub does for {request}: {error}", "check HF_ENDPOINT, and any proxy"


def _theirs(error: BaseException, request: Request) -> Explained:
    return (
        f"huggingface_hub cannot read the answer of {address()} for {request} ({type(error).__name__})",
        f"check HF_ENDPOINT and any proxy; if they are right, remove what the cache has of it ({_cache()})",
    )


def _bad_name(error: Any, request: Request) -> Explained:
    return f"{request.repo!r} is no name of a repo on the Hub", "a repo is OWNER/NAME"


def _not_text(error: Any, request: Request) -> Explained:
    return f"{request} is not a name in UTF-8", "type it again: names on the Hub are plain text"


def _system(error: Any, request: Request) -> Explained:
    if no_room(error):
        return f"no space is left for {request} ({_cache()})", "free some, or set HF_HOME to a folder on another disk"
    if error.errno is None:  # huggingface_hub compares sizes, and raises this without a number
        return f"{request} did not come whole", "run it again"
    path = error.filename or _cache()  # downloads write to the cache, also if the error names no file
    return (
        f"{request} cannot be kept: {os.strerror(error.errno)} ({path})",
        "set HF_HOME to a folder that can be written",
    )


# The first row that fits wins: subclasses stand before their bases, and OSError, which many are, last.
_TABLE: tuple[tuple[str, Callable[[Any, Request], Explained]], ...] = (
    ("GatedRepoError", _gated),
    ("RepositoryNotFoundError", _no_repo),
    ("RevisionNotFoundError", _no_revision),
    ("RemoteEntryNotFoundError", _no_entry),
    ("LocalEntryNotFoundError", _not_cached),
    ("HubIsUnreachable", _unreachable),  # ours, see `stm.hub.reach`
    ("HubIsSlow", _slow),  # these four: see `stm.hub.guard`
    ("HubIsHeld", _held),
    ("HubIsBusy", _status),
    ("HubIsStrange", _strange),
    ("OfflineModeIsEnabled", _offline),
    ("HfHubHTTPError", _status),
    ("FileMetadataError", _no_hub),
    ("XetDownloadError", _unreachable),
    ("HTTPError", _unreachable),  # httpx: connections, timeouts, protocol
    ("ConnectionError", _unreachable),
    ("TimeoutError", _unreachable),
    ("HFValidationError", _bad_name),
    ("UnicodeEncodeError", _not_text),
    ("OSError", _system),
)


def endpoint() -> str:
    """Return the address of the Hub: HF_ENDPOINT, or huggingface.co."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def address() -> str:
    """Return the address of the Hub as messages show it: without a name and a password, which it may carry."""
    return re.sub(r"(?<=://)[^/]*@", "", endpoint())


def _cache() -> str:
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE
