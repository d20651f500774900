"""ONNX files: standard operators, the same bytes twice, and what the model itself says, for every kind of ViM."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import torch.nn.functional as F

import stm
from stm.export import check, formats
from stm.export.onnx import OPSET, document
from stm.export.program import Interface
from stm.model.vim import ViM
from tests.export.small import small

onnx: Any
onnxruntime: Any
ir: Any
lowering: Any


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """Not when the file is collected, which every process of the tests does: it takes a second."""
    global onnx, onnxruntime, ir, lowering
    onnx, onnxruntime, ir, lowering = (
        pytest.importorskip(name, reason="the extra `export` is not installed")
        for name in ("onnx", "onnxruntime", "onnx_ir", "stm.export.lowering")
    )
    onnxruntime.set_default_logger_severity(3)


def difference(model: ViM, data: bytes, batch: int) -> float:
    images = torch.randn(batch, *model.config.model.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        truth = model(images)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return check.relative(torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), truth)


def test_standard_operators_the_same_bytes_and_what_the_file_says() -> None:
    model = stm.compress(small(image_size=8), rate=0.4, step_scale=0.5)
    data = document(model, Interface())
    assert data == document(model, Interface())
    proto = onnx.load_from_string(data)
    onnx.checker.check_model(proto)
    assert [(each.domain, each.version) for each in proto.opset_import] == [("", OPSET)] and not proto.functions
    nodes = [node for graph in graphs(proto.graph) for node in graph.node]
    assert {node.domain for node in nodes} <= {"", "ai.onnx"} and "Scan" in {node.op_type for node in nodes}
    said = {each.key: each.value for each in proto.metadata_props}
    assert said["stm.label_names"] == '["a", "b", "c"]'
    assert {"stm.preprocessing", "stm.source", "stm.recipe", "stm.stm_version", "stm.groups"} <= said.keys()
    assert str(Path(stm.__file__).parent).encode() not in data, "no path of this machine"
    assert difference(model, data, 3) < 1e-5


def graphs(graph: Any) -> list[Any]:
    """A graph and those in the attributes of its nodes."""
    inner = [each.g for node in graph.node for each in node.attribute if each.HasField("g")]
    return [graph, *(one for each in inner for one in graphs(each))]


def test_an_ir_has_the_same_bytes(tmp_path: Path) -> None:
    """OpenVINO numbers nodes by a count of the process. A graph's names differ from each other all the same."""
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    from stm.export import openvino

    model = small(image_size=8, depth=1)
    for folder in (tmp_path / "1", tmp_path / "2"):
        folder.mkdir()
        openvino.write(model, Interface(), folder)
    for name in (openvino.XML, openvino.BIN):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    layers = ElementTree.parse(tmp_path / "1" / openvino.XML).getroot().findall("layers/layer")
    assert len({layer.get("name") for layer in layers}) == len(layers)


def test_a_batch_of_as_many_images_as_there_are_directions() -> None:
    """The exporter's rewriting rules take the one axis for the other."""
    model = small(image_size=8, depth=1)
    assert difference(model, document(model, Interface(batch_size=2)), 2) < 1e-5


@pytest.mark.parametrize("block", [5, pytest.param(32, marks=pytest.mark.slow(seconds=10))])
def test_a_scan_over_blocks_is_the_scan_over_tokens(block: int) -> None:
    model = stm.compress(small(image_size=8), rate=0.4)  # of 17 tokens
    assert difference(model, document(model, Interface(), lowering.Form(block, softplus=True)), 3) < 1e-5, (
        "a last block that is not full, and a block longer than the sequence"
    )


def test_the_step_size_keeps_its_digits_close_to_zero() -> None:
    """Held to log(1 + exp(x)) in double precision; without the rounding of 1 + exp(x) nothing is left below -17."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([None]))
    t = lowering.Builder("step", lowering.ONNX_RUNTIME)
    y = lowering.softplus(t, x)
    y.type = x.type
    model = ir.Model(ir.Graph([x], [y], nodes=t.nodes, opset_imports={"": OPSET}, name="step"), ir_version=10)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    values = torch.linspace(-80, 95, 3001)
    [out] = session.run(None, {"x": values.numpy()})
    torch.testing.assert_close(torch.from_numpy(out).double(), F.softplus(values.double()), rtol=5e-7, atol=0)


CASES: dict[str, Callable[[], ViM]] = {
    "dynamic weights": lambda: stm.compress(small(image_size=8), rate=0.4, weights="hsp", hsp="dynamic"),
    "normalized": lambda: stm.compress(small(image_size=8), rate=0.4, weights="hsp", hsp="dynamic", normalize=True),
    "span convolution": lambda: stm.compress(small(image_size=8), rate=0.4, span_conv=True),
    "several class tokens and a neck": lambda: small(image_size=8, class_tokens=2, neck=8),
    "a norm on the scans": lambda: small(image_size=8, scan_norm=True),
    "class token at the head": lambda: small(image_size=8, class_token="head", divide_out=False),
}


@pytest.mark.slow(seconds=60)
@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_model(case: str) -> None:
    model = CASES[case]()
    data = document(model, Interface())
    assert max(difference(model, data, batch) for batch in (1, 3)) < 1e-5


def test_a_file_that_fails_the_check_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check runs another model's file."""
    one, other = small(image_size=8, depth=1), small(image_size=8, depth=1)
    with torch.no_grad():
        other.head.bias.add_(torch.arange(3.0))
    kind = formats.FORMATS["onnx"]
    wrong = kind._replace(write=lambda model, interface, draft: kind.write(other, interface, draft))
    monkeypatch.setitem(formats.FORMATS, "onnx", wrong)
    with pytest.raises(check.CheckError, match=r"the export differs from the model by .* of the largest output"):
        formats.write("onnx", one, Interface(), tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow(seconds=90)
@pytest.mark.parametrize(("preprocessing", "batch_size"), [(False, None), (True, None), (True, 3)])
@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_checked_in_its_runtime(tmp_path: Path, name: str, preprocessing: bool, batch_size: int | None) -> None:
    if missing := formats.FORMATS[name].packages:
        pytest.skip(f"not installed: {missing}")
    model = stm.compress(small(image_size=8), rate=0.4)
    checked = formats.write(name, model, Interface(preprocessing, batch_size), tmp_path / "out")
    assert checked.difference < 1e-4 and checked.agreement == 1 and checked.images == 8
    assert checked.batch_sizes == ((batch_size,) if batch_size else (1, 4))
    assert (tmp_path / "out").exists() and formats.size(name, tmp_path / "out") > 10_000
