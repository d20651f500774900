"""What tensors take while a call runs."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int | None:
    """The most bytes that a call's tensors hold at once, beyond what there was before; None where torch cannot say.

    On a processor every allocation of torch's is counted, those inside operators included, but not the scratch of the
    native kernels: some 10 KB a thread.
    """
    if device.type == "cpu":
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
    """The bytes of every allocation on the processor in order; those of a release are negative."""
    with _no_stderr(), torch.autograd.profiler.profile(use_kineto=False, profile_memory=True) as profile:
        call()
    events = [
        event for event in profile.kineto_results.events() if event.name() == "[memory]"
    ]  # its public list loses their order
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Torch's profiler writes two lines there that no setting stops."""
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
