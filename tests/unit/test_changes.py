"""What tools/mutate.py changed in stm/artifact and stm/merging and no other test saw."""

import os
import stat
from pathlib import Path

import pytest
import torch

from stm.artifact.scratch import scratch
from stm.artifact.tensors import check_images
from stm.errors import UsageError


def next_free() -> int:
    """The number of the next file to be opened: the same after as before if all were closed."""
    descriptor = os.dup(0)
    os.close(descriptor)
    return descriptor


def test_a_scratch_folder_is_ours_alone_and_leaves_no_open_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = next_free()
    with scratch("stm-x") as inside:
        assert stat.S_IMODE(inside.parent.stat().st_mode) == 0o700
    assert next_free() == before


def test_a_scratch_folder_that_is_gone_already_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch("stm-x") as inside:
        inside.rmdir()
        inside.parent.rmdir()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        ((3, 8, 8), "stack them: torch.stack(images)"),
        ((2, 3, 8, 9), "resize and crop them as config.preprocessing says"),
        ((1, 2, 3, 8, 8), "stack them: torch.stack(images)"),
    ],
)
def test_the_way_to_the_right_images(shape: tuple[int, ...], hint: str) -> None:
    with pytest.raises(UsageError, match="expected \\(B, 3, 8, 8\\)") as caught:
        check_images(torch.zeros(shape), (3, 8, 8))
    assert caught.value.hint == hint
