"""The paper's rows, and which of ours each stands beside."""

import csv
from typing import Any

import pytest

from src.reporting.paper import PAPER, budget, quote
from tests.conftest import ROOT
from tests.reporting.conftest import changed


def of_cifar(result: dict[str, Any], augmentation: str = "full", **values: Any) -> dict[str, Any]:
    return changed(result, choices__augmentation=augmentation, config__dataset__name="cifar10", **values)


@pytest.mark.parametrize(
    ("augmentation", "negatives", "value", "system", "table"),
    [
        ("full", "all", 83.6, "Ours", 1),
        ("no_crop", "all", 56.2, "w/o R", 7),
        ("no_gray", "all", 79.3, "w/o G", 7),
        ("no_jitter", "all", 75.7, "w/o C", 7),
        ("no_flip", "all", 82.6, "w/o F", 7),
        ("none", "all", 37.4, "No DA", 8),
        ("full", "hard", 83.2, "Hard", 8),
        ("full", "hard_published", 83.2, "Hard", 8),
        ("full", "easy", 57.5, "Easy", 8),
    ],
)
def test_ablations(
    result: dict[str, Any], augmentation: str, negatives: str, value: float, system: str, table: int
) -> None:
    run = of_cifar(result, augmentation, config__method__negatives=negatives)
    assert quote({"it": run}) == {"it": {"knn/top1": (value, system, table)}}


def test_a_row_is_called_as_in_the_table_of_those_beside_it(result: dict[str, Any]) -> None:
    full, crop = of_cifar(result), of_cifar(result, "no_crop")
    hard = of_cifar(result, config__method__negatives="hard")
    assert quote({"a": full, "b": crop})["a"]["knn/top1"].system == "Full"
    assert quote({"a": full, "b": hard})["a"]["knn/top1"][1:] == ("Full", 8)
    assert quote({"a": full, "b": changed(result)}) == {"a": {"knn/top1": (83.6, "Ours", 1)}, "b": {}}


def test_what_the_paper_did_not_run_has_no_row(result: dict[str, Any]) -> None:
    assert quote({"it": of_cifar(result, config__method__temperature=0.2)}) == {"it": {}}
    assert quote({"it": of_cifar(result, "no_crop", config__method__negatives="hard")}) == {"it": {}}
    cluster = of_cifar(result, choices__method="deepcluster", config__method={"clusters": 100})
    assert quote({"it": cluster}) == {"it": {}}, "100 clusters are on STL-10 only"
    cluster["config"]["method"]["clusters"] = 10
    assert quote({"it": cluster})["it"]["knn/top1"].value == 44.4


def test_datasets_of_two_sizes_and_networks(result: dict[str, Any]) -> None:
    stl = changed(result, config__dataset__name="stl10", config__dataset__split="train+unlabeled")
    assert {name: row.value for name, row in quote({"it": stl})["it"].items()} == {"linear/svm": 77.9, "knn/top1": 81.6}
    products = changed(result, config__dataset__name="products", choices__augmentation="crop_flip")
    assert quote({"it": products})["it"]["retrieval/R@1"] == (39.7, "Ours", 6)
    products["config"]["backbone"]["pretrained"] = True
    assert quote({"it": products})["it"]["retrieval/R@1"] == (48.9, "Ours", 4)


def test_quoted_systems_are_no_runs_of_ours() -> None:
    with PAPER.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all((row["run"] == "") == row["note"].startswith("quoted") for row in rows)
    assert {row["run"] for row in rows} - {""} <= {path.stem for path in (ROOT / "conf" / "method").glob("*.yaml")}
    chosen = {pair.partition("=")[2] for row in rows for pair in row["settings"].split() if "augm" in pair}
    assert chosen <= {path.stem for path in (ROOT / "conf" / "augmentation").glob("*.yaml")}


@pytest.mark.parametrize("average", ["arithmetic", "geometric"])
def test_the_papers_nmi_is_over_the_geometric_mean(result: dict[str, Any], average: str) -> None:
    measures = {"clustering": {"average": average, "restarts": 10}}
    said = budget([changed(result, config__protocol={"metrics": measures})])
    assert any("NMI over the arithmetic mean" in difference for difference in said) == (average == "arithmetic")


def test_budgets(result: dict[str, Any]) -> None:
    run = of_cifar(result, config__dataset__limit=5000, config__dataset__validation=0.1)
    assert budget([run, run]) == [
        "5,000 training images",
        "held-out images, which are not trained on",
        "2 epochs, not 200",
        "resnet18_slim, not resnet18",
    ]
    full = of_cifar(result, choices__backbone="resnet18", config__dataset__limit=None, last__epoch=200)
    assert budget([full]) == []
    table6: dict[str, Any] = {"config__dataset__name": "products", "config__dataset__limit": None, "last__epoch": 0}
    scratch: dict[str, Any] = {"config__backbone": {"pretrained": False}}
    assert budget([changed(result, choices__backbone="resnet18_imagenet", **table6, **scratch)]) == []
    other = budget([changed(result, choices__backbone="resnet18", **table6, **scratch)])
    assert other == ["resnet18, not resnet18_imagenet"]
