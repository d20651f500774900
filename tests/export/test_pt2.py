"""`stm export --format pt2`: a program that needs torch alone, with what it says of its model inside."""

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

import stm
from stm.commands.export import export
from stm.config import Protection
from stm.errors import UsageError
from stm.export import formats
from stm.export.program import Interface
from stm.export.pt2 import COMPILED, program
from tests.export.small import merged, small
from tests.hang import HANG

SHAPES: dict[str, dict[str, Any]] = {
    "middle": {},
    "head": {"class_token": "head", "divide_out": False},
    "several": {"class_tokens": 2, "neck": 3},
    "norm on the scan": {"scan_norm": True},
    "backbone": {"class_tokens": 0, "classes": 0},
}


@pytest.mark.parametrize(
    "name",
    [each if each == "several" else pytest.param(each, marks=pytest.mark.slow(seconds=25)) for each in sorted(SHAPES)],
)
def test_a_program_is_of_torchs_own_operators_and_says_what_the_model_says(name: str) -> None:
    model = merged(image_size=8, **SHAPES[name])
    assert model.schedule.steps and isinstance(model.config.protection, Protection)
    interface = Interface(batch_size=2, features=not model.config.num_classes)
    traced = program(model, interface)
    foreign = {
        str(node.target)
        for node in traced.graph.nodes
        if node.op == "call_function" and not str(node.target).startswith(("aten.", "<built-in function"))
    }
    assert foreign == set()
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model.answer(images)
        assert (traced.module()(images) - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("batch_size", [2, None])
def test_a_program_that_is_compiled_has_one_node_per_scan(batch_size: int | None) -> None:
    """So what the compiler does grows with the blocks, and not with the tokens."""
    model = merged(image_size=8)
    traced = program(model, Interface(batch_size=batch_size), COMPILED)
    # The last block has two: each direction ends at the class token.
    assert [str(node.target) for node in traced.graph.nodes].count("scan") == len(model.blocks) + 1
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(images)
        assert (traced.module()(images) - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.slow(seconds=180)
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_package_takes_any_number_of_images(tmp_path: Path) -> None:
    model = merged(image_size=8)
    report = formats.write("aoti", model, Interface(), tmp_path / "m.pt2")
    assert report.difference <= 1e-4 and report.batch_sizes == (1, 4)


def test_a_compilation_says_beforehand_what_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """80 s and 12 s per block, of two: see docs/export.md."""
    kind = formats.FORMATS["aoti"]
    monkeypatch.setitem(formats.FORMATS, "aoti", kind._replace(write=lambda *_: 1 / 0))
    told: list[str] = []
    with pytest.raises(ZeroDivisionError):
        formats.write("aoti", small(), Interface(), tmp_path / "out", on_progress=lambda each: told.append(each.stage))
    assert told == ["Writing an AOTInductor package, about 2 minutes of one core"]


@pytest.mark.slow(seconds=25)
def test_dynamic_weights_are_in_the_program() -> None:
    dense = small(image_size=8)
    model = stm.compress(dense, stages=[1], method="staged", weights="hsp", hsp="dynamic")
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(images)
        got = program(model, Interface(batch_size=2)).module()(images)
        assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.slow(seconds=90)
def test_the_file_runs_where_nothing_but_torch_is(tmp_path: Path) -> None:
    """Any number of images; labels and preprocessing are inside, and no path of this machine."""
    model = merged(image_size=8)
    model.save_pretrained(tmp_path / "model")
    report = export(str(tmp_path / "model"), format="pt2", out=tmp_path / "m.pt2")
    assert report.check is not None and report.check.difference <= 1e-4 and report.check.batch_sizes == (1, 4)
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.save((x, model(x)), tmp_path / "expected.pt")
    script = textwrap.dedent("""
        import sys
        BANNED = {"stm", "numpy", "safetensors", "PIL", "scipy"}

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                # torch looks for numpy, and does without
                looks = sys._getframe(2).f_code.co_filename == "<frozen importlib.util>"
                if not looks and name.split(".")[0] in BANNED:
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Refuse())
        import torch
        inside = {"stm.json": ""}
        call = torch.export.load(sys.argv[1], extra_files=inside).module()
        images, expected = torch.load(sys.argv[2])
        assert (call(images) - expected).abs().max() <= 1e-4 * expected.abs().max()
        assert not [name for name in sys.modules if name.split(".")[0] in BANNED]
        print(inside["stm.json"])
        """)
    command = [sys.executable, "-I", "-c", script, str(tmp_path / "m.pt2"), str(tmp_path / "expected.pt")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["label_names"] == ["a", "b", "c"] and facts["preprocessing"]["crop"] == 8
    assert str(Path(stm.__file__).parent).encode() not in (tmp_path / "m.pt2").read_bytes()


@pytest.mark.slow(seconds=25)
def test_a_backbone_gives_features_and_a_classifier_if_asked(tmp_path: Path) -> None:
    for name, shape in (("backbone", {"class_tokens": 0, "classes": 0}), ("classifier", {})):
        merged(image_size=8, **shape).save_pretrained(tmp_path / name)
        report = export(
            str(tmp_path / name),
            format="pt2",
            out=tmp_path / f"{name}.pt2",
            batch_size=1,
            features=name == "classifier",
        )
        assert report.result == "features" and report.check is not None and report.check.agreement is None
        x = torch.zeros(1, 3, 8, 8)
        assert torch.export.load(tmp_path / f"{name}.pt2").module()(x).shape == (1, 8, 4, 4)


def test_a_machine_without_a_compiler_is_told_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match=r"an AOTInductor package is not written: g\+\+ is not on the PATH"):
        export("no such model", format="aoti")


def test_features_are_not_of_other_layouts() -> None:
    with pytest.raises(UsageError, match="are not of --format official"):
        export("vim-digits", format="official", features=True)
