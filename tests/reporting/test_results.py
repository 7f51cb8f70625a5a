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
    ],
)
def test_what_is_measured_otherwise_stands_apart(result: dict[str, Any], name: str, value: Any, fact: str) -> None:
    one, other = group_by_protocol([changed(result), changed(result, 1), changed(result, 2, **{name: value})])
    assert [len(group.results) for group in (one, other)] == [2, 1]
    assert fact in differing([one, other])


def test_a_run_that_was_stopped_stands_apart(result: dict[str, Any]) -> None:
    """By the epochs that it had; the untrained network, which has none, is everybody's."""
    whole, stopped, untrained = (changed(result, seed) for seed in range(3))
    stopped["last"] = stopped["history"][1]
    untrained["last"] = untrained["history"][0]
    one, other = group_by_protocol([whole, stopped, untrained])
    assert [one.facts["epochs"], other.facts["epochs"]] == ["2", "1"]
    assert [len(group.results) for group in (one, other)] == [2, 1]


def test_what_a_sweep_told_apart_is_no_copy(result: dict[str, Any], tmp_path: Path) -> None:
    """Whatever it varied, but for where a run logs, keeps its images and what it draws."""
    apart: dict[str, Any] = {"config__dataset__seed": 7, "config__callbacks__probe": {"lr": 1.0}}
    write_runs(tmp_path, [changed(result), *(changed(result, **{key: value}) for key, value in apart.items())])
    found, left_out = find_results([tmp_path])
    assert (len(found), left_out) == (3, [])
    (protocol,) = group_by_protocol(found)
    assert sorted(map(len, protocol.settings.values())) == [1, 2], "another seed of the order is another seed"
    same: dict[str, Any] = {"config__callbacks__pictures": None, "config__dataset__cache_dir": "/else"}
    same["config__logger"] = {"a": 1}
    write_runs(tmp_path / "same", [changed(result), *(changed(result, **{key: value}) for key, value in same.items())])
    assert len(find_results([tmp_path / "same"])[0]) == 1


def test_what_an_earlier_version_did_by_default_is_said(result: dict[str, Any], tmp_path: Path) -> None:
    before = changed(result, 1)
    for setting in ("ema", "decay", "microbatch", "whitening", "mirror"):
        del before["config"][setting]
    write_runs(tmp_path, [changed(result), before])
    (protocol,) = group_by_protocol(find_results([tmp_path])[0])
    assert [len(runs) for runs in protocol.settings.values()] == [2], "two seeds of one setting"


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
