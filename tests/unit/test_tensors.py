"""Tensors that are not the expected ones are listed, by kind and name."""

import pytest
import torch
from torch import Tensor

from stm.artifact.tensors import check_finite, check_tensors
from stm.errors import NAMES_SHOWN, ArtifactError

EXPECTED = {
    "a": torch.empty(2, 3, device="meta"),
    "b": torch.empty(4, device="meta"),
    "c": torch.empty((), device="meta"),
}
RIGHT = {"a": torch.ones(2, 3), "b": torch.ones(4), "c": torch.tensor(1.0)}


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({"a": RIGHT["a"], "c": RIGHT["c"]}, r"1 missing \(b\)$"),
        (RIGHT | {"z": torch.ones(1), "d": torch.ones(1)}, r"2 unexpected \(d, z\)$"),
        (RIGHT | {"a": torch.ones(3, 2)}, r"1 of another shape \(a \(3, 2\) instead of \(2, 3\)\)$"),
        (RIGHT | {"b": torch.ones(4).half()}, r"1 of another dtype \(b float16 instead of float32\)$"),
        (
            {"b": torch.ones(5), "x": torch.ones(1)},
            r"2 missing \(a, c\), 1 unexpected \(x\), 1 of another shape \(b \(5,\) instead of \(4,\)\)",
        ),
        (RIGHT | {"b": torch.tensor([1, 2, float("nan"), 3])}, r"file holds NaN or infinity in 1 of 3 tensors \(b\)"),
        ({}, r"3 missing \(a, b, c\)$"),
    ],
)
def test_other_tensors_are_listed(found: dict[str, Tensor], says: str) -> None:
    with pytest.raises(ArtifactError, match=says) as caught:
        check_tensors(EXPECTED, found, "file", ArtifactError)
    assert caught.value.message.startswith("file ")


def test_the_right_tensors_pass() -> None:
    check_tensors(EXPECTED, RIGHT, "file", ArtifactError)
    check_finite(
        {"half": torch.tensor([65504.0]).half(), "none": torch.zeros(0), "large": torch.tensor([3e38, 3e38])},
        "file",
        ArtifactError,
    )


def test_long_lists_are_cut() -> None:
    with pytest.raises(ArtifactError, match=rf"{NAMES_SHOWN + 2} unexpected \(d0, .* and 2 more\)(\n|$)"):
        check_tensors({}, {f"d{i}": torch.ones(1) for i in range(NAMES_SHOWN + 2)}, "file", ArtifactError)
