"""`stm export` names a missing package before it does any work, and casts weights as asked."""

import json
import sys

import pytest
import torch

from stm.export import formats


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_a_missing_package_is_named_before_any_work(here, tmp_path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    runtime = formats.FORMATS[name].needs[-1]
    monkeypatch.setattr(formats, "find_spec", lambda package: None if package == runtime else sys)
    run = here("export", "no such model", "--format", name)
    assert run.code == 2 and f"is not written: {runtime} not installed" in run.err
    assert f"[{formats.FORMATS[name].extra}]" in run.err and list(tmp_path.iterdir()) == []


def test_dense_layouts_take_a_dtype(here, tmp_path) -> None:
    """The matrix weights are cast; the rest stays float32, as in every folder."""
    for format, out in (("folder", "out"), ("official", "out.pth")):
        run = here("export", "vim-digits", "--format", format, "--dtype", "bfloat16", "--out", out, "--quiet")
        assert run.code == 0, run.err
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    weights = torch.load(tmp_path / "out.pth", weights_only=True)["model"]
    assert {str(each.dtype) for each in weights.values()} == {"torch.float32", "torch.bfloat16"}
