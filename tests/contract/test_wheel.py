"""What a user installs: the wheel, built from a copy of the sources."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.hang import HANG

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("stm", "stm_cli", "pyproject.toml", "setup.py", "README.md", "LICENSE")


@pytest.fixture
def wheel(tmp_path: Path) -> zipfile.ZipFile:
    pytest.importorskip("setuptools", reason="the wheel is built with the setuptools of extra dev")
    copy = tmp_path / "sources"
    copy.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(ROOT / name, copy)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--wheel-dir",
        "dist",
        ".",
    ]
    done = subprocess.run(build, cwd=copy, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next((copy / "dist").glob("*.whl")))


@pytest.mark.slow
def test_it_holds_what_is_needed_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """One test, because processes that share the tests would each build a wheel: its C takes most of a minute."""
    holds_the_sources(wheel)
    keeps_the_assets_small(wheel)
    has_its_metadata(wheel)


def holds_the_sources(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for folder in ("stm", "stm_cli"):
        there = {
            str(path.relative_to(ROOT))
            for path in (ROOT / folder).rglob("*")
            if path.suffix in (".py", ".j2", ".tsv", ".typed")
        }
        assert there <= names
    assets = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "stm/assets").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert assets <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"stm", "stm_cli"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def keeps_the_assets_small(wheel: zipfile.ZipFile) -> None:
    assert sum(each.compress_size for each in wheel.infolist() if each.filename.startswith("stm/assets/")) < 2_000_000


def has_its_metadata(wheel: zipfile.ZipFile) -> None:
    read = {Path(name).name: wheel.read(name).decode() for name in wheel.namelist() if ".dist-info/" in name}
    assert re.search(r"^Name: stm-vim$", read["METADATA"], re.M)
    assert re.search(r"^Requires-Python: >=3.11$", read["METADATA"], re.M)
    assert re.search(r"^License-Expression: Apache-2.0$", read["METADATA"], re.M)
    assert re.search(r"^Requires-Dist: torch>=2.13$", read["METADATA"], re.M), (
        "torch has a tested floor and no upper bound"
    )
    assert set(re.findall(r"^Provides-Extra: (\w+)$", read["METADATA"], re.M)) == {
        "plots",
        "data",
        "bench",
        "export",
        "openvino",
        "cuda",
        "dev",
        "docs",
        "fuzz",
        "transformers",
    }
    assert "stm = stm_cli._start:main" in read["entry_points.txt"]


def test_constraints_are_exact_and_cover_the_dependencies() -> None:
    import tomllib

    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert pins["torch"] == "2.13.0", "no local version: it must be what any index calls it"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {
        re.split(r"[<>=;\[ ]", each)[0]
        for each in (*project["dependencies"], *extras["plots"], *extras["dev"], *extras["docs"], *extras["bench"])
    }

    def normal(name: str) -> str:
        return name.lower().replace("_", "-")

    assert set(map(normal, wanted)) <= set(map(normal, pins))
