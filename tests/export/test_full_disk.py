"""A disk that is full while an export is written: one sentence, nothing left, and no writer of C++ that ends the
process."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stm
from stm.artifact.scratch import HINT
from stm.errors import ArtifactError
from stm.export import child, formats, pt2, runners
from stm.export.program import Interface
from tests.export.small import merged
from tests.limits import no_file_larger_than


def outcome(write: Callable[[], object]) -> str:
    """What a process says that may write no file of more than 1,000 bytes."""
    read, told = os.pipe()
    child = os.fork()
    if child == 0:
        said = "no error"
        try:
            with no_file_larger_than(1000):
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
    """The program that is to be compiled lies among the temporary files."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(pt2, "program", linear)
    said = outcome(lambda: formats.write("aoti", model, Interface(), tmp_path / "a.pt2"))
    assert re.fullmatch(rf"{tmp_path}/\S+/stm-export cannot be written: File too large", said), said
    assert list(tmp_path.iterdir()) == []


def test_openvino(model: stm.ViM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    from stm.export import openvino

    monkeypatch.setattr(openvino, "document", graph)
    path = tmp_path / "out"
    said = outcome(lambda: formats.write("openvino", model, Interface(), path))
    assert said == f"{path} cannot be written: the disk is full, or fails"
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_temporary_files(model: stm.ViM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, and not the output, which has room: for what the check's process reads, and for what it writes."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    small = formats.FORMATS["pt2"]._replace(write=lambda model, interface, draft: draft.touch())
    monkeypatch.setitem(formats.FORMATS, "pt2", small)
    said = outcome(lambda: formats.write("pt2", model, Interface(), tmp_path / "a.pt2"))
    assert re.fullmatch(rf"{tmp_path}/temporary/\S+/inputs.npz cannot be written: File too large", said), said

    full = subprocess.CompletedProcess([], runners.UNWRITTEN, "", "No space left on device\n")
    monkeypatch.setattr(child, "run", lambda *words, folder: full)
    with pytest.raises(ArtifactError, match=r"/outputs.npz cannot be written: No space left on device") as refused:
        formats.write("pt2", model, Interface(), tmp_path / "a.pt2")
    assert refused.value.hint == HINT
    assert list((tmp_path / "temporary").iterdir()) == [] and [path.name for path in tmp_path.iterdir()] == [
        "temporary"
    ]


def test_the_process_of_a_check_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "inputs.npz", one=np.zeros((1, 2)))
    monkeypatch.setitem(runners.RUNTIMES, "torch", lambda file, threads: lambda images: [images])
    with pytest.raises(SystemExit) as ended:  # where it is to write, there is a folder
        runners.main("torch", "a.pt2", str(tmp_path / "inputs.npz"), str(tmp_path), "1")
    assert ended.value.code == runners.UNWRITTEN
    assert capsys.readouterr().err == "Is a directory\n"
