"""The house rules of docs/design.md that a reader of one file cannot see: who may import whom."""

import argparse
import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.hang import HANG

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "tests" / "golden" / "dense-mini" / "vim_mini.pth"

# Top to bottom, as in docs/design.md section 1: each imports only from above itself. An entry is a room, or a file
# where a room's files stand at several heights: the schedule is a type below the config, and what chooses one stands
# far above both.
RUNTIME = (
    *(
        "errors",
        "install",
        "codec",
        "progress",
        "units",
        "merging.schedule",
        "recipe",
        "config",
        "config_file",
        "options",
        "evaluations",
        "notebook",
        "reports",
        "verdicts",
    ),
    *("artifact", "backends", "merging.merge", "merging.outline", "merging.hsp", "merging.plan", "model", "device"),
    *("hub.aliases", "model_names", "resolving", "describing", "loading", "saving"),
)
LIBRARY = (
    *(
        "strict_yaml",
        "checkpoint",
        "merging",
        "bar",
        "findings",
        "distributed",
        "hub",
        "data",
        "inputs",
        "quantizing",
        "peers",
    ),
    *("measure.hold", "measure.records", "measure.stats", "measure.flops", "measure.environment", "measure.table"),
    *("measure.evaluate", "measure.judge", "fitting", "bake", "measure"),
)
TOP = ("quiet", "bench", "goals", "compressing", "integrations", "plots", "explain", "page", "export", "commands")
ORDER = (*RUNTIME, *LIBRARY, *TOP, "__main__")
APART = {"model.initialize"}  # of the runtime's rooms, but not of the runtime


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
    outside = {
        node
        for child in tree.body
        for node in ([child] if not isinstance(child, ast.FunctionDef | ast.ClassDef) else [])
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            # `from stm.data import sets` imports stm.data.sets; `from stm.config import Config` imports stm.config.
            names = [
                name if is_module(name := f"{node.module}.{alias.name}") else str(node.module) for alias in node.names
            ]
        else:
            continue
        yield from (Import(path, node.lineno, name, node in outside) for name in names)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module(path: Path) -> str:
    """The module of a file, below stm: stm/data/sets.py -> data.sets; a room's own file is the room."""
    return ".".join(path.relative_to(ROOT / "stm").with_suffix("").parts).removesuffix(".__init__")


def entry(name: str) -> str | None:
    """The entry of ORDER that a module below stm belongs to: the most exact one; None for the package itself and its
    assets."""
    parts = name.split(".")
    known = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((each for each in known if each in ORDER), None)


def height(found: "Import") -> tuple[str | None, str | None]:
    """The entries of the file that imports and of what it imports."""
    return entry(module(found.path)), entry(found.name.removeprefix("stm."))


@cache
def imports_in(folder: str) -> list[Import]:
    return [found for path in python_files(folder) for found in imports(path)]


def imports_of(*folders: str) -> list[Import]:
    return [found for folder in folders for found in imports_in(folder)]


def in_stm() -> list[Import]:
    return imports_in("stm")


def test_every_module_has_its_place() -> None:
    there = {module(path) for path in python_files("stm")}
    assert {name for name in there if entry(name) is None} == {
        "__init__",
        "assets",
    }, "put it into ORDER and into docs/design.md section 1"


def test_each_imports_only_from_above() -> None:
    wrong = []
    for found in in_stm():
        importer, imported = height(found)
        known = importer is not None and imported is not None and found.name.startswith("stm.")
        if found.top_level and known and ORDER.index(imported) > ORDER.index(importer):
            wrong.append(str(found))
    assert wrong == []


def test_no_file_imports_itself_by_way_of_others() -> None:
    """Within a room, too: in the order of their imports all files can be read once."""
    names = {module(path): path for path in python_files("stm")}
    below = {
        name: (
            {
                child if (child := found.name.removeprefix("stm.")) in names else child.rpartition(".")[0]
                for found in in_stm()
                if found.path == path and found.top_level and found.name.startswith("stm.")
            }
            & names.keys()
        )
        for name, path in names.items()
    }
    TopologicalSorter(below).prepare()  # raises CycleError, with the circle


@pytest.mark.parametrize("name", ["model.vim", "merging.plan", "artifact.folder"])
def test_the_runtime_knows_no_baking(name: str) -> None:
    banned = ("merging.bnnm", "merging.budget", "bake", "peers", "commands")
    found = [found for found in in_stm() if module(found.path) == name]
    assert found, f"{name} imports nothing: is it there?"
    assert [str(each) for each in found if each.name.removeprefix("stm.").startswith(banned)] == []


def test_the_runtime_needs_torch_and_safetensors_alone() -> None:
    """Backends for GPUs import what they are made of: it is absent where they are not available."""
    allowed = {"stm", "torch", "safetensors"} | set(sys.stdlib_module_names)
    of_backends = {"triton": {"triton"}, "mamba_ssm": {"selective_scan_cuda", "causal_conv1d", "kernels"}}
    wrong = [
        str(found)
        for found in in_stm()
        if entry(module(found.path)) in RUNTIME
        and module(found.path) not in APART
        and (package := found.name.split(".")[0]) not in allowed
        and not any(found.path.stem.startswith(name) and package in optional for name, optional in of_backends.items())
    ]
    assert wrong == []


def test_transformers_is_imported_by_its_own_file_alone() -> None:
    importers = {
        module(found.path) for found in imports_of("stm", "stm_cli") if found.name.split(".")[0] == "transformers"
    }
    assert importers == {"integrations.transformers"}


def test_only_the_command_line_talks_to_people() -> None:
    wrong = [
        str(found)
        for found in in_stm()
        if found.name.split(".")[0] in {"rich", "typer", "click", "stm_cli", "tqdm"}
        and found.path.name != "__main__.py"  # `python -m stm` is the command line
    ]
    for path in python_files("stm"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"print", "input"}:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} calls {node.func.id}")
    assert wrong == []


def test_click_is_never_imported() -> None:
    everywhere = imports_of("stm", "stm_cli", "tests", "tools", "benchmarks")
    assert [str(found) for found in everywhere if found.name.split(".")[0] == "click"] == []


def test_the_command_line_does_no_tensor_math() -> None:
    wrong = [
        str(found)
        for found in imports_of("stm", "stm_cli")
        if found.path.is_relative_to(ROOT / "stm_cli") and found.name.split(".")[0] in {"torch", "numpy"}
    ]
    assert wrong == []


def test_no_module_bears_the_name_of_a_public_function() -> None:
    # With lazy exports and a stm/compress.py, the second stm.compress(...) would call a module.
    stems = {path.stem for path in (ROOT / "stm").glob("*.py")}
    assert stems & {"compress", "load", "load_checkpoint", "evaluate", "preprocess"} == set()


@pytest.mark.parametrize(
    "code",
    [
        "import stm",
        "import stm; stm.__version__; dir(stm)",
        "import sys; sys.argv = ['stm', '--help']; from stm_cli.main import main; main()",
        "import sys; sys.argv = ['stm', 'compress', '--help']; from stm_cli.main import main; main()",
        "import sys; sys.argv = ['stm', 'compress', 'x', '--rate', 'abc']; from stm_cli.main import main; main()",
        "import sys; sys.argv = ['stm', 'models', '--quiet']; from stm_cli.main import main; main()",
        "import sys; sys.argv = 'stm info stm/assets/vim-digits --json'.split(); from stm_cli.main import main; main()",
    ],
)
def test_torch_is_not_imported_before_it_is_needed(code: str) -> None:
    check = (
        "import atexit, sys; atexit.register(lambda: print('heavy:', sorted({'torch', 'numpy', 'scipy'} &"
        " sys.modules.keys())))"
    )
    run = subprocess.run(
        [sys.executable, "-c", f"{check}\n{code}"], capture_output=True, text=True, cwd=ROOT, timeout=HANG
    )
    assert run.stdout.endswith("heavy: []\n"), run.stdout + run.stderr


def test_a_command_imports_no_other_one() -> None:
    """Nor huggingface_hub's client: `stm models` looks into the cache by itself."""
    code = "import sys; sys.argv = ['stm', 'models', '--quiet']; from stm_cli.main import main\n"
    code += "try: main()\nfinally: print(sorted(each for each in sys.modules if each.startswith('stm_cli.')\n"
    code += "    and '._' not in each), 'huggingface_hub.file_download' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=HANG)
    assert run.stdout.endswith("['stm_cli.main', 'stm_cli.models'] False\n"), run.stdout + run.stderr


def test_a_checkpoint_is_described_without_torch(tmp_path: Path) -> None:
    """A trainer's file, safetensors, an index with its shards, and a question: all in one process."""
    import torch
    from safetensors.torch import save_file

    with torch.serialization.safe_globals([argparse.Namespace]):
        state = torch.load(MINI, weights_only=True)["model"]
    save_file(state, tmp_path / "x_midclstok.safetensors")
    names = sorted(state)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for shard, held in shards.items():
        save_file({name: state[name] for name in held}, tmp_path / shard)
    where = {name: shard for shard, held in shards.items() for name in held}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    code = f"""
import sys
from stm.commands.info import info
from stm.options import ModelOptions
from stm.errors import Question
for path in {[str(MINI), *map(str, sorted(tmp_path.glob("x_*"))), str(tmp_path / "model.safetensors.index.json")]!r}:
    info(path, ModelOptions(image_size=64, class_token="middle", divide_out=True))
info("stm/assets/vim-digits", ModelOptions(labels=tuple("abcdefghij")))
try:
    info({str(tmp_path / "model.safetensors.index.json")!r}, ModelOptions(image_size=64))
except Question:
    print("asked, heavy:", {{"torch", "numpy", "scipy", "PIL"}} & sys.modules.keys())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=HANG)
    assert run.stdout == "asked, heavy: set()\n", run.stdout + run.stderr


def test_no_test_holds_anything_to_a_clock() -> None:
    """What waits for a process waits for `HANG`: a busy machine is slow, not wrong."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.value.lineno} waits {ast.unparse(node.value)}"
        for path in python_files("tests")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.keyword) and node.arg == "timeout" and isinstance(node.value, ast.Constant)
    ]
    assert wrong == []
