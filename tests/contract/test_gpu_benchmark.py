"""benchmarks/gpu.py and its sections if there is no GPU: the job on a processor in tiny shapes, and each GPU part with
what stands in for a GPU."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from stm.backends import mamba_ssm
from tests.backends import mamba_stand_in

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def beside_each_other() -> Iterator[None]:
    """`python benchmarks/gpu.py` finds its sections in its own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield


@pytest.fixture
def gpu() -> ModuleType:
    return importlib.import_module("gpu")


@pytest.fixture
def sections() -> ModuleType:
    return importlib.import_module("gpu_sections")


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


def test_mamba_ssms_calls(sections: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins = mamba_ssm._Kernels(
        mamba_stand_in.forward, mamba_stand_in.backward, mamba_stand_in.conv_forward, mamba_stand_in.conv_backward
    )
    monkeypatch.setattr(mamba_ssm, "_kernels", lambda source: stand_ins)
    values = sections.scan_inputs(1, 3, 8, 2, 1, torch.bfloat16, torch.device("cpu"))
    runs = sections.mamba_alone(values, values["z"], torch.randn(2, 8, 4), torch.zeros(2, 8))
    assert [run() is not None for run in runs.values()] == [True, True]


@pytest.mark.skipif(torch.cuda.is_available(), reason="pytest -m gpu runs it there")
def test_our_scan_by_channels_a_program(sections: ModuleType) -> None:
    pytest.importorskip("triton", reason="there is no Triton for this platform")
    values = sections.scan_inputs(1, 1, 8, 16, 1, torch.float32, torch.device("cpu"))
    outputs = [run()[0] for run in sections.scan_blocks(values).values()]
    for output in outputs:
        torch.testing.assert_close(output, outputs[0])
