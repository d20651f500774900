"""What a report says about the machine."""

import re
from pathlib import Path
from types import SimpleNamespace

import torch

import stm
from stm.measure import environment as module
from stm.measure.environment import environment, environment_of, processor_name


def test_environment_of_a_model() -> None:
    model = torch.nn.Linear(1, 1)
    model.config = SimpleNamespace(dtype="bfloat16")
    model.backend = SimpleNamespace(name="blocked", fallbacks=("native: no compiler was found",))
    found = environment_of(model)
    assert (found.stm, found.torch, found.device) == (stm.__version__, torch.__version__, "cpu")
    assert (found.dtype, found.backend, found.fallbacks) == ("bfloat16", "blocked", ("native: no compiler was found",))
    assert found.threads == torch.get_num_threads() and found.name == processor_name()


def test_environment_without_a_model() -> None:
    found = environment("cpu", dtype="float32", backend="auto")
    assert (found.device, found.dtype, found.backend, found.fallbacks) == ("cpu", "float32", "auto", ())
    assert re.search(r"\w", found.name)


def test_processor_name_from_cpuinfo(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor\t: 0\nvendor_id\t: X\nmodel name\t: Some CPU @ 2.0: GHz\n\nprocessor\t: 1\nmodel name\t: Other\n"
    )
    assert module._from_cpuinfo(cpuinfo) == "Some CPU @ 2.0: GHz"
    cpuinfo.write_text("processor\t: 0\nBogoMIPS\t: 50\n")  # as many ARM kernels write it
    assert module._from_cpuinfo(cpuinfo) is None
    assert module._from_cpuinfo(tmp_path / "none") is None
