"""What the paper reports of a setting, and how far a run is from the paper's budget."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from src.reporting.results import Result
from src.running import runs

PAPER = Path(__file__).parent / "paper.csv"
EPOCHS = {"cifar10": 200, "stl10": 200}  # section 4.1; the text has no number for the others
NETWORKS = {"cifar10": "resnet18", "stl10": "resnet18"}  # else Inception-V1; from scratch ImageNet's ResNet-18


class Quoted(NamedTuple):
    """A number of the paper's, percent.

    Args:
        system: what the paper calls the row.
        table: the paper's, 1 to 8.
    """

    value: float
    system: str
    table: int


@cache
def _rows() -> list[dict[str, str]]:
    with PAPER.open(newline="") as file:
        return list(csv.DictReader(file))


def quote(settings: Mapping[str, Result]) -> dict[str, dict[str, Quoted]]:
    """What the paper reports, by setting and score, of a run of each.

    Where several of the paper's tables have a row, it is that of the table with most of `settings`: "Full" among the
    augmentations of Table 7 is "Ours" among the systems of Table 1.
    """
    found = {setting: _matching(result) for setting, result in settings.items()}
    counts = Counter(table for rows in found.values() for table in {row["table"] for row in rows})
    quoted: dict[str, dict[str, Quoted]] = {}
    for setting, rows in found.items():
        quoted[setting] = {}
        for row in sorted(rows, key=lambda row: (-counts[row["table"]], row["table"])):
            quoted[setting].setdefault(row["metric"], Quoted(float(row["value"]), row["system"], int(row["table"])))
    return quoted


def _matching(result: Result) -> list[dict[str, str]]:
    settings = {**runs.flat(result["config"]), **result["choices"]}
    said = {key: str(value).lower() for key, value in settings.items()}
    return [
        row
        for row in _rows()
        if (row["run"], row["dataset"]) == (said["method"], said["dataset.name"])
        and all(said.get(key, "false") == value for key, value in _pairs(row["settings"]))
    ]


def _pairs(settings: str) -> list[tuple[str, str]]:
    return [(key, value) for key, _, value in (setting.partition("=") for setting in settings.split())]


def budget(results: Sequence[Result]) -> list[str]:
    """In what the runs had another budget than the paper's, or another NMI, in words; empty where they had the same."""
    differences = []
    for result in results:
        dataset, epochs = result["config"]["dataset"], int(result["last"]["epoch"])
        network = NETWORKS.get(dataset["name"]) or (
            "inception" if result["config"]["backbone"].get("pretrained") else "resnet18_imagenet"
        )
        if dataset.get("limit"):
            differences.append(f"{dataset['limit']:,} training images")
        if dataset.get("validation"):
            differences.append("held-out images, which are not trained on")
        if epochs and epochs != EPOCHS.get(dataset["name"], 0):
            differences.append(f"{epochs} epochs, not {EPOCHS.get(dataset['name'], 'a known number')}")
        if (backbone := result["choices"].get("backbone")) != network:
            differences.append(f"{backbone}, not {network}")
        clustering = result["config"]["protocol"]["metrics"].get("clustering") or {}
        if clustering.get("average", "geometric") != "geometric":
            differences.append("NMI over the arithmetic mean of the entropies, not the geometric")
    return list(dict.fromkeys(differences))
