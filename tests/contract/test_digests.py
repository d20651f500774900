"""Artifacts are byte-identical over versions of the code: what `vim-digits` becomes has the digests of an old commit.

The digests were computed at commit 794cfbd, before the modules moved into rooms, on an AMD EPYC with torch 2.13.0. The
settings bake nothing that a library of matrix products computes: weights are copied, token sizes are counted, and their
square roots are taken in float64 and rounded to float32. So the digests hold on every processor.

The fitted schedule came later. Its pairs and digests were computed by the code that brought it, from the costs that the
package holds for `vim-digits`.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import stm

DIGESTS: list[tuple[dict[str, Any], str, str]] = [
    (
        {"method": "staged", "rate": 0.4},
        "744852eb6bad215ebd7b9456cd082cfb0c68ca42d1828c239c6bc0a424f9af99",
        "cbeffe68841bee7258f733e46b34edaa8d03eec7c77f99cd592ab862d093d47a",
    ),
    (
        {"method": "paper", "rate": 0.2},
        "ed96cb9cdff635fbe4d38b2bc72e2f752074c68a1bf1d6b16c759de666ad482e",
        "b6569b5b56cefccd29326ac6b52f0cc96a306261aa9bfe2ba4010393a6471c1a",
    ),
    (
        {"method": "staged", "saving": 0.3, "weights": "mean", "step_scale": 0, "span_conv": False},
        "2c4c8713b19aa709c5cafc1ca034110387d149e1e8d36df0fbbaedf522b69d22",
        "92045c633dba0c6704d7b68c797544202177a4a761234374d460c1c8b342fae6",
    ),
]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(("options", "weights", "config"), DIGESTS, ids=["staged", "paper", "mean"])
def test_an_artifact_has_the_digests_of_794cfbd(
    tmp_path: Path, options: dict[str, Any], weights: str, config: str
) -> None:
    stm.compress(stm.load("vim-digits", device="cpu"), **options).save_pretrained(tmp_path / "out")
    assert digest((tmp_path / "out" / "model.safetensors").read_bytes()) == weights
    # A config names the version that wrote it, which each release changes. It was 0.1.0 at that commit.
    document = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert document.pop("stm_version") == stm.__version__
    # What has changed since: a recipe has the key fit, the preset that is now staged was stm, and a protection has no
    # initial_state.
    assert document["recipe"].pop("fit") is None
    old = {"staged": "stm", "paper": "paper"}[document["recipe"]["method"]]
    document["recipe"]["method"] = old
    document["protection"]["initial_state"] = False
    document |= {"stm_version": "0.1.0"}
    assert digest((json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()) == config


def test_the_default_is_fitted_and_has_its_digest(tmp_path: Path) -> None:
    stm.compress(stm.load("vim-digits", device="cpu"), rate=0.4).save_pretrained(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["schedule"]["tokens_per_block"] == [197] * 15 + [124] * 4 + [42] * 4 + [29]
    steps = digest(json.dumps(config["schedule"]["steps"]).encode())
    assert steps == "3e97a1fd575fbce3a14d2e9067b0f73b25ca5f1f5e6a8c27238f9a950d5f3b8e"
    assert config["recipe"]["fit"] == {
        "data": "drawn pictures",
        "n": 576,  # 192 of each kind: the model is small
        "judges": 0,
        "seed": 0,
        "sha256": "ff9010757e015b10c0ae8bc49780c6cf0bd59893ea13e7014621f34da70feb98",
        "cut": "flat",
        "tried": [],
        "max_drop": None,
        "speedup": None,
    }
    weights = digest((tmp_path / "out" / "model.safetensors").read_bytes())
    assert weights == "dd2d46cd71ab6e814247663e408c5b67aa02c58c25e0e8ea7a9f1f56ded20aab"
