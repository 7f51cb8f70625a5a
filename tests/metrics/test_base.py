"""What the metrics have in common: defaults, what they start with and go back to, and where they compute."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.utils import get_class

from src.metrics.base import Score, weighted_mean
from src.metrics.clustering import Clustering
from src.metrics.knn import WeightedKNN, top_hits
from src.metrics.retrieval import Retrieval
from src.metrics.similarity import histograms, overlap
from tests.conftest import ROOT


def shipped() -> list[dict[str, Any]]:
    """Every metric of conf/protocol with its options."""
    protocols = [yaml.safe_load(Path(path).read_text()) for path in sorted((ROOT / "conf" / "protocol").glob("*.yaml"))]
    return [metric for protocol in protocols for group in ("metrics", "final") for metric in protocol[group].values()]


@pytest.mark.parametrize("options", shipped(), ids=lambda options: options["_target_"])
def test_what_a_metric_does_by_default_is_what_its_protocol_says(options: dict[str, Any]) -> None:
    kind = get_class(options["_target_"])
    named = {name: value for name, value in options.items() if name != "_target_"}
    defaults = {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}
    assert named.keys() == defaults.keys()
    for name, default in defaults.items():
        if default is not inspect.Parameter.empty:
            assert named[name] == (list(default) if isinstance(default, tuple) else default), name


@pytest.mark.parametrize("make", [WeightedKNN, Retrieval, lambda: Clustering(1)])
def test_what_is_counted_begins_at_0_and_goes_back_to_it(make: Any) -> None:
    metric: Score = make()
    states = {name: getattr(metric, name).clone() for name in metric._defaults}
    assert states
    assert not any(state.any() for state in states.values())
    for name in states:
        setattr(metric, name, getattr(metric, name) + 1)
    metric.reset()
    for name, state in states.items():
        assert torch.equal(getattr(metric, name), state)
        assert getattr(metric, name).dtype == state.dtype
        assert name in metric._reductions
        assert metric._reductions[name] is not None, "several ranks may be summed up"


def test_sums_of_many_queries_are_counted_in_whole_numbers() -> None:
    knn, retrieval = WeightedKNN(), Retrieval()
    assert {part.dtype for part in (knn.hits, knn.total, retrieval.hits, retrieval.total)} == {torch.long}
    assert {retrieval.precision.dtype, Clustering(1).score.dtype} == {torch.float64}


def test_scores_are_computed_where_the_images_are() -> None:
    """On torch's `meta` device, which refuses a tensor that is elsewhere."""
    points, labels = torch.empty(12, 4, device="meta"), torch.empty(12, dtype=torch.long, device="meta")
    assert top_hits(points.double(), labels, 1).is_meta
    assert histograms(points).is_meta
    assert overlap(points, points, torch.empty(3, 12, device="meta")).is_meta


def test_a_mean_of_no_query_is_none() -> None:
    values, counts = torch.tensor([1.0, torch.nan, 0.5]), torch.tensor([[1.0, 5.0, 1.0], [0.0, 2.0, 0.0]])
    found = weighted_mean(values, counts)
    assert found.dtype == torch.float64
    assert found[0] == 0.75
    assert found[1].isnan()
