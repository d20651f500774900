"""Change a file in one place at a time, and tell which changes no test sees.

    python tools/mutate.py stm/merging/merge.py tests/unit/test_merge.py [--every 5]

A change swaps an operator, a comparison or a constant, negates a condition, or drops a statement. Each is tried in a
process of its own, forked from one that has imported torch and pytest but nothing of stm, so a change costs the tests
alone. What survives is printed; the exit code is 0, because a survivor may change nothing that can be seen.
"""

import argparse
import ast
import contextlib
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import io
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("tests", nargs="+")
    parser.add_argument("--every", type=int, default=1, help="try only each so-manieth change")
    parser.add_argument("--limit", type=int, default=60, help="processor seconds for one change; more count as seen")
    options = parser.parse_args()
    sys.path.insert(0, str(Path.cwd()))
    import pytest  # noqa: F401  # the processes that are forked need not import them
    import torch  # noqa: F401

    tree = ast.parse(options.file.read_text(encoding="utf-8"))
    if not passes(options, tree):
        sys.exit("the tests fail without any change")
    changes = list(mutants(tree))[:: options.every]
    survivors = []
    for line, what, mutant in changes:
        if passes(options, mutant):
            survivors.append(f"{options.file}:{line}: {what}")
            print(survivors[-1], flush=True)
    print(f"{options.file}: {len(changes)} changes, {len(survivors)} survived")
    return 0


def mutants(tree: ast.Module) -> Iterator[tuple[int, str, ast.Module]]:
    """Yield the line, the kind and the tree of each change. Annotations and docstrings stay as they are."""
    for number, node in enumerate(ast.walk(tree)):
        for what in kinds(node):
            changed = copy.deepcopy(tree)
            twin = list(ast.walk(changed))[number]
            change(twin, what)
            yield getattr(node, "lineno", 0), f"{what}: {ast.unparse(node).splitlines()[0][:80]}", changed


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
    if isinstance(node, ast.FunctionDef | ast.If | ast.For | ast.With):
        yield from (f"drop {index}" for index, each in enumerate(node.body) if dropped(each))


def dropped(statement: ast.stmt) -> bool:
    is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return isinstance(statement, DROPPED) and not is_text


def change(node: Any, what: str) -> None:
    if what in ("operator", "and/or"):
        node.op = SWAPS[type(node.op)]()
    elif what == "comparison":
        node.ops[0] = SWAPS[type(node.ops[0])]()
    elif what == "condition":
        node.test = ast.UnaryOp(ast.Not(), node.test)
    elif what == "constant":
        node.value = (not node.value) if isinstance(node.value, bool) else node.value + 1
    else:
        node.body[int(what.split()[1])] = ast.Pass()
    ast.fix_missing_locations(node)


def passes(options: argparse.Namespace, tree: ast.Module) -> bool:
    child = os.fork()
    if child == 0:
        # Ends a change that makes a loop without an end. Processor time: another program may hold the machine.
        resource.setrlimit(resource.RLIMIT_CPU, (options.limit, options.limit))
        os._exit(tested(options, ast.fix_missing_locations(tree)))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def tested(options: argparse.Namespace, tree: ast.Module) -> int:
    import pytest

    name = ".".join(options.file.with_suffix("").parts).removesuffix(".__init__")
    sys.meta_path.insert(0, Finder(name, options.file.resolve(), tree))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        quick = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--hypothesis-profile=mutants"]
        return int(pytest.main([*quick, *options.tests]))


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
