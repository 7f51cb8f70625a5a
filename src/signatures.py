"""What a constructor takes, read from its source: nothing is imported, so that a mistake is told before torch is."""

import ast
import collections.abc
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from src import hints

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Signature:
    """Hints by parameter, the parameters without a default, and whether it takes any others by name."""

    hints: Mapping[str, Any] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    takes_others: bool = False


@dataclass(frozen=True)
class _Module:
    """The classes and functions that a module defines, what it imports, by name, and what its hints can refer to."""

    defined: dict[str, ast.ClassDef | ast.FunctionDef]
    imported: dict[str, str]
    names: dict[str, Any]

    def hint(self, annotation: ast.expr | None) -> Any:
        """What an annotation says; `Any` where it names what only exists once it is imported."""
        try:
            return eval(ast.unparse(annotation), {}, self.names) if annotation else Any
        except (NameError, AttributeError, TypeError):
            return Any


def defines(target: str) -> bool:
    """Whether `target`, `src.….Name`, is a class or function of this project's, defined where it says."""
    module, _, name = target.rpartition(".")
    return target.startswith("src.") and (ROOT / _path(module)).is_file() and name in _read(module).defined


def signature(target: str) -> Signature:
    """Of the class or function `target`, `src.….Name`, with what it hands on to its base class as `**kwargs`."""
    home, _, name = target.rpartition(".")
    module = _read(home)
    node = module.defined[name]
    if isinstance(node, ast.FunctionDef):
        return _of_function(module, node)
    inits = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
    if not inits and node.decorator_list:  # a dataclass
        fields = {part.target.id: module.hint(part.annotation) for part in node.body if _is_field(part)}  # type: ignore
        return Signature(fields, frozenset(fields))
    own = _of_function(module, inits[0]) if inits else Signature(takes_others=True)
    above = ast.unparse(node.bases[0]) if own.takes_others and node.bases else ""
    base = module.imported.get(above, f"{home}.{above}")  # imported, or of the same module
    if not defines(base):
        return own if inits else Signature()
    inherited = signature(base)
    hints = {**own.hints, **inherited.hints}
    return Signature(hints, own.required | inherited.required, inherited.takes_others)


def _of_function(module: _Module, node: ast.FunctionDef) -> Signature:
    positional = [argument for argument in node.args.args if argument.arg != "self"]
    needed = positional[: len(positional) - len(node.args.defaults)]
    needed += [a for a, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if default is None]
    found = {a.arg: module.hint(a.annotation) for a in (*positional, *node.args.kwonlyargs)}
    hints = {name: hint for name, hint in found.items() if hint is not Any}  # others are no settings
    return Signature(hints, frozenset(a.arg for a in needed) & hints.keys(), node.args.kwarg is not None)


def _is_field(part: ast.stmt) -> bool:
    return isinstance(part, ast.AnnAssign) and not ast.unparse(part.annotation).startswith("ClassVar")


def _path(module: str) -> str:
    return f"{module.replace('.', '/')}.py"


@cache
def _read(name: str) -> _Module:
    body = ast.parse((ROOT / _path(name)).read_text()).body
    defined = {node.name: node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    names = {**vars(typing), **vars(collections.abc), **vars(hints)}
    module = _Module(defined, imported, names)
    for node in body:  # hints that the module gives a name of its own: Negatives = Literal[...]
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Subscript)
            and isinstance(node.targets[0], ast.Name)
        ):
            names[node.targets[0].id] = module.hint(node.value)
    return module
