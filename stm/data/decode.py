"""Decode many images, in this process or in others.

This module does not import torch. Without torch a process starts in a tenth of a second.
"""

import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

from PIL import Image, UnidentifiedImageError

from stm.config import Preprocess
from stm.data.images import Crop, Openable, Sample, pixels
from stm.errors import DataError, HubError, damage, escaped

SAFE_PATH = "PYTHONSAFEPATH"
_STOPPING = (signal.SIGINT, signal.SIGTERM)
Decoded = bytes | str  # what `pixels` returns, or a sentence that says why the image could not be read


def decode_all(chunks: Sequence[Sequence[Sample]], prep: Preprocess, workers: int = 0) -> Iterator[list[Decoded]]:
    """Yield the pixels of each chunk of samples, in order.

    Args:
        workers: processes that decode; 0 decodes in this one.

    Raises:
        DataError: a worker died.
    """
    return _in_processes(chunks, prep, workers) if workers and chunks else (decode(chunk, prep) for chunk in chunks)


def decode(samples: Sequence[Sample], prep: Preprocess) -> list[Decoded]:
    """Return the pixels of the samples, or a sentence for each that cannot be read."""
    return [_decode(sample, prep) for sample in samples]


def _decode(sample: Sample, prep: Preprocess) -> Decoded:
    assert isinstance(sample.source, Openable)
    try:
        with warnings.catch_warnings():
            # Pillow's remarks are about metadata, not about pixels. The exception is an image of so many pixels that
            # decoding it could take all memory.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with sample.source.open() as image:
                return pixels(image, prep, repeat=isinstance(sample.source, Crop))
    except HubError:  # the connection is at fault, not the image: the run stops, and goes on from its records
        raise
    # A broken file makes Pillow's decoders raise OSError, SyntaxError, struct.error, IndexError and more.
    except Exception as error:
        return escaped(f"{sample.file}: {_reason(error)}")


def _reason(error: Exception) -> str:
    """Return the end of a sentence that begins with the image's name."""
    match error:
        case DataError():
            return error.message
        case UnidentifiedImageError():
            return "not an image that can be read"
        case Image.DecompressionBombWarning() | Image.DecompressionBombError():
            return f"more than {Image.MAX_IMAGE_PIXELS} pixels: refused as a possible decompression bomb"
        case OSError(strerror=str(text)):
            return text.lower()
        case MemoryError():
            return "not enough memory to decode it"
        case _:
            return f"cannot be decoded: {damage(error)}"


def _in_processes(chunks: Sequence[Sequence[Sample]], prep: Preprocess, workers: int) -> Iterator[list[Decoded]]:
    """Yield as `decode_all` does, from `workers` processes."""
    # Spawned, not forked: a fork of a process whose OpenMP threads run can hang.
    with _own_modules():
        pool = ProcessPoolExecutor(min(workers, len(chunks)), multiprocessing.get_context("spawn"), _begin_worker)
    under_way: deque[Future[list[Decoded]]] = deque()
    try:
        for chunk in chunks:
            with _own_modules(), _undisturbed():  # the pool starts a process only when there is work for it
                under_way.append(pool.submit(decode, chunk, prep))
            # Two chunks per worker: one that it decodes and one that waits, so that no worker idles. More would only
            # fill memory with pixels that the model is not ready for.
            if len(under_way) > 2 * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    except BrokenProcessPool as error:
        hint = (
            "decode in this process (--workers 0); a script that asks for workers needs its `if __name__ =="
            " '__main__':`"
        )
        raise DataError("a process that decodes images died", hint) from error
    finally:  # also if the caller stops early, and lets the generator go
        # Python 3.11 takes a thread for ended if a signal interrupts `join`, and would then remove what a process that
        # still starts needs (github.com/python/cpython/issues/90882).
        with _signals_wait():
            pool.shutdown(cancel_futures=True)  # a worker that is killed can leave half a result, and hang the pool


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let signals that stop a process wait until the block ends. Processes that are started in it are never stopped.

    An interruption in the middle of starting a process would leave one that nobody knows, and a signal that reaches a
    process before `_begin_worker` would end it with a traceback.
    """
    with _signals_wait() as they_wait:
        if not they_wait or not hasattr(signal, "pthread_sigmask"):  # other systems than POSIX's have no mask
            yield
            return
        resource_tracker.ensure_running()  # now, because it unblocks the signals when it has started
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)  # a started process inherits it
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def _signals_wait() -> Iterator[bool]:
    """Answer signals that stop a process at once, but let the first interruption wait until the block ends.

    Yields:
        False outside of the main thread, which answers all signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield False
        return
    left: list[BaseException | int] = []
    before = {int(number): signal.getsignal(number) for number in _STOPPING}

    def answer(number: int, frame: FrameType | None) -> None:
        handler = before[number]
        if not callable(handler):  # the process is to end
            left.append(number)
            return
        try:
            handler(number, frame)
        except BaseException as interruption:
            if left:
                raise  # whoever asks again does not want to wait
            left.append(interruption)

    for each in _STOPPING:
        if callable(before[each]) or before[each] is signal.SIG_DFL:
            signal.signal(each, answer)
    try:
        yield True
    finally:
        for number, handler in before.items():
            if handler is not None:  # it is not Python's
                signal.signal(number, handler)
        for first in left[:1]:
            if isinstance(first, BaseException):
                raise first
            signal.raise_signal(first)


@contextmanager
def _own_modules() -> Iterator[None]:
    """Keep processes that are started in the block from importing modules out of the current folder.

    That folder may be the data's, and hold a `pickle.py`. An environment variable is the one way that reaches a process
    before its first import, and multiprocessing's tracker of resources too.
    """
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SAFE_PATH]
        else:
            os.environ[SAFE_PATH] = before


def _begin_worker() -> None:
    """Prepare a worker to end with the main process, and not before it."""
    # Ctrl-C reaches every process of a terminal. The main process answers it, and ends its workers.
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)
    # If the main process is killed, nobody ends the workers: each waits for its parent's end in a thread.
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # at once: `sys.exit` in a thread ends the thread alone
