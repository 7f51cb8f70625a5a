"""Results are held to their form, and only what is measured alike stands together."""

import json
from pathlib import Path
from typing import Any

import pytest

from src.reporting.results import check_results, differing, find_results, group_by_protocol, scores_of
from src.scores import in_space
from tests.reporting.conftest import changed, write_runs

HISTOGRAM = {"edges": [-1.0, 0.0, 1.0], "same": [0.25, 0.75], "other": [0.5, 0.5]}


@pytest.mark.parametrize(
    ("name", "value", "where"),
    [
        ("last__epoch", "many", "last.epoch"),
        ("last", {"epoch": 1.5}, "last"),
        ("monitor", "knn/top2", "the last epoch has no knn/top2"),
        ("history", [{"epoch": 1, "knn/top1": 10**400}], "history.0.knn/top1"),
        ("protocol__space", "both", "protocol.space"),
        ("choices__method", 3, "choices.method"),
        ("choices__dataset", ["a"], "choices.dataset"),
        ("config__dataset", {}, "config.dataset.name"),
        ("config__dataset__limit", "all", "config.dataset.limit"),
        ("intervals", {"knn/top1": [1.0]}, "intervals.knn/top1"),
        ("histograms", {"pooled": {"classes": HISTOGRAM | {"same": [1.0]}}}, "histograms.pooled.classes"),
        ("pictures", [{"title": "a", "kind": "map", "epoch": 1}], "pictures.0.png"),
    ],
)
def test_what_no_run_writes_is_named(result: dict[str, Any], name: str, value: Any, where: str) -> None:
    check_results(changed(result, histograms={"pooled": {"classes": HISTOGRAM}}))
    with pytest.raises(ValueError, match=where):
        check_results(changed(result, **{name: value}))


@pytest.mark.parametrize(
    ("name", "value", "fact"),
    [
        ("protocol__metrics__knn__k", 20, "knn.k"),
        ("protocol__metrics__knn__temperature", 0.2, "knn.temperature"),
        ("protocol__metrics__knn__temperature", 1.1, "knn.temperature"),
        ("protocol__final", {"linear": {"_target_": "src.metrics.linear.Linear", "C": 1}}, "linear.C"),
        ("protocol__space", "pooled", "deciding space"),
        ("protocol__preset", "cifar10_paper", "preset"),
        ("protocol__query", "90 test images", "test images"),
        ("config__dataset__limit", None, "training images"),
        ("config__dataset__validation", 0.1, "dataset.validation"),
        ("config__dataset__split", "random", "dataset.split"),
        ("config__dataset__name", "cifar10", "dataset"),
        ("config__trainer__max_epochs", 9, "epochs"),
    ],
)
def test_what_is_measured_otherwise_stands_apart(result: dict[str, Any], name: str, value: Any, fact: str) -> None:
    one, other = group_by_protocol([changed(result), changed(result, 1), changed(result, 2, **{name: value})])
    assert [len(group.results) for group in (one, other)] == [2, 1]
    assert fact in differing([one, other])


def test_another_method_is_measured_alike(result: dict[str, Any]) -> None:
    hotter = changed(result, config__method__temperature=0.2)
    (group,) = group_by_protocol([changed(result), changed(result, 1), hotter])
    assert {name: len(runs) for name, runs in group.settings.items()} == {
        "method.temperature=0.1": 2,
        "method.temperature=0.2": 1,
    }


def test_the_names_of_both_spaces(result: dict[str, Any]) -> None:
    held_out = changed(result, last__monitored=1.0)
    held_out["last"] |= {"validation/knn/top1": 1.0, "validation/pooled/knn/top1": 2.0, "train/loss": 1.0}
    (group,) = group_by_protocol([held_out])
    names = scores_of(group)
    assert names[0] == "knn/top1"
    assert {"validation/knn/top1", "geometry/rank", "train/alignment", "knn/top5"} < set(names)
    assert not {"train/loss", "epoch"} & set(names)
    assert not any("pooled" in name for name in names)
    assert in_space("validation/knn/top1", "pooled") == "validation/pooled/knn/top1"


def test_copies_and_foreign_files_are_left_out(result: dict[str, Any], tmp_path: Path) -> None:
    folders = write_runs(tmp_path, [changed(result), changed(result), changed(result, 1), changed(result, 2)])
    (folders[3] / "results.json").write_text("[" * 10**5)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "results.json").write_text(json.dumps({"last": {"epoch": 3}}))
    found, left_out = find_results([tmp_path])
    assert [(run["folder"], run["seed"]) for run in found] == [(str(folders[0]), 0), (str(folders[2]), 1)]
    assert left_out[0] == f"{folders[1]} has the config and the seed of {folders[0]}"
    assert left_out[1].startswith(f"{folders[3]}/results.json holds no run's results")
    assert left_out[2] == f"{tmp_path}/foreign/results.json: untrained: Field required, as no run writes it"
