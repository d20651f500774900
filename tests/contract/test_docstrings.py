"""Examples in public docstrings: each one runs, in a folder that holds nothing but a checkpoint.

An example is an indented block after a blank line, as reStructuredText and Markdown have it, or a session (`>>>`) whose
outputs are compared. The checkpoint is a small ViM under the name of an official file, since `stm.load_checkpoint`
cannot do without one.
"""

import doctest
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import stm

CHECKPOINT = "vim_s_midclstok_80p5acc.pth"
SMALL = Path(__file__).resolve().parents[1] / "golden" / "dense-mini" / "vim_mini_stride8.pth"
# Before an example and its own: a blank line, then lines that are indented further than the text.
BLOCK = re.compile(r"(?:^|\n)\n((?:[ ]{4}.*\n|\n(?=[ ]{4}))+)")


class Example(NamedTuple):
    name: str
    code: str


def documented() -> Iterator[tuple[str, str]]:
    """The public names with docstrings of their own: the package, what it exports, and their public methods."""
    yield "stm", inspect.cleandoc(stm.__doc__ or "")
    for name in stm.__all__:
        value = getattr(stm, name)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        yield f"stm.{name}", inspect.cleandoc(value.__doc__ or "")
        for method, each in vars(value).items() if inspect.isclass(value) else ():
            each = getattr(each, "__func__", each)
            if not method.startswith("_") and inspect.isfunction(each):
                yield f"stm.{name}.{method}", inspect.cleandoc(each.__doc__ or "")


def examples(name: str, text: str) -> Iterator[Example]:
    """The examples of a docstring, in order; sessions keep their prompts."""
    if doctest.DocTestParser().get_examples(text):
        yield Example(name, text)
        return
    for block in BLOCK.findall(f"{text}\n"):
        yield Example(name, textwrap.dedent(block).strip())


FOUND = [example for name, text in documented() for example in examples(name, text)]


def run(example: Example) -> None:
    """Run an example in the current folder; the names that it may take for granted are `stm` alone."""
    names: dict[str, Any] = {"stm": stm}
    if not doctest.DocTestParser().get_examples(example.code):
        exec(compile(example.code, f"the docstring of {example.name}", "exec"), names)
        return
    test = doctest.DocTestParser().get_doctest(example.code, names, example.name, None, None)
    said: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
    assert said == [], "".join(said)


@pytest.mark.parametrize("example", FOUND, ids=lambda example: example.name)
def test_it_runs(example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.copy(SMALL, CHECKPOINT)
    run(example)


def test_the_package_has_one() -> None:
    assert "stm" in {example.name for example in FOUND}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("What it does.\n\n    x = 1\n\n    y = x\n\nMore.", ["x = 1\n\ny = x"]),
        ("What it does.\n\n    x = 1\n\nMore.\n\n    y = 2", ["x = 1", "y = 2"]),
        ("What it does.\n\nArgs:\n    x: a number.\n        Or not.\n\nRaises:\n    ValueError: a bad one.", []),
        ("What it does.\n\nExamples:\n    >>> 1 + 1\n    2", ["What it does.\n\nExamples:\n    >>> 1 + 1\n    2"]),
    ],
)
def test_what_is_an_example(text: str, code: list[str]) -> None:
    assert [example.code for example in examples("x", text)] == code


@pytest.mark.parametrize("code", ["stm.lod('vim-digits')", ">>> 1 + 1\n3", ">>> stm.lod('vim-digits')"])
def test_one_that_does_not_do_what_it_shows_fails(code: str) -> None:
    with pytest.raises((AttributeError, AssertionError)):
        run(Example("x", code))
