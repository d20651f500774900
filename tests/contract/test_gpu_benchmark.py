"""benchmarks/gpu.py where there is no GPU: its job on a processor in tiny shapes, and each GPU part of it with what
stands in for one."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from stm.backends import mamba_ssm
from tests.backends import mamba_stand_in

PATH = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_benchmark", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_it_runs_and_says_what_it_could_not_measure(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu.main(["--device", "cpu", "--smoke", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert {row["model"] for row in results["models"]} == {"tiny"}
    assert {row["dtype"] for row in results["models"]} == {"float32", "bfloat16"}
    assert all(
        row["ms_low"] <= row["ms"] <= row["ms_high"]
        for row in results["models"] + results["kernels"] + results["training"]
    )
    assert results["not_measured"][0] == "triton: it is for CUDA devices, not for cpu"
    assert capsys.readouterr().out.strip() == (tmp_path / "gpu.md").read_text().strip()


def test_mamba_ssms_calls(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins = mamba_ssm._Kernels(
        mamba_stand_in.forward, mamba_stand_in.backward, mamba_stand_in.conv_forward, mamba_stand_in.conv_backward
    )
    monkeypatch.setattr(mamba_ssm, "_kernels", lambda source: stand_ins)
    values = gpu.scan_inputs(1, 3, 8, 2, 1, torch.bfloat16, torch.device("cpu"))
    runs = gpu.mamba_alone(values, values["z"], torch.randn(2, 8, 4), torch.zeros(2, 8))
    assert [run() is not None for run in runs.values()] == [True, True]


@pytest.mark.skipif(torch.cuda.is_available(), reason="pytest -m gpu runs it there")
def test_our_scan_by_channels_a_program(gpu: ModuleType) -> None:
    pytest.importorskip("triton", reason="there is no Triton for this platform")
    values = gpu.scan_inputs(1, 1, 8, 16, 1, torch.float32, torch.device("cpu"))
    outputs = [run()[0] for run in gpu.scan_blocks(values).values()]
    for output in outputs:
        torch.testing.assert_close(output, outputs[0])
