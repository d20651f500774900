"""What a process frees stays with it, where glibc can be told; counted in page faults of a process of its own."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")

# Three pieces of 10 MB, as a block's activations, taken, written and given back ten times: 73,000 pages of 4 KB in all.
PROGRAM = """
import ctypes, resource, sys
from stm.model.malloc import keep_freed
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
kept = keep_freed() if sys.argv[1] == "keep" else None
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    pieces = [ctypes.c_void_p(libc.malloc(10_000_000)) for _ in range(3)]
    for piece in pieces: libc.memset(piece, 1, 10_000_000)
    for piece in pieces: libc.free(piece)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(how: str, **environment: str) -> tuple[str, int]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"} | {
        "PYTHONPATH": os.getcwd()
    }
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], env=clean | environment, capture_output=True, text=True, check=True
    ).stdout
    kept, faults = out.split()
    return kept, int(faults)


def test_pages_are_asked_for_once() -> None:
    kept, faults = run("keep")
    assert kept == "True"
    assert faults < 10_000 < run("leave")[1]


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_what_the_environment_says_stands(name: str) -> None:
    assert run("keep", **{name: "131072"})[0] == "False"


def test_so_do_tunables() -> None:
    assert run("keep", GLIBC_TUNABLES="glibc.malloc.trim_threshold=131072")[0] == "False"
