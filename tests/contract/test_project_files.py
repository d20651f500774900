"""What a contributor finds, held to what is there: files and commands that CONTRIBUTING.md names, the citation, the
workflows."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import stm
from stm import install

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PLACEHOLDERS = ("NAME", "COMMAND")
TEXTS = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in ("CONTRIBUTING.md", "SECURITY.md", "CITATION.cff", "mkdocs.yml")
}
YAML = sorted([*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"])


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md"])
def test_files_that_are_named_are_there(name: str) -> None:
    named = {
        match.rstrip(".")
        for match in re.findall(r"(?<![\w./])(?:stm|stm_cli|tests|docs|tools|examples|benchmarks)/[\w./]*", TEXTS[name])
    }
    assert named, "no file is named"
    absent = [
        path for path in sorted(named) if not any(word in path for word in PLACEHOLDERS) and not (ROOT / path).exists()
    ]
    assert absent == []


def test_names_that_the_recipes_send_to_are_there() -> None:
    """A recipe that sends to a list which has been renamed is worse than none."""
    for path, names in {
        "stm/peers/__init__.py": ("PEERS", "DEFAULT"),
        "tests/unit/test_peers.py": ("PRUNING", "UNORDERED"),
        "tests/unit/test_flops_of_peers.py": ("OWN",),
        "tests/cli/test_options.py": ("test_every_option_is_here", "Case"),
        "tests/cli/test_usage.py": ("COMMANDS",),
        "stm/backends/__init__.py": ("ORDER", "MADE_FOR"),
        "stm/install.py": ("REPOSITORY",),
    }.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        for name in names:
            assert f"`{name}`" in TEXTS["CONTRIBUTING.md"], (
                f"CONTRIBUTING.md does not send to {name} any more: take it out here"
            )
            assert re.search(rf"^(?:def |class )?{name}\b", text, re.MULTILINE), f"{path} has no {name}"


def test_the_designs_table_names_every_module_once() -> None:
    """Section 1 of docs/design.md is where a stranger looks up a file: a module that moved must move there too."""
    section = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").split("\n## 1. ")[1].split("\n## 2. ")[0]
    named = []
    for line in section.splitlines():
        if not line.startswith("| `"):
            continue
        _, left, middle, *_ = line.split("|")
        owners, files = re.findall(r"`([^`]+)`", left), re.findall(r"`([^`]+)`", middle)
        named += [f"{owners[0]}{name}" for name in files] or owners
    files = [path.relative_to(ROOT / "stm") for path in (ROOT / "stm").rglob("*.py") if path.name != "__init__.py"]
    assert {"assets/", *(path.with_suffix("").as_posix() for path in files)} ^ set(named) == set()
    assert len(named) == len(set(named))


def test_make_has_the_targets_that_are_named() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"^ {4}make (\w+)", TEXTS["CONTRIBUTING.md"], re.MULTILINE)):
        assert re.search(rf"^[\w ]*\b{target}\b[\w ]*:", makefile, re.MULTILINE), f"make {target}"


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_each_is_yaml(path: Path) -> None:
    assert isinstance(read(path), dict)


def test_the_citation_is_of_this_version_and_licence() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert str(citation["version"]) == stm.__version__
    assert citation["license"] == PROJECT["project"]["license"]
    assert citation["preferred-citation"]["identifiers"][0]["value"] == "arXiv:2509.22691"


def test_the_workflow_runs_what_a_contributor_runs() -> None:
    job = read(ROOT / ".github/workflows/ci.yml")["jobs"]["run"]
    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for target in ("lint", "docs", "fuzz", "test", "covered", "slow"):
        assert re.search(rf"^[^#\n]*\bmake( \w+)*? {target} ", run, re.MULTILINE), target
    assert "-p tests.cover" in run, "what `covered` reports"
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert oldest in job["strategy"]["matrix"]["python"], "the oldest Python that is promised"


def test_workflows_may_only_read() -> None:
    for path in ROOT.glob(".github/workflows/*.yml"):
        assert read(path)["permissions"] == {"contents": "read"}


def test_no_file_names_an_address_before_there_is_one() -> None:
    """Then each of them does: the list is in CONTRIBUTING.md, "Release"."""
    there = {
        "pyproject.toml": "urls" in PROJECT["project"],
        "CITATION.cff": "repository-code" in read(ROOT / "CITATION.cff"),
        "mkdocs.yml": re.search(r"^repo_url:", TEXTS["mkdocs.yml"], re.MULTILINE) is not None,
    }
    assert there == dict.fromkeys(there, install.REPOSITORY is not None)
