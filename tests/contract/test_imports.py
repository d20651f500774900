"""The house rules of docs/design.md that a reader of one file cannot see: who may import whom."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.hang import HANG

ROOT = Path(__file__).resolve().parents[2]

# Top to bottom, as in docs/design.md section 1: each imports only from above itself. A folder is one entry.
RUNTIME = (
    "errors",
    "install",
    "codec",
    "schedule",
    "config",
    "config_file",
    "reports",
    "merge",
    "hsp",
    "scan",
    "backends",
    "plan",
    "provenance",
    "tensors",
    "model",
    "allocator",
    "prepared",
    "serving",
)
RUNTIME += ("device", "atomic", "artifact", "loading")
LIBRARY = ("initialize", "labels", "command", "checkpoint_pickle", "checkpoint_file")
LIBRARY += ("checkpoint_stored", "checkpoint_preprocess", "checkpoint_infer", "checkpoint", "checkpoint_write", "budget", "bnnm", "bake")
ORDER = (
    *RUNTIME,
    *LIBRARY,
    "findings",
    "peers",
    "measure",
    "hub",
    "page",
    "resolve",
    "recipe",
    "pipeline",
    "speed",
    "publish",
    "tables",
    "evidence",
)
# Files, not Python that others import.
APART = {"__init__", "assets"}


class Import(NamedTuple):
    path: Path
    line: int
    name: str
    top_level: bool

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {self.name}"


def imports(path: Path) -> Iterator[Import]:
    """Every import of a file, those inside functions and those for type checkers included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    outside = {node for child in tree.body for node in ([child] if not isinstance(child, ast.FunctionDef | ast.ClassDef) else [])}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            # `from stm import pipeline` imports stm.pipeline; `from stm.config import Config` imports stm.config.
            names = [f"stm.{alias.name}" for alias in node.names] if node.module == "stm" else [str(node.module)]
        else:
            continue
        yield from (Import(path, node.lineno, name, node in outside) for name in names)


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def part(name: str) -> str:
    """The entry of ORDER that a module or a file of stm belongs to: stm.measure.data -> measure."""
    return name.split(".")[1] if "." in name else "__init__"


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / "stm").parts[0].removesuffix(".py")


ALL = [found for path in python_files("stm", "stm_cli") for found in imports(path)]
IN_STM = [found for found in ALL if found.path.is_relative_to(ROOT / "stm")]


def test_every_module_has_its_place() -> None:
    there = {part_of(path) for path in python_files("stm")} - APART
    assert there - set(ORDER) == set(), "put it into ORDER and into docs/design.md section 1"


def test_each_imports_only_from_above() -> None:
    wrong = [
        str(found)
        for found in IN_STM
        if found.top_level
        and found.name.startswith("stm.")
        and part_of(found.path) not in APART
        and part(found.name) not in APART
        and {part(found.name), part_of(found.path)} <= set(ORDER)
        and ORDER.index(part(found.name)) > ORDER.index(part_of(found.path))
    ]
    assert wrong == []


@pytest.mark.parametrize("file", ["model", "plan", "artifact"])
def test_the_runtime_knows_no_baking(file: str) -> None:
    banned = {"bnnm", "bake", "peers", "pipeline", "search"}
    found = [found for found in IN_STM if part_of(found.path) == file]
    assert found, f"stm/{file}.py imports nothing: is it there?"
    assert [str(each) for each in found if each.name.startswith("stm.") and part(each.name) in banned] == []


def test_the_runtime_needs_torch_and_safetensors_alone() -> None:
    """Backends for GPUs import what they are made of: it is absent where they are not available."""
    allowed = {"stm", "torch", "safetensors"} | set(sys.stdlib_module_names)
    of_backends = {"triton": {"triton"}, "mamba_ssm": {"selective_scan_cuda", "causal_conv1d", "kernels"}}
    wrong = [
        str(found)
        for found in IN_STM
        if part_of(found.path) in RUNTIME
        and (package := found.name.split(".")[0]) not in allowed
        and not any(found.path.stem.startswith(name) and package in optional for name, optional in of_backends.items())
    ]
    assert wrong == []


def test_only_the_command_line_talks_to_people() -> None:
    wrong = [str(found) for found in IN_STM if found.name.split(".")[0] in {"rich", "typer", "click", "stm_cli", "tqdm"}]
    for path in python_files("stm"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"print", "input"}:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} calls {node.func.id}")
    assert wrong == []


def test_click_is_never_imported() -> None:
    everywhere = [found for path in python_files("stm", "stm_cli", "tests", "tools", "benchmarks") for found in imports(path)]
    assert [str(found) for found in everywhere if found.name.split(".")[0] == "click"] == []


def test_the_command_line_does_no_tensor_math() -> None:
    wrong = [str(found) for found in ALL if found.path.is_relative_to(ROOT / "stm_cli") and found.name.split(".")[0] in {"torch", "numpy"}]
    assert wrong == []


def test_no_module_bears_the_name_of_a_public_function() -> None:
    # With lazy exports and a stm/compress.py, the second stm.compress(...) would call a module.
    stems = {path.stem for path in (ROOT / "stm").glob("*.py")}
    assert stems & {"compress", "load", "load_checkpoint", "evaluate"} == set()


@pytest.mark.parametrize(
    "code",
    [
        "import stm",
        "import stm; stm.__version__; dir(stm)",
        "import sys; sys.argv = ['stm', '--help']; from stm_cli.main import main; main()",
        "import sys; sys.argv = ['stm', 'compress', '--help']; from stm_cli.main import main; main()",
        "import sys; sys.argv = ['stm', 'compress', 'x', '--rate', 'abc']; from stm_cli.main import main; main()",
    ],
)
def test_torch_is_not_imported_before_it_is_needed(code: str) -> None:
    check = "import atexit, sys; atexit.register(lambda: print('heavy:', sorted({'torch', 'numpy', 'scipy'} & sys.modules.keys())))"
    run = subprocess.run([sys.executable, "-c", f"{check}\n{code}"], capture_output=True, text=True, cwd=ROOT, timeout=HANG)
    assert run.stdout.endswith("heavy: []\n"), run.stdout + run.stderr


def test_no_test_holds_anything_to_a_clock() -> None:
    """What waits for a process waits for `HANG`: a busy machine is slow, not wrong."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.value.lineno} waits {ast.unparse(node.value)}"
        for path in python_files("tests")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.keyword) and node.arg == "timeout" and isinstance(node.value, ast.Constant)
    ]
    assert wrong == []
