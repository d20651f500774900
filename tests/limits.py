"""A limit on the size of files, which stands in for a full disk."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

# Python may leave bytecode that such a limit has cut short, and from then on fails to import it (3.11).
NO_BYTECODE = {"PYTHONDONTWRITEBYTECODE": "1"}


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """Writing past so many bytes fails with EFBIG, in this process and in those that it starts. (Python ignores
    SIGXFSZ.) None of them keeps bytecode."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        for name, value in NO_BYTECODE.items():
            patch.setenv(name, value)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
