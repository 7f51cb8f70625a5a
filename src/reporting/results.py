"""Results of finished runs: found, grouped by what they were set to, and the paper's numbers of them."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

PAPER = Path(__file__).parent / "paper.csv"
Result = Mapping[str, Any]
# Settings that two runs may differ in without being two experiments.
ASIDE = ("seed", "run_dir", "cache_dir", "logger", "dataset.seed", "callbacks", "trainer.enable_progress_bar")


def find_results(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Every `results.json` in `folders` and below, by path.

    Raises:
        FileNotFoundError: there is none.
    """
    paths = sorted({path for folder in folders for path in folder.rglob("results.json")})
    if not paths:
        raise FileNotFoundError(f"no results.json in {', '.join(map(str, folders))}: name folders of finished runs")
    return [json.loads(path.read_text()) for path in paths]


def group_by_setting(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Runs that differ in nothing but the seed together, under the settings in which the groups differ."""
    keys = [[(group, choice) for group, choice in result["choices"].items()] for result in results]
    varied = {name for name, _ in set().union(*keys)} - {name for name, _ in set(keys[0]).intersection(*keys)}
    alike: dict[str, list[Result]] = {}
    for result in results:
        name = ", ".join(f"{group}={result['choices'].get(group)}" for group in result["choices"] if group in varied)
        alike.setdefault(name, []).append(result)
    groups: dict[str, list[Result]] = {}
    for name, members in alike.items():
        settings = [{key: value for key, value in _flat(r["config"]) if not key.startswith(ASIDE)} for r in members]
        differ = sorted(key for key in set().union(*settings) if len({str(s.get(key)) for s in settings}) > 1)
        for result, setting in zip(members, settings, strict=True):
            parts = [name] * bool(name) + [f"{key}={setting.get(key)}" for key in differ]
            groups.setdefault(", ".join(parts) or result["choices"]["method"], []).append(result)
    return groups


def paper_numbers(result: Result) -> dict[str, float]:
    """What the paper reports of a run's method on its dataset, by metric; empty where it has no such row."""
    method, dataset = result["choices"]["method"], result["config"]["dataset"]
    if method == "deepcluster":
        method = f"deepcluster({result['config']['method']['clusters']})"
    name = dataset["name"] + {"train+unlabeled": "-105k"}.get(dataset.get("split", ""), "")
    if name == "products" and not result["config"]["backbone"].get("pretrained"):
        name = "products-scratch"
    with PAPER.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["dataset"] == name and row["run"] == method]
    return {row["metric"]: float(row["value"]) for row in rows}


def _flat(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(node, dict):
        return [(prefix, node)]
    return [pair for name in node for pair in _flat(node[name], f"{prefix}{'.' * bool(prefix)}{name}")]
