"""Faults put into the code one at a time, to see whether the tests notice: `make mutants`, or with names of files.

Each fault is a small change of the syntax tree (`mutants_of`). The tests of a file run against each fault in a
process forked from one that has imported torch and the like already but nothing of `src`, which takes about a second
where a fresh process takes six. mutmut refuses a package called `src` and leaves decorated functions alone; cosmic-ray
deletes no statements and starts a fresh process each time.
"""

import argparse
import ast
import copy
import gc
import importlib.abc
import importlib.machinery
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent
FILES = ("src/methods/*.py", "src/metrics/*.py", "src/vectors/*.py", "src/callbacks/*.py", "src/module.py")
ENOUGH = 0.9  # of the mutants must die
PATIENCE = 60  # seconds, after which the tests of a mutant count as failed: it does not end
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclass(frozen=True)
class Mutant:
    """A fault: where it is, the changed line, and the whole changed file."""

    path: str
    line: int
    before: str
    after: str
    tree: ast.Module


def _changes(node: ast.AST) -> Iterator[Callable[[], ast.AST]]:
    """Ways to make `node` wrong; each returns what stands in its place."""
    if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in SWAPS:
        yield lambda: _with(node, op=SWAPS[type(node.op)]())
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        yield lambda: _with(node, ops=[SWAPS[type(node.ops[0])](), *node.ops[1:]])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not | ast.Invert):
        yield lambda: node.operand
    if isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield lambda: ast.Constant(not node.value)
        elif isinstance(node.value, int | float):
            yield lambda: ast.Constant(node.value + 1)  # type: ignore[operator]
        elif isinstance(node.value, str):
            yield lambda: ast.Constant(f"{node.value}X")  # type: ignore[str-bytes-safe]
    if isinstance(node, ast.If | ast.IfExp):
        yield lambda: _with(node, test=ast.UnaryOp(ast.Not(), node.test))
    if isinstance(node, ast.Call):
        for keyword in node.keywords:
            if keyword.arg is not None:
                yield partial(_with, node, keywords=[k for k in node.keywords if k is not keyword])
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("detach", "clone", "float", "double"):
            yield lambda: node.func.value  # type: ignore[attr-defined]
    if isinstance(node, ast.FunctionDef):
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call):
                yield partial(_with, node, decorator_list=[d for d in node.decorator_list if d is not decorator])
    called = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    stored = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute | ast.Subscript)
    if called or stored or isinstance(node, ast.AugAssign | ast.Raise):
        yield lambda: ast.Pass()
    if isinstance(node, ast.For):
        yield lambda: ast.Pass()


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _children(node: ast.AST) -> Iterator[tuple[str, int | None, ast.AST]]:
    """The parts of `node` that compute: neither types, nor what an error or a picture says."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "type_params", "decorator_list", "bases"):
            continue
        if isinstance(node, ast.Raise | ast.JoinedStr) or _is_text(node) or _is_type(node):
            continue
        for place, child in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(child, ast.AST) and not _is_docstring(child):
                yield name, place if isinstance(value, list) else None, child


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_text(node: ast.AST) -> bool:
    """Warnings, and the drawing of a figure."""
    words = ("warn", "set", "grid", "legend", "set_ylabel", "set_xlabel", "savefig", "subplots", "set_major_locator")
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in words


def _is_type(node: ast.AST) -> bool:
    return isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in ("Row", "T")


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Every fault that is put into the file, one after the other."""
    source = path.read_text()
    tree, lines = ast.parse(source), source.splitlines()

    def walk(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
        for name, place, child in _children(node):
            yield node, name, place, child
            yield from walk(child)

    for parent, name, place, node in list(walk(tree)):
        for change in _changes(node):
            changed = change()
            if place is None:
                setattr(parent, name, changed)
            else:
                getattr(parent, name)[place] = changed
            line = getattr(node, "lineno", 1)
            after = "removed" if isinstance(changed, ast.Pass) else ast.unparse(changed).splitlines()[-1][:110]
            mutant = copy.deepcopy(tree)
            if place is None:
                setattr(parent, name, node)
            else:
                getattr(parent, name)[place] = node
            yield Mutant(str(path.relative_to(ROOT)), line, lines[line - 1].strip()[:110], after.strip(), mutant)


def tests_of(path: str) -> list[str]:
    """The test files that concern a source file, its own first."""
    folder, name = path.split("/")[1:-1], path.rsplit("/", 1)[1]
    own = "/".join(["tests", *folder, f"test_{name}"])
    room = {
        "methods": ["tests/methods/test_whole.py"],
        "metrics": [],
        "vectors": ["tests/metrics", "tests/methods/test_whole.py"],
        "callbacks": ["tests/callbacks", "tests/test_module.py"],
        "": ["tests/callbacks"],
    }["".join(folder)]
    return [own] * (ROOT / own).exists() + room


class _Loader(importlib.abc.Loader):
    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(ast.fix_missing_locations(self.tree), str(module.__file__), "exec"), module.__dict__)


class _Finder(importlib.abc.MetaPathFinder):
    """Hands out the mutant in place of the module."""

    def __init__(self, mutant: Mutant) -> None:
        self.name, self.mutant = mutant.path.removesuffix(".py").replace("/", "."), mutant

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        spec = importlib.machinery.ModuleSpec(fullname, _Loader(self.mutant.tree), origin=str(ROOT / self.mutant.path))
        spec.has_location = True
        return spec


def start(path: str, mutant: Mutant | None) -> int:
    """Fork a process that runs the tests of `path`; it ends with 0 where all pass."""
    child = os.fork()
    if child:
        return child
    os.setpgid(0, 0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    import pytest

    if mutant:
        sys.meta_path.insert(0, _Finder(mutant))
    # Tests that start processes of their own would see the file as it is.
    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-k", "not rank", *tests_of(path)])
    os._exit(int(code))


def run(jobs: Sequence[Mutant], at_once: int) -> list[Mutant]:
    """Those of the mutants that no test notices, each printed when it is found."""
    from rich.progress import track

    survivors: list[Mutant] = []
    running: dict[int, tuple[Mutant, float]] = {}
    waiting = list(jobs)[::-1]
    for _ in track(jobs, "mutants"):
        while True:
            while waiting and len(running) < at_once:
                mutant = waiting.pop()
                running[start(mutant.path, mutant)] = mutant, time.monotonic()
            child, status = os.waitpid(-1, os.WNOHANG)
            if child:
                mutant, _ = running.pop(child)
                if os.waitstatus_to_exitcode(status) == 0:
                    survivors.append(mutant)
                    print(f"survived: {mutant.path}:{mutant.line}: {mutant.before}  ->  {mutant.after}", flush=True)
                break
            for other, (_, began) in running.items():
                if time.monotonic() - began > PATIENCE:
                    os.killpg(other, signal.SIGKILL)
            time.sleep(0.01)
    return survivors


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.mutants", description=__doc__)
    parser.add_argument("file", nargs="*", help="source files; all that are meant by default")
    parser.add_argument("--at-once", type=int, default=os.cpu_count(), help="processes")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # a forked process must not find threads begun
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # other packages' plugins take most of a second to load
    import hydra.utils  # noqa: F401
    import pytest  # noqa: F401
    import pytorch_lightning  # noqa: F401
    import pytorch_metric_learning.losses  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import torch  # noqa: F401
    import torchmetrics  # noqa: F401

    gc.freeze()  # what was imported is not looked through again in each process
    names = options.file or sorted(str(p.relative_to(ROOT)) for pattern in FILES for p in ROOT.glob(pattern))
    names = [name for name in names if tests_of(name)]  # an empty __init__.py has none
    for name in names:
        if os.waitstatus_to_exitcode(os.waitpid(start(name, None), 0)[1]) != 0:
            sys.exit(f"the tests of {name} fail without any mutant: {' '.join(tests_of(name))}")
    jobs = [mutant for name in names for mutant in mutants_of(ROOT / name)]
    survivors = run(jobs, options.at_once)
    for name in names:
        total, alive = (sum(m.path == name for m in group) for group in (jobs, survivors))
        if total:
            print(f"{name:40} {total:5} mutants, {100 * (total - alive) / total:5.1f}% killed")
    share = 1 - len(survivors) / len(jobs)
    print(f"mutants: {len(jobs) - len(survivors)} killed, {len(survivors)} survived: {100 * share:.1f}% killed")
    sys.stdout.flush()
    os._exit(share < ENOUGH)  # at once: what was frozen would be reported as leaked


if __name__ == "__main__":
    main()
