"""Artifacts are byte-identical over versions of the code: what `vim-digits` becomes has the digests of an old commit.

The digests were computed at commit 794cfbd, before the modules moved into rooms, on an AMD EPYC with torch 2.13.0. The
three settings bake nothing that a library of matrix products computes: weights are copied, token sizes are counted, and
their square roots are taken in float64 and rounded to float32. So the digests hold on every processor.
"""

import hashlib
from pathlib import Path
from typing import Any

import pytest

import stm

DIGESTS: list[tuple[dict[str, Any], str, str]] = [
    (
        {"rate": 0.4},
        "744852eb6bad215ebd7b9456cd082cfb0c68ca42d1828c239c6bc0a424f9af99",
        "cbeffe68841bee7258f733e46b34edaa8d03eec7c77f99cd592ab862d093d47a",
    ),
    (
        {"method": "paper", "rate": 0.2},
        "ed96cb9cdff635fbe4d38b2bc72e2f752074c68a1bf1d6b16c759de666ad482e",
        "b6569b5b56cefccd29326ac6b52f0cc96a306261aa9bfe2ba4010393a6471c1a",
    ),
    (
        {"saving": 0.3, "weights": "mean", "step_scale": 0, "span_conv": False},
        "2c4c8713b19aa709c5cafc1ca034110387d149e1e8d36df0fbbaedf522b69d22",
        "92045c633dba0c6704d7b68c797544202177a4a761234374d460c1c8b342fae6",
    ),
]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(("options", "weights", "config"), DIGESTS, ids=["default", "paper", "mean"])
def test_an_artifact_has_the_digests_of_794cfbd(
    tmp_path: Path, options: dict[str, Any], weights: str, config: str
) -> None:
    stm.compress(stm.load("vim-digits", device="cpu"), **options).save_pretrained(tmp_path / "out")
    assert digest((tmp_path / "out" / "model.safetensors").read_bytes()) == weights
    # A config names the version that wrote it, which each release changes. It was 0.1.0 at that commit.
    text = (tmp_path / "out" / "config.json").read_text(encoding="utf-8")
    ours, theirs = f'"stm_version": "{stm.__version__}"', '"stm_version": "0.1.0"'
    assert text.count(ours) == 1
    assert digest(text.replace(ours, theirs).encode()) == config
