"""Results of finished runs: found, grouped by what they were set to, and the paper's numbers of them."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from src.running import runs

PAPER = Path(__file__).parent / "paper.csv"
Result = Mapping[str, Any]
# Settings that two runs may differ in without being two experiments.
ASIDE = (*runs.ASIDE, "seed", "dataset.seed", "callbacks")


def find_results(folders: Iterable[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """Every finished run in `folders` and below, by path; and what was left out and why, a line each.

    Left out are files that no run wrote, and all but the first of runs with one config and seed, which are copies.

    Raises:
        FileNotFoundError: there is none.
    """
    paths = sorted({path for folder in folders for path in folder.rglob("results.json")})
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    left_out = []
    for path in paths:
        try:
            results = runs.read_results(path.parent)
            check_results(results)
        except (OSError, ValueError) as error:
            left_out.append(f"{path}: {error}")
            continue
        key = json.dumps(
            [(name, value) for name, value in runs.flat(results["config"]).items() if _counts(name)], default=str
        )
        if key in found:
            left_out.append(f"{path.parent} has the config and the seed of {found[key][0].parent}")
        else:
            found[key] = path, results
    if not found:
        reasons = "; ".join(left_out) or "name folders of finished runs"
        raise FileNotFoundError(f"no run's results.json in {', '.join(map(str, folders))}: {reasons}")
    return [results for _, results in found.values()], left_out


def check_results(results: Mapping[str, Any]) -> None:
    """Raise a ValueError where what `src.reporting.record.collect` writes is missing."""
    try:
        rows = [results["untrained"], results["last"], *results["history"], *[results["best"]] * bool(results["best"])]
        numbers = [row["epoch"] for row in rows] + [value for row in rows for value in row.values()]
        facts = [results["hardware"][name] for name in ("cpu", "cores")] + [results["versions"]["torch"]]
        facts += [results["config"]["dataset"]["name"], results["config"]["trainer"]["precision"]]
        groups = [results[name] for name in ("protocol", "choices", "config")] + [results["protocol"]["metrics"]]
        groups += [results["config"][name] for name in ("backbone", "method")]
        facts += [results["protocol"]["labels_used"], results["protocol"]["query"], results["choices"]["method"]]
        sound = all(isinstance(value, int | float) for value in [*numbers, results["last"][results["monitor"]]])
        sound &= all(isinstance(fact, str | int) for fact in facts) and all(isinstance(g, dict) for g in groups)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it lacks what a run's results have: {error}") from error
    if not sound:
        raise ValueError("it is not what a run's results are like")


def chosen_on(protocol: Mapping[str, Any]) -> str:
    """What the best epoch of a run is chosen on; runs from before `dataset.validation` do not say."""
    return "held-out training images" if protocol.get("validation") else "the test images"


def _counts(setting: str) -> bool:
    return setting == "seed" or not setting.startswith(ASIDE)


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
        settings = [
            {key: value for key, value in runs.flat(r["config"]).items() if not key.startswith(ASIDE)} for r in members
        ]
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
