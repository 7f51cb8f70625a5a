"""Results of one real run, and copies of them with other numbers."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.conftest import Run


@pytest.fixture(scope="session")
def real(shared_folder: Path, cache: Path, command: Run) -> Path:
    """The folder of a run of two epochs, made once."""
    folder = shared_folder / "real" / "run"
    options = ("dataset.limit=300", "input.size=16", "trainer.max_epochs=2", "logger=none", "augmentation=full")
    with FileLock(f"{folder.parent}.lock"):
        if not (folder / "results.json").exists():
            where = {"ISIF_CACHE": str(cache), "HOME": str(folder)}
            done = command("src.train", *options, "trainer.accelerator=cpu", f"run_dir={folder}", **where)
            assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def result(real: Path) -> dict[str, Any]:
    """What that run measured."""
    return dict(json.loads((real / "results.json").read_text())) | {"folder": str(real)}


def changed(result: dict[str, Any], seed: int = 0, **values: Any) -> dict[str, Any]:
    """A copy of another seed with scores of its own; some values replaced, like `config__method__temperature=0.2`."""
    new, numbers = copy.deepcopy(result), random.Random(seed)
    new["seed"] = new["config"]["seed"] = new["config"]["dataset"]["seed"] = seed
    for row in new["history"]:
        row |= {name: value + numbers.uniform(-5, 5) for name, value in row.items() if "knn" in name}
        row |= {"geometry/rank": 1 + 40 * numbers.random(), "train/alignment": numbers.random()}
    rows = new["history"]
    new |= {"untrained": rows[0], "last": rows[-1], "best": max(rows[1:], key=lambda row: row["knn/top1"])}
    new["intervals"] = {"knn/top1": [rows[-1]["knn/top1"] - 2.5, rows[-1]["knn/top1"] + 2.25]}
    for name, value in values.items():
        *path, key = name.split("__")
        node = new
        for step in path:
            node = node[step]
        node[key] = value
    return new


def write_runs(folder: Path, results: list[dict[str, Any]]) -> list[Path]:
    """A folder for each."""
    folders = [folder / f"{number:04}" for number in range(len(results))]
    for path, content in zip(folders, results, strict=True):
        path.mkdir(parents=True)
        (path / "results.json").write_text(json.dumps(content))
    return folders
