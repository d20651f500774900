"""Whether the Hub answers at all: asked once, and quickly, before the first request.

huggingface_hub repeats a failed request for half a minute. That is right for a server that fails for a moment, and
wrong for a machine without a network. So one request without repetitions goes ahead. If nothing answers, the library
meets what it meets offline, and reads its cache.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from stm.hub.errors import Request, address, announced_wait, endpoint, translate_errors
from stm.hub.guard import begin_attempt, guarded, was_repeated

T = TypeVar("T")
_WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds between the attempts of a call that huggingface_hub does not repeat
_PASSING = (429, 500, 502, 503, 504)  # statuses of a Hub that may answer the next time
_BROKEN = {"NetworkError", "RemoteProtocolError"}  # a line that broke, by the names of httpx
_PATIENCE = 5.0  # seconds for the name, the connection and the answer together
_AGAIN = 60.0  # seconds after which a Hub that did not answer is asked again
_silent_since: dict[str, float] = {}  # by address: when it did not answer; infinity if it did
_asking = threading.local()


@contextmanager
def asking(request: Request) -> Iterator[None]:
    """Let the block ask the Hub; `translate_errors` for blocks that send requests.

    Raises:
        HubError: as `translate_errors`; or the Hub does not answer, and the cache does not hold what was asked for.
    """
    with translate_errors(request), guarded():
        from huggingface_hub.utils import get_session

        # Last, after the hook that refuses everything offline. What the cache answers never comes to a hook.
        hooks: list[Any] = get_session().event_hooks["request"]
        if _hook not in hooks:
            get_session().event_hooks = get_session().event_hooks | {"request": [*hooks, _hook]}
        yield


def persist(read: Callable[[], T], *, line: bool = True, theirs: bool = False) -> T:
    """Return what a call reads from the Hub. It is called again if the Hub fails for a moment.

    huggingface_hub does not do so for the content of a file or what it knows of a repo.

    Args:
        line: also if the line broke; False for a download, which huggingface_hub then resumes itself.
        theirs: not if huggingface_hub has asked again itself, as it does for its lists since 2.1.
    """
    for wait in _WAITS:
        begin_attempt()
        try:
            return read()
        except Exception as error:
            answer = getattr(error, "response", None)
            kinds = {kind.__name__ for kind in type(error).__mro__}
            # The guard's own errors are offline ones: what was waited for is over.
            over = "OfflineModeIsEnabled" in kinds or (theirs and was_repeated())
            if over or not ((answer is not None and answer.status_code in _PASSING) or (line and kinds & _BROKEN)):
                raise
            time.sleep(max(wait, (answer is not None and announced_wait(answer)) or 0))
    return read()


def is_reachable(address: str) -> bool:
    """Return whether a Hub answers. What it answers does not matter: any status will do.

    It is asked once per process. If it does not answer within 5 seconds (or HF_HUB_ETAG_TIMEOUT, if that is set to more
    than its default of 10), it does not count as reachable for a minute.
    """
    if address not in _silent_since or _silent_since[address] + _AGAIN < time.monotonic():
        _silent_since[address] = float("inf") if _answers(address) else time.monotonic()
    return _silent_since[address] == float("inf")


def _hook(request: Any) -> None:
    from huggingface_hub.errors import OfflineModeIsEnabled

    class HubIsUnreachable(OfflineModeIsEnabled):
        """Not repeated by huggingface_hub, which reads its cache instead."""

    # Large files are elsewhere, and the question itself passes here too.
    hub = endpoint()
    if str(request.url).startswith(hub) and not getattr(_asking, "now", False) and not is_reachable(hub):
        raise HubIsUnreachable(f"{address()} does not answer")


def _answers(address: str) -> bool:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    asked_for = constants.HF_HUB_ETAG_TIMEOUT
    patience = max(_PATIENCE, asked_for if asked_for > constants.DEFAULT_ETAG_TIMEOUT else 0)
    answered, done = threading.Event(), threading.Event()

    def ask() -> None:
        _asking.now = True
        try:
            # The Hub's own client: its proxies and certificates hold here too.
            get_session().head(address, timeout=patience, follow_redirects=False)
            answered.set()
        except Exception as error:
            # A server that speaks strangely is there: the request that matters tells what is wrong with it.
            kinds = {kind.__name__ for kind in type(error).__mro__}
            if not kinds & {"ConnectError", "ProxyError", "TimeoutException", "OSError"}:
                answered.set()
        done.set()

    # In a thread, because no timeout of a client holds for the look-up of a name.
    threading.Thread(target=ask, daemon=True).start()
    done.wait(patience)
    return answered.is_set()
