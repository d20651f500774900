"""The C library's allocator, told to keep what a forward frees for the next one.

A block frees some megabytes and the next takes as many. By default glibc hands them back to the system in between,
which zeroes every page that it gives out again: a sixth of the time of ViM-S at eight images.
"""

import ctypes
import os
import sys

KEPT_BYTES = 256 * 2**20  # bytes at most that stay with the process
LARGEST = 32 * 2**20  # bytes of a piece that can be kept: the most that every glibc takes
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of malloc.h


def keep_freed() -> bool:
    """Keep up to `KEPT_BYTES` bytes of what is freed, for the whole process; says whether it does.

    Only glibc can be told. Who has set its allocator in the environment knows better, and nothing is changed.
    """
    if not sys.platform.startswith("linux") or any(
        name in os.environ for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
    ):
        return False
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST) and mallopt(_TRIM_THRESHOLD, KEPT_BYTES))
