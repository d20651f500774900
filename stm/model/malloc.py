"""The C library's allocator: have it keep the memory that a forward frees for the next one.

A block frees some megabytes and the next block takes as many. By default glibc returns them to the system in between,
and the system zeroes every page before it gives it out again: a sixth of the time of ViM-S at eight images.
"""

import ctypes
import os
import sys

KEPT_BYTES = 256 * 2**20  # the most freed memory that stays with the process
LARGEST = 32 * 2**20  # the largest allocation that is kept: the most that every version of glibc accepts
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h


def keep_freed() -> bool:
    """Have glibc keep up to `KEPT_BYTES` of freed memory, for the whole process; return whether it does.

    Other C libraries have no such setting. If the environment sets glibc's allocator, a person has chosen, and nothing
    changes.
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
