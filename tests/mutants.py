"""Faults put into the code one at a time, to see whether the tests notice: `make mutants`, or with names of files.

Each fault is a small change of the syntax tree (`mutants_of`). The tests run once without any, to see which functions
each of them calls and how long it takes; against each fault run those that call the changed function, the shortest
first, in a process forked from one that has imported all that they import but `src` and themselves: a few seconds of
them, and a minute where those notice nothing. The faults that then survive are judged one by one in `mutants.md`.

mutmut refuses a package called `src` and leaves decorated functions alone; cosmic-ray deletes no statements. Both run
all tests each time, in a fresh process.
"""

import argparse
import ast
import contextlib
import copy
import gc
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
FILES = ("src/methods/*.py", "src/metrics/*.py", "src/vectors/*.py", "src/callbacks/*.py", "src/module.py")
TESTS = ("tests/methods", "tests/metrics", "tests/vectors", "tests/callbacks", "tests/test_module.py")
# Tests that start processes of their own would see the file as it is; those that train for long notice what others do.
LEFT_OUT = ("rank", "test_learning")
JUDGED = ROOT / "tests/mutants.md"
ENOUGH = 0.9  # of the mutants must die
SOON, LATE = 12, 60  # seconds of tests against each mutant: most are noticed soon, the others meet more tests
PATIENCE = 90  # seconds, after which a mutant counts as killed: its tests have no end
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
# Arguments that save a copy or a check, or say what is so anyway, by the end of the function's name (empty: of any).
SAME = {
    "": ("inplace=True", "non_blocking=True", "strict=True", "strict=False", "check_invariants=False"),
    "topk": ("dim=1", "sorted=False"),
    "sort": ("dim=1",),
    "normalize": ("dim=1",),
    "cosine_similarity": ("dim=1",),
}
FURNITURE = (
    *("Figure", "Rectangle", "axis", "grid", "legend", "savefig", "set", "set_major_locator"),
    *("set_xlabel", "set_ylabel", "subplots", "subplots_adjust", "suptitle"),
)
SIZES = ("BLOCK", "CHUNK", "CANDIDATES", "SCORES", "WEIGHTS", "GROUP", "ROUNDS", "(ROWS, QUERIES)", "AT_ONCE")


@dataclass(frozen=True)
class Mutant:
    """A fault: where it is, the changed line, and the whole changed file."""

    path: str
    line: int
    function: str  # the outermost that it is in; empty: what runs when the module is imported
    before: str
    after: str
    tree: ast.Module

    def __str__(self) -> str:
        return f"{self.path}: {self.before}  ->  {self.after}"


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
    if isinstance(node, ast.Call) and not _is_text(node):
        for keyword in node.keywords:
            if keyword.arg is not None and not _is_same(node, keyword):
                yield partial(_with, node, keywords=[k for k in node.keywords if k is not keyword])
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("detach", "clone", "float", "double"):
            yield lambda: node.func.value  # type: ignore[attr-defined]
    if isinstance(node, ast.FunctionDef):
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call):
                yield partial(_with, node, decorator_list=[d for d in node.decorator_list if d is not decorator])
    called = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    called = called and ast.unparse(node.value.func).split(".")[-1] not in FURNITURE  # type: ignore[attr-defined]
    stored = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute | ast.Subscript)
    abstract = isinstance(node, ast.Raise) and ast.unparse(node) == "raise NotImplementedError"
    if called or stored or isinstance(node, ast.AugAssign) or (isinstance(node, ast.Raise) and not abstract):
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
        if isinstance(node, ast.Raise | ast.JoinedStr) or any(left(node) for left in LEFT_ALONE):
            continue
        for place, child in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(child, ast.AST) and not _is_docstring(child):
                yield name, place if isinstance(value, list) else None, child


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_text(node: ast.AST) -> bool:
    """Warnings, and what a figure has besides its curves and images."""
    return isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("warn", *FURNITURE)


def _is_type(node: ast.AST) -> bool:
    """A name for a type, which mypy checks, and tests/test_settings.py where a setting has it."""
    return isinstance(node, ast.Assign) and ast.unparse(node.value).startswith(("Literal[", "Annotated[", "TypeVar("))


def _is_size(node: ast.AST) -> bool:
    """How much is computed at once, on which no result depends: tests of their own say so, with other sizes."""
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in SIZES


def _is_same(call: ast.Call, keyword: ast.keyword) -> bool:
    name = ast.unparse(call.func)
    return any(name.endswith(end) and ast.unparse(keyword) in keywords for end, keywords in SAME.items())


def _is_said(node: ast.AST) -> bool:
    return isinstance(node, ast.keyword) and ast.unparse(node) in SAME[""]


LEFT_ALONE = (_is_text, _is_said, _is_type, _is_size)


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Every fault that is put into the file, one after the other."""
    source = path.read_text()
    tree, lines = ast.parse(source), source.splitlines()
    functions = functions_of(tree)

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
            line: int = getattr(node, "lineno", getattr(parent, "lineno", 1))
            after = "removed" if isinstance(changed, ast.Pass) else ast.unparse(changed).splitlines()[-1][:110]
            mutant = copy.deepcopy(tree)
            if place is None:
                setattr(parent, name, node)
            else:
                getattr(parent, name)[place] = node
            where, before = functions.get(line, ""), lines[line - 1].strip()[:110]
            yield Mutant(str(path.relative_to(ROOT)), line, where, before, after.strip(), mutant)


def functions_of(tree: ast.Module) -> dict[int, str]:
    """By line within a function's body the outermost function, or method, that it is in."""
    found: dict[int, str] = {}

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                walk(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.FunctionDef):
                lines = range(child.body[0].lineno, (child.end_lineno or 0) + 1)
                found.update(dict.fromkeys(lines, prefix + child.name))

    walk(tree, "")
    return found


class Recorder:
    """A plugin of pytest that learns how long each test takes and which functions of the source files it calls.

    What a fixture calls is counted to every test that uses the fixture, whichever of them made it.
    """

    def __init__(self, functions: Mapping[str, Mapping[int, str]]) -> None:
        self.functions = functions  # by file and line
        self.codes: set[CodeType] = set()
        self.fixtures: dict[Any, set[CodeType]] = {}
        self.tests: dict[str, tuple[float, list[str]]] = {}

    def _trace(self, frame: FrameType, event: str, argument: object) -> None:
        self.codes.add(frame.f_code)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        before, self.codes = self.codes, set()
        made = yield
        self.fixtures[fixturedef], self.codes = self.codes, before | self.codes
        return made

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        self.codes = set()
        began = time.monotonic()
        sys.settrace(self._trace)
        threading.settrace(self._trace)
        done = yield
        sys.settrace(None)
        threading.settrace(None)
        used = [self.fixtures.get(made[-1], set()) for made in item._fixtureinfo.name2fixturedefs.values()]
        names = {name for code in self.codes.union(*used) for name in self._names(code)}
        self.tests[item.nodeid] = time.monotonic() - began, sorted(names)
        return done

    def _names(self, code: CodeType) -> set[str]:
        """`path:function` of a code of the source files."""
        path = code.co_filename.removeprefix(f"{ROOT}/")
        lines = self.functions.get(path, {})
        return {f"{path}:{lines[line]}" for *_, line in code.co_lines() if line is not None and line in lines}


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


def fork(work: Callable[[], int]) -> int:
    """The number of a process of its own group that does `work` unheard, and ends with what that returns."""
    child = os.fork()
    if child:
        return child
    os.setpgid(0, 0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os._exit(work())


def run_tests(tests: Sequence[str], *plugins: object, mutant: Mutant | None = None) -> int:
    if mutant:
        sys.meta_path.insert(0, _Finder(mutant))
    chosen = " and ".join(f"not {word}" for word in LEFT_OUT)
    quick = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:unraisableexception"]
    return int(pytest.main([*quick, "-k", chosen, *tests], plugins))


def record(functions: Mapping[str, Mapping[int, str]], at_once: int) -> dict[str, tuple[float, list[str]]]:
    """By test its seconds and the functions that it calls: all tests are run once, without any fault."""
    files = [str(path) for name in TESTS for path in [ROOT / name, *(ROOT / name).glob("test_*.py")] if path.is_file()]
    at_once = min(at_once, len(files))  # no files at all would be all of them
    found: dict[str, tuple[float, list[str]]] = {}
    with tempfile.TemporaryDirectory() as folder:

        def work(number: int) -> int:
            recorder = Recorder(functions)
            code = run_tests(files[number::at_once], recorder)
            Path(folder, f"{number}.json").write_text(json.dumps([recorder.tests, list(sys.modules)]))
            return code

        for child in [fork(partial(work, number)) for number in range(at_once)]:
            if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
                sys.exit("the tests fail without any fault: see make test")
        for path in Path(folder).iterdir():
            tests, modules = json.loads(path.read_text())
            found |= tests
            for name in modules:  # what is imported once here, no test waits for
                if name.split(".")[0] not in ("src", "tests", "__main__"):
                    with contextlib.suppress(Exception):
                        importlib.import_module(name)
    return found


def run(
    jobs: Sequence[Mutant], tests: Mapping[str, tuple[float, list[str]]], longest: float, at_once: int
) -> list[Mutant]:
    """Those of the mutants that `longest` seconds of tests do not notice, each printed when it is found."""
    from rich.progress import track

    callers: defaultdict[str, set[str]] = defaultdict(set)
    naming: defaultdict[str, set[str]] = defaultdict(set)
    for test, (_, names) in tests.items():
        for name in names:
            callers[name].add(test)
            callers[name.split(":")[0]].add(test)  # what the import of a file does, all of its tests may notice,
    for file in {test.split("::")[0] for test in tests}:
        text = (ROOT / file).read_text()
        for path in {job.path for job in jobs}:
            if path.removesuffix(".py").replace("/", ".") in text:  # and those of a test file that names it
                naming[path] |= {test for test in tests if test.startswith(f"{file}::")}
    survivors: list[Mutant] = []
    running: dict[int, tuple[Mutant, float]] = {}
    waiting = list(jobs)[::-1]
    for _ in track(jobs, "mutants"):
        while True:
            while waiting and len(running) < at_once:
                mutant = waiting.pop()
                name = f"{mutant.path}:{mutant.function}".rstrip(":")
                chosen = sorted(callers[name], key=lambda test: tests[test][0])
                chosen += sorted(naming[name] - callers[name], key=lambda test: tests[test][0])
                took = list(accumulate(tests[test][0] for test in chosen))
                chosen = [test for test, seconds in zip(chosen, took, strict=True) if seconds < longest]
                child = fork(partial(run_tests, chosen, mutant=mutant) if chosen else lambda: 0)
                running[child] = mutant, time.monotonic()
            child, status = os.waitpid(-1, os.WNOHANG)
            if child:
                mutant, _ = running.pop(child)
                if os.waitstatus_to_exitcode(status) == 0:
                    survivors.append(mutant)
                    print(f"survived {longest} s: {mutant}  (line {mutant.line})", flush=True)
                break
            for other, (_, began) in running.items():
                if time.monotonic() - began > PATIENCE:
                    os.killpg(other, signal.SIGKILL)
            time.sleep(0.01)
    return survivors


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.mutants", description=__doc__)
    parser.add_argument("file", nargs="*", help="source files; all that are meant by default")
    parser.add_argument("--again", metavar="FILE", help="only those that survived in this earlier output")
    parser.add_argument("--at-once", type=int, default=os.cpu_count(), help="processes")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # a forked process must not find threads begun
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # other packages' plugins take most of a second to load
    names = options.file or sorted(str(p.relative_to(ROOT)) for pattern in FILES for p in ROOT.glob(pattern))
    tests = record({name: functions_of(ast.parse((ROOT / name).read_text())) for name in names}, options.at_once)
    gc.freeze()  # what was imported is not looked through again in each process
    jobs = [mutant for name in names for mutant in mutants_of(ROOT / name)]
    if options.again:
        said = Path(options.again).read_text()
        jobs = [mutant for mutant in jobs if f" s: {mutant}  (" in said]
    if not jobs:
        sys.exit("no faults to put in")
    unnoticed = jobs if options.again else run(jobs, tests, SOON, options.at_once)
    survivors = run(unnoticed, tests, LATE, options.at_once)
    for name in names:
        total, alive = (sum(m.path == name for m in group) for group in (jobs, survivors))
        if total:
            print(f"{name:40} {total:5} mutants, {100 * (total - alive) / total:5.1f}% killed")
    judged = JUDGED.read_text()
    unjudged = [mutant for mutant in survivors if f"`{mutant}`" not in judged]
    print(f"{len(unjudged)} of the survivors are not judged in {JUDGED.relative_to(ROOT)}")
    share = 1 - len(survivors) / len(jobs)
    print(f"mutants: {len(jobs) - len(survivors)} killed, {len(survivors)} survived: {100 * share:.1f}% killed")
    sys.stdout.flush()
    os._exit(share < ENOUGH)  # at once: what was frozen would be reported as leaked


if __name__ == "__main__":
    main()
