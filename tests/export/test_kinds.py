"""Every kind of model that a folder can hold goes to other runtimes, and says there what it says here."""

from collections.abc import Callable
from pathlib import Path

import pytest

from stm.commands.export import export
from stm.errors import UsageError
from stm.export import formats, runners
from stm.model.vim import ViM
from tests.export.small import merged, small


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "ENOUGH", 0.05)


KINDS: dict[str, Callable[[], ViM]] = {
    "int8": lambda: merged().cast("int8"),
    "VideoMamba": lambda: merged(class_token="head", divide_out=False),
    "Mamba-R": lambda: merged(class_tokens=2, neck=4, image_size=8),
    "backbone": lambda: merged(class_tokens=0, classes=0),
    "not square": lambda: merged(image_size=(4, 8)),
    "four channels": lambda: merged(in_chans=4),
    "one channel and class": lambda: small(in_chans=1, classes=1),
}


@pytest.mark.slow(seconds=60)
@pytest.mark.parametrize("name", ["onnx", "openvino", "pt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model(tmp_path: Path, kind: str, name: str) -> None:
    if missing := formats.FORMATS[name].packages:
        pytest.skip(f"not installed: {missing}")
    model = KINDS[kind]()
    model.save_pretrained(tmp_path / "model")
    bytes_in = kind in ("not square", "four channels")
    report = export(
        str(tmp_path / "model"), format=name, batch_size=1, with_preprocessing=bytes_in, out=tmp_path / "out"
    )
    assert report.check is not None and report.check.difference <= 1e-4
    assert report.result == ("features" if kind == "backbone" else "probabilities" if bytes_in else "logits")
    assert len(report.notes) == (kind == "int8")


@pytest.mark.slow(seconds=60)
@pytest.mark.parametrize("name", ["onnx", "openvino", "pt2"])
def test_the_features_of_several_blocks(tmp_path: Path, name: str) -> None:
    """In the order that was asked for, each with its name; a block after the last one is no part of the file."""
    if missing := formats.FORMATS[name].packages:
        pytest.skip(f"not installed: {missing}")
    merged(depth=3).save_pretrained(tmp_path / "model")
    report = export(
        str(tmp_path / "model"), format=name, batch_size=1, features=True, out_indices=(1, -3), out=tmp_path / "out"
    )
    assert report.result == "features_1, features_0" and report.check is not None and report.check.agreement is None
    if name == "onnx":
        import onnx

        proto = onnx.load(tmp_path / "out")
        assert [output.name for output in proto.graph.output] == ["features_1", "features_0"]
        assert not [each.name for each in proto.graph.initializer if "blocks.2" in each.name]


def test_what_out_indices_are_refused(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path / "model")
    model, asked = str(tmp_path / "model"), {"format": "pt2", "out": tmp_path / "out"}
    with pytest.raises(UsageError, match=r"^--out-indices was given without --features"):
        export(model, out_indices=(1,), **asked)
    with pytest.raises(UsageError, match=r"^out_indices has 2, expected blocks 0 to 1, or -2 to -1"):
        export(model, features=True, out_indices=(2,), **asked)
    with pytest.raises(UsageError, match=r"^out_indices has block 1 twice"):
        export(model, features=True, out_indices=(1, -1), **asked)
    with pytest.raises(UsageError, match=r"and --out-indices are not of --format official"):
        export(model, out_indices=(1,))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_weights_beyond_protobuf_s_limit_are_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    kind = formats.FORMATS[name]
    if kind.packages:
        pytest.skip(f"not installed: {kind.packages}")
    assert kind.largest is not None and 2**31 - kind.largest <= 2**24
    small().save_pretrained(tmp_path / "model")
    monkeypatch.setitem(formats.FORMATS, name, kind._replace(largest=1000, write=lambda *_: pytest.fail("work")))
    told = r"is not written: the weights take .* kB, and one file takes at most 1 kB, which is protobuf's limit"
    with pytest.raises(UsageError, match=told) as caught:
        export(str(tmp_path / "model"), format=name, out=tmp_path / "out")
    assert caught.value.hint == "add --dtype float16, or choose --format pt2, which has no limit"
    assert not (tmp_path / "out").exists()
