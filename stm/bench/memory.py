"""Measure the memory that tensors take while a call runs."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int | None:
    """Return the most bytes that a call's tensors hold at once, beyond those held before; None if torch cannot tell.

    On a processor every allocation of torch counts, including those inside operators. The scratch memory of the native
    kernels, some 10 KB per thread, does not.
    """
    if device.type == "cpu":
        # Torch keeps no peak on a processor: replay its allocations and releases.
        held = peak = 0
        for size in allocations(call):
            held += size
            peak = max(peak, held)
        return peak
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def allocations(call: Callable[[], Any]) -> list[int]:
    """Return the bytes of every allocation on the processor in order; those of a release are negative."""
    with _no_stderr(), torch.autograd.profiler.profile(use_kineto=False, profile_memory=True) as profile:
        call()
    # The profiler's public list of events loses the order of allocations and releases, on which the peak depends.
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Discard what is written to the file descriptor of stderr: torch's profiler writes two lines that no setting
    stops."""
    # The lines come from C++, so replacing `sys.stderr` would not catch them.
    try:
        saved = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(nowhere)
        os.close(saved)
