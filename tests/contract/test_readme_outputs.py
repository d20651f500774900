"""What README.md shows of the commands is what they print."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_tool", ROOT / "tools" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL = _tool()


def chains() -> list[list[tuple[str, list[str]]]]:
    """The README's commands and outputs; one that starts from the embedded model needs none before it."""
    found: list[list[tuple[str, list[str]]]] = []
    for command, shown in TOOL.commands(TOOL.README.read_text(encoding="utf-8")):
        if not found or "vim-digits" in command.split():
            found.append([])
        found[-1].append((command, shown))
    return found


@pytest.fixture
def readme() -> ModuleType:
    return TOOL


@pytest.mark.slow(seconds=60)
@pytest.mark.parametrize("chain", chains(), ids=lambda chain: chain[0][0])
def test_every_output_is_real(readme: ModuleType, chain: list[tuple[str, list[str]]]) -> None:
    pytest.importorskip("matplotlib", reason="stm explain draws with matplotlib, the extra plots")
    outputs = readme.run([command for command, _ in chain])
    for (command, shown), printed in zip(chain, outputs, strict=True):
        assert readme.same(shown, printed, readme.SPEEDS in command), "\n".join([f"$ {command}", *printed])


TEXT = """Words.

    $ stm info x
    old
    old

    stm eval x        # not an output

    $ stm compress x --quiet
    $ stm report y
    page  1
"""


def test_commands_and_their_outputs(readme: ModuleType) -> None:
    assert readme.commands(TEXT) == [
        ("stm info x", ["old", "old"]),
        ("stm compress x --quiet", []),
        ("stm report y", ["page  1"]),
    ]
    again = readme.replaced(TEXT, [["new"], ["x-stm40"], ["page  2", "more"]])
    assert readme.commands(again) == [
        ("stm info x", ["new"]),
        ("stm compress x --quiet", ["x-stm40"]),
        ("stm report y", ["page  2", "more"]),
    ]
    assert "    stm eval x        # not an output\n" in again
    assert readme.replaced(again, [lines for _, lines in readme.commands(again)]) == again


def test_speeds_and_the_machine_may_vary(readme: ModuleType) -> None:
    shown, printed = ["top-1  87.3%  69", "", "measured on A"], ["top-1  87.3%  12", "", "measured on B,", "2 threads"]
    assert readme.same(shown, printed, True) and not readme.same(shown, printed)
    assert not readme.same(shown, ["top-1  78.3%  69", "", "measured on A"], True)


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("top-1  87.3% (84.4 to 89.7)", "top-1  87.4% (84.4 to 89.7)", True),
        ("top-1  87.3%", "top-1  78.3%", False),
        ("page  72.98 kB", "page  73.1 kB", True),
        ("page  72.98 kB", "page  72.98 MB", False),
        ("p = 4.7e-19", "p = 4.8e-19", True),
        ("a  1", "a 1", True),
    ],
)
def test_what_is_the_same(readme: ModuleType, shown: str, printed: str, same: bool) -> None:
    assert readme.same([shown], [printed]) is same
    assert not readme.same([shown], [printed, printed])
