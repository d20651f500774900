"""Change files in one place at a time, and tell which changes no test sees.

    python tools/mutate.py stm/merging/merge.py --tests tests/unit/test_merge.py [--every 5] [--kept FOLDER]

A change swaps an operator, a comparison or a constant, negates a condition, or drops a statement. The tests are
collected once, and each runs once alone, so that it is known which lines it takes and for how long. Then each change is
tried in a process forked from there: the code of the changed function is replaced, and the tests that take the changed
line run, the quick ones first. What no test sees so, and what is outside of functions, is tried again in a process that
has imported nothing of stm. What survives that is printed; the exit code is 0, because a survivor may change nothing
that can be seen.
"""

import argparse
import ast
import contextlib
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest
import torch  # noqa: F401  # the processes that are forked need not import it

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
DROPPED = (ast.Assign, ast.AugAssign, ast.Raise, ast.Expr)
QUICK = ["-q", "-n", "0", "-p", "no:cacheprovider", "--hypothesis-profile=mutants"]
SILENCE = 180  # seconds after which tests that wait for something are ended, and
PATIENCE = 30  # those after which one test is, beside twenty times what it takes: such a change counts as seen


@dataclass(frozen=True)
class Change:
    """One change.

    Args:
        file: as it was named.
        number: which node in the order of ast.walk, and
        kind: what is done to it.
        lines: first and last line of the statement.
        text: the line, the kind and the code, for people.
        function: name and first line of the outermost function in whose body it is; None: it is in none.
    """

    file: Path
    number: int
    kind: str
    lines: tuple[int, int]
    text: str
    function: tuple[str, int] | None

    def tree(self) -> ast.Module:
        tree = ast.parse(self.file.read_text(encoding="utf-8"))
        change(list(ast.walk(tree))[self.number], self.kind)
        return tree


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--tests", nargs="+", required=True, help="files, folders and options for pytest")
    parser.add_argument("--every", type=int, default=1, help="try only each so-manieth change")
    parser.add_argument(
        "--limit", type=int, default=60, help="run as many tests for one change as fit in so many seconds"
    )
    parser.add_argument("--kept", type=Path, help="folder of what was tried; a run that was stopped goes on from there")
    options = parser.parse_args()
    sys.path.insert(0, str(Path.cwd()))
    kept = options.kept or Path(tempfile.mkdtemp(prefix="mutate-"))
    kept.mkdir(parents=True, exist_ok=True)
    seen = kept / "seen.jsonl"
    if not forked(partial(run_here, options, kept, seen), 0):
        sys.exit(f"the tests could not be run; {kept / 'log.txt'} says more")
    tests = json.loads((kept / "tests.json").read_text())
    for file in options.files:
        results = known(seen)
        changes = list(changes_of(file))[:: options.every]
        survivors = []
        for each in changes:
            result = results.get(key(each))
            if result in (None, "again"):
                names = takers(each, tests, options.limit) or takers(each, tests, options.limit, whole=True)
                alive = not names or forked(partial(run_anew, each, names, options.limit), 2 * SILENCE)
                result = "survived" if alive else "killed"
                keep(seen, each, result)
            if result == "survived":
                survivors.append(each)
                print(f"{file}:{each.text}", flush=True)
        print(f"{file}: {len(changes)} changes, {len(survivors)} survived", flush=True)
    return 0


def changes_of(file: Path) -> Iterator[Change]:
    """Yield all changes of a file. Annotations and docstrings stay as they are."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions: dict[ast.AST, tuple[str, int]] = {}
    statements: dict[ast.AST, ast.stmt] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node not in functions:
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            for each in (within for statement in node.body for within in ast.walk(statement)):
                functions[each] = (node.name, first)
        if isinstance(node, ast.stmt):
            statements[node] = node
        for each in ast.iter_child_nodes(node):
            if node in statements:
                statements[each] = statements[node]
    for number, node in enumerate(ast.walk(tree)):
        for kind in kinds(node):
            target = node.body[int(kind.split()[1])] if kind.startswith("drop") else node  # type: ignore[attr-defined]
            statement = statements.get(target)
            if statement is None:
                continue
            last = statement.body[0].lineno - 1 if hasattr(statement, "body") else statement.end_lineno
            lines = (statement.lineno, max(statement.lineno, last or 0))
            text = f"{getattr(target, 'lineno', 0)}: {kind}: {ast.unparse(target).splitlines()[0][:80]}"
            yield Change(file, number, kind, lines, text, functions.get(target))


def kinds(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.BinOp) and type(node.op) in SWAPS and not isinstance(node.op, ast.BitOr):
        yield "operator"
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        yield "comparison"
    if isinstance(node, ast.BoolOp):
        yield "and/or"
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        yield "condition"
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield "constant"
    if isinstance(node, ast.FunctionDef | ast.If | ast.For | ast.With | ast.Try | ast.While):
        yield from (f"drop {index}" for index, each in enumerate(node.body) if dropped(each))


def dropped(statement: ast.stmt) -> bool:
    is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return isinstance(statement, DROPPED) and not is_text


def change(node: Any, kind: str) -> None:
    if kind in ("operator", "and/or"):
        node.op = SWAPS[type(node.op)]()
    elif kind == "comparison":
        node.ops[0] = SWAPS[type(node.ops[0])]()
    elif kind == "condition":
        node.test = ast.UnaryOp(ast.Not(), node.test)
    elif kind == "constant":
        node.value = (not node.value) if isinstance(node.value, bool) else node.value + 1
    else:
        at = int(kind.split()[1])
        node.body[at] = ast.copy_location(ast.Pass(), node.body[at])
    ast.fix_missing_locations(node)


def key(each: Change) -> str:
    return f"{each.file} {each.number} {each.kind} {each.text}"


def keep(seen: Path, each: Change, result: str) -> None:
    with seen.open("a", encoding="utf-8") as file:
        file.write(json.dumps([key(each), result]) + "\n")


def known(seen: Path) -> dict[str, str]:
    return dict(map(json.loads, seen.read_text(encoding="utf-8").splitlines())) if seen.exists() else {}


def takers(each: Change, tests: dict[str, Any], limit: int, whole: bool = False) -> list[str]:
    """The tests that take the change's lines, or any of its file, the quick ones first, as many as fit."""
    first, last = (0, sys.maxsize) if whole else each.lines
    names = [
        name
        for name, test in tests.items()
        if any(first <= line <= last for line in test["lines"].get(str(each.file), ()))
    ]
    names.sort(key=lambda name: tests[name]["seconds"])
    ends = accumulate(tests[name]["seconds"] for name in names)
    return [name for name, end in zip(names, ends, strict=True) if end <= limit]


def forked(run: Callable[[], bool], silence: int) -> bool:
    """Whether a process forked from this one says so. It has a folder of its own for temporary files."""
    folder = tempfile.mkdtemp(prefix="mutant-")
    child = os.fork()
    if child == 0:
        os.environ["TMPDIR"], tempfile.tempdir = folder, None
        signal.alarm(silence)
        passed = False
        with contextlib.suppress(BaseException):
            passed = run()
        os._exit(not passed)
    passed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    shutil.rmtree(folder, ignore_errors=True)
    return passed


def limit_to(seconds: float) -> None:
    """End this process after so many more seconds of a processor: a change may make a loop without an end. Another
    program may hold the machine, so the time of day says nothing."""
    at = int(time.process_time() + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (at, resource.RLIM_INFINITY))


def run_anew(each: Change, names: list[str], limit: int) -> bool:
    """Whether the tests pass with the change, in a process that has imported nothing of stm."""
    limit_to(3 * limit + 60)
    name = module_name(each.file)
    sys.meta_path.insert(0, Finder(name, each.file.resolve(), each.tree()))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return pytest.main(["-x", *QUICK, *names]) == 0


def run_here(options: argparse.Namespace, kept: Path, seen: Path) -> bool:
    """Collect the tests, and try in forks of this process all changes that are in functions."""
    with (
        (kept / "log.txt").open("w") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        return pytest.main([*QUICK, *options.tests], plugins=[Loop(options, kept, seen)]) == 0


class Loop:
    """pytest's loop over the tests, replaced by one over the changes."""

    def __init__(self, options: argparse.Namespace, kept: Path, seen: Path) -> None:
        self.options, self.kept, self.seen = options, kept, seen
        self.failed = False

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed |= report.failed

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        for file in self.options.files:
            importlib.import_module(module_name(file))
        items = {item.nodeid: item for item in session.items}
        gc.collect()
        functions: dict[tuple[str, str, int], list[FunctionType]] = {}
        for each in gc.get_objects():
            if type(each) is FunctionType:  # isinstance asks objects of torch for their class, which they warn of
                code = each.__code__
                functions.setdefault((code.co_filename, code.co_name, code.co_firstlineno), []).append(each)
        gc.freeze()  # no fork copies pages of objects that it never changes
        tests = self.measured(items)
        asked = {name: tests[name] for name in items if name in tests}
        results = known(self.seen)
        for file in self.options.files:
            for each in list(changes_of(file))[:: self.options.every]:
                changed = functions.get((str(file.resolve()), *each.function), []) if each.function else []
                names = takers(each, asked, self.options.limit)
                if key(each) not in results:
                    result = "again"
                    if changed and names:
                        pairs = [(items[name], tests[name]["seconds"]) for name in names]
                        result = "again" if forked(partial(self.passes, pairs, each, changed), SILENCE) else "killed"
                    keep(self.seen, each, result)
        return True

    def measured(self, items: dict[str, pytest.Item]) -> dict[str, Any]:
        """How many seconds each test takes, and which lines of the files. One that fails alone is left out."""
        path = self.kept / "tests.json"
        tests: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        said = self.kept / "said.json"
        for name, item in items.items():
            if name not in tests:
                said.unlink(missing_ok=True)
                if forked(partial(self.take, item, said), SILENCE) and said.exists():
                    tests[name] = json.loads(said.read_text())
                else:
                    print("left out, it fails or takes too long:", name, flush=True)
        path.write_text(json.dumps(tests))
        return tests

    def take(self, item: pytest.Item, said: Path) -> bool:
        files = {str(file.resolve()): str(file) for file in self.options.files}
        lines: dict[str, set[int]] = {name: set() for name in files.values()}

        def local(frame: FrameType, event: str, argument: Any) -> Any:
            lines[files[frame.f_code.co_filename]].add(frame.f_lineno)
            return local

        def called(frame: FrameType, event: str, argument: Any) -> Any:
            return local if frame.f_code.co_filename in files else None

        limit_to(self.options.limit)
        began = time.process_time()
        sys.settrace(called)
        item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
        sys.settrace(None)
        took = {name: sorted(each) for name, each in lines.items() if each}
        said.write_text(json.dumps({"seconds": round(time.process_time() - began, 3), "lines": took}))
        return not self.failed

    def passes(self, tests: list[tuple[pytest.Item, float]], each: Change, changed: list[FunctionType]) -> bool:
        codes = codes_in(compile(each.tree(), str(each.file.resolve()), "exec"))
        for function in changed:
            function.__code__ = codes[function.__code__.co_name, function.__code__.co_firstlineno]
        for number, (item, seconds) in enumerate(tests):
            limit_to(10 * seconds + 5)
            signal.alarm(int(20 * seconds) + PATIENCE)
            following = tests[number + 1][0] if number + 1 < len(tests) else None
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                return False
        return True


def codes_in(code: CodeType) -> dict[tuple[str, int], CodeType]:
    """All functions' code, by name and first line."""
    codes = {(code.co_name, code.co_firstlineno): code}
    for each in code.co_consts:
        if isinstance(each, CodeType):
            codes |= codes_in(each)
    return codes


def module_name(file: Path) -> str:
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a tree instead of its file."""

    def __init__(self, name: str, path: Path, tree: ast.Module) -> None:
        self.name, self.path, self.tree = name, path, tree

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: Any) -> None:
        exec(compile(self.tree, str(self.path), "exec"), vars(module))


if __name__ == "__main__":
    sys.exit(main())
