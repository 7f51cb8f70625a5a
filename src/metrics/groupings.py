"""Other groupings of a dataset's classes, such as animals against artifacts, from a small YAML file."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from src.hints import NAME
from src.signatures import ROOT

LONGEST = 2**16  # bytes of a file
CLASSES = "classes"  # the grouping in which each class is a group of its own


def prefix(grouping: str) -> str:
    """What begins the names of scores under a grouping."""
    return "" if grouping == CLASSES else f"{grouping}/"


def read_groupings(source: str, classes: Sequence[str]) -> dict[str, Tensor]:
    """The group of each class, `(C,)`, -1 for one that is left out, by the groupings' names.

    The file has, for each grouping, two or more groups with the names of their classes:
    `{animals_vs_artifacts: {animals: [bird, cat], artifacts: [ship]}}`.

    Args:
        source: the name of a file in conf/groupings, without `.yaml`, or the path of another.
        classes: the dataset's class names, C.

    Raises:
        ValueError: there is no such file, it does not have that form, or it names a class that the dataset lacks.
    """
    path = ROOT / "conf" / "groupings" / f"{source}.yaml"
    if not re.fullmatch(NAME, source) or not path.is_file():
        path = Path(source).expanduser()
    try:
        return {name: _numbers(name, groups, classes) for name, groups in _mapping(_read(path)).items()}
    except ValueError as error:
        raise ValueError(f"groupings of classes in {path}: {error}") from error


def _read(path: Path) -> Any:
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in (ROOT / "conf" / "groupings").glob("*.yaml")))
        raise ValueError(f"there is no such file; give the path of one, or {shipped}")
    with path.open("rb") as file:
        content = file.read(LONGEST + 1)
    if len(content) > LONGEST:
        raise ValueError(f"it has more than {LONGEST:,} bytes, which no list of classes needs")
    try:
        return yaml.safe_load(content)
    except Exception as error:  # from a stranger's bytes yaml may raise anything
        raise ValueError(f"it is not YAML ({type(error).__name__})") from error


def _mapping(found: Any) -> dict[str, Any]:
    """`found`, where it is a group whose keys are names."""
    if not isinstance(found, dict) or not found:
        raise ValueError("must be name: {group: [class, …], group: [class, …]}")
    for name in found:
        if not isinstance(name, str) or not re.fullmatch(NAME, name) or name == CLASSES:
            raise ValueError(f"{str(name)[:60]!r} cannot name a grouping: use letters, digits and _, and not {CLASSES}")
    return found


def _numbers(grouping: str, groups: Any, classes: Sequence[str]) -> Tensor:
    """The number of each class's group `(C,)`, -1 where it has none."""
    if not isinstance(groups, dict) or len(groups) < 2:
        raise ValueError(f"{grouping} must have two groups of classes or more")
    numbers = torch.full((len(classes),), -1)
    for number, (group, members) in enumerate(groups.items()):
        if not isinstance(members, list) or not members or not all(isinstance(member, str) for member in members):
            raise ValueError(f"{grouping}: {str(group)[:60]} must be a list of class names")
        for member in members:
            if member not in classes:
                some = ", ".join(classes[:10]) + ", …" * (len(classes) > 10)
                raise ValueError(f"{grouping}: {member[:60]!r} is no class of the dataset: it has {some}")
            if numbers[(label := classes.index(member))] >= 0:
                raise ValueError(f"{grouping}: {member} is named twice")
            numbers[label] = number
    return numbers
