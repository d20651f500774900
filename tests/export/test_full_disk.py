"""A disk that is full while an export is written: one sentence, nothing left, and no writer of C++ that ends the
process."""

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import stm
from stm.errors import ArtifactError
from stm.export import formats, pt2
from stm.export.program import Interface
from tests.export.small import merged


def outcome(write: Callable[[], object]) -> str:
    """What a process says that may write no file of more than 1,000 bytes."""
    read, told = os.pipe()
    child = os.fork()
    if child == 0:
        said = "no error"
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            write()
        except ArtifactError as error:
            said = error.message
        finally:
            os.write(told, said.encode())
            os._exit(0)
    os.close(told)
    with os.fdopen(read) as stream:
        said = stream.read()
    return said if os.waitpid(child, 0)[1] == 0 else "the process was ended"


def linear(model: Any, interface: Any, backend: Any) -> torch.export.ExportedProgram:
    return torch.export.export(torch.nn.Linear(64, 64), (torch.zeros(1, 64),))


def graph(model: Any, interface: Any, form: Any) -> bytes:
    onnx = pytest.importorskip("onnx")
    weight = onnx.numpy_helper.from_array(torch.ones(64, 64).numpy(), "w")
    shape = [1, 64]
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y")]
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    made = onnx.helper.make_graph([node], "g", values[:1], values[1:], [weight])
    document: bytes = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 21)]).SerializeToString()
    return document


@pytest.fixture(scope="module")
def model() -> stm.ViM:
    return merged()


def test_a_program(model: stm.ViM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pt2, "program", linear)
    path = tmp_path / "a.pt2"
    assert (
        outcome(lambda: formats.write("pt2", model, Interface(), path)) == f"{path} cannot be written: File too large"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow(seconds=20)
def test_a_package(model: stm.ViM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pt2, "program", linear)
    path = tmp_path / "a.pt2"
    said = outcome(lambda: formats.write("aoti", model, Interface(), path))
    assert said == f"{path} cannot be written: File too large"
    assert list(tmp_path.iterdir()) == []


def test_openvino(model: stm.ViM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    from stm.export import openvino

    monkeypatch.setattr(openvino, "document", graph)
    path = tmp_path / "out"
    said = outcome(lambda: formats.write("openvino", model, Interface(), path))
    assert said == f"{path} cannot be written: the disk is full, or fails"
    assert list(tmp_path.iterdir()) == []
