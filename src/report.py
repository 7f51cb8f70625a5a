"""Finished runs as a table beside the paper's numbers, and as curves: `python -m src.report FOLDER [--figure FILE]`."""

import argparse
import csv
import json
import sys
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


def table(results: Sequence[Result]) -> str:
    """A Markdown table: a row a setting, mean and range over its seeds; last and best epoch apart."""
    lines = []
    for setting, runs in group_by_setting(results).items():
        labels = " (labels used)" if runs[0]["protocol"]["labels_used"] else ""
        paper = paper_numbers(runs[0])
        for metric in (name for name in runs[0]["last"] if name.split("/")[0] in runs[0]["protocol"]["metrics"]):
            cells = [setting + labels, metric, len(runs)]
            cells += [_spread([run[row][metric] for run in runs]) for row in ("untrained", "last", "best")]
            lines.append([*cells, f"{paper[metric]:.1f}" if metric in paper else ""])
    facts = results[0]
    epochs = sorted({result["last"]["epoch"] for result in results} - {0}) or [0]
    limits = sorted({str(result["config"]["dataset"].get("limit") or "all") for result in results})
    heading = [
        "setting",
        "score (%)",
        "runs",
        "untrained",
        "last epoch",
        "best epoch, chosen on the test images",
        "paper",
    ]
    head = (
        f"{facts['config']['dataset']['name']}, {' or '.join(limits)} training images, {facts['protocol']['query']}; "
        f"{' or '.join(map(str, epochs))} epoch(s); {facts['hardware'].get('gpu', facts['hardware']['cpu'])}, "
        f"{facts['hardware']['cores']} cores, {facts['config']['trainer']['precision']}; torch "
        f"{facts['versions']['torch']}. The paper's numbers are of its own, full training."
    )
    rows = [heading, ["---"] * len(heading), *lines]
    return "\n".join([head, "", *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def draw(results: Sequence[Result], path: Path) -> None:
    """The monitored score over epochs, a line a setting, the mean of its seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for setting, runs in group_by_setting(results).items():
        monitor = runs[0]["monitor"]
        curves = [{row["epoch"]: row[monitor] for row in run["history"] if monitor in row} for run in runs]
        epochs = sorted(set(curves[0]).intersection(*curves))
        means = [sum(curve[epoch] for curve in curves) / len(curves) for epoch in epochs]
        axes.plot(epochs, means, marker=".", label=setting)
    axes.set(xlabel="epoch (0: untrained)", ylabel=f"{results[0]['monitor']} (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def _spread(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:.2f}" if len(values) == 1 else f"{mean:.2f} ({min(values):.2f} to {max(values):.2f})"


def _flat(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(node, dict):
        return [(prefix, node)]
    return [pair for name in node for pair in _flat(node[name], f"{prefix}{'.' * bool(prefix)}{name}")]


def main() -> None:
    parser = argparse.ArgumentParser("python -m src.report", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="+", help="run folders, or folders that hold them")
    parser.add_argument("--figure", type=Path, help="also draw the curves into this file")
    options = parser.parse_args()
    try:
        results = find_results(options.folder)
    except OSError as error:
        sys.exit(f"error: {error}")
    print(table(results))
    if options.figure:
        draw(results, options.figure)


if __name__ == "__main__":
    main()
