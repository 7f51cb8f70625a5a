from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap
from torch import Tensor
from torch.nn.functional import normalize

from src.metrics.base import Score, weighted_mean
from src.metrics.bootstrap import intervals
from src.metrics.clustering import Clustering
from src.metrics.geometry import Geometry
from src.metrics.knn import WeightedKNN
from src.metrics.linear import Linear
from src.metrics.retrieval import Retrieval
from src.metrics.similarity import Similarity

Images = tuple[Tensor, Tensor]


class Given(Score):
    """Scores of what each query adds to them."""

    def update(self, **shares: Tensor) -> None:
        self.shares = shares

    def compute(self) -> dict[str, Tensor]:
        return {name: 100 * share.mean() for name, share in self.shares.items()}


def given(**shares: Tensor) -> Given:
    metric = Given()
    metric.update(**shares)
    return metric


@pytest.fixture(scope="module")
def sets() -> tuple[Images, Images]:
    """A gallery of 200 and queries, 90, of five classes that overlap; the last query is alone in its class."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 16, generator=generator)

    def draw(count: int) -> Images:
        labels = torch.arange(count) % 5
        points = centres[labels] + 1.2 * torch.randn(count, 16, generator=generator)
        return normalize(points, dim=1), labels

    query, labels = draw(90)
    labels[-1] = 5
    return draw(200), (query, labels)


def draws(rows: int, queries: int) -> Tensor:
    return torch.randint(queries, (rows, queries), generator=torch.Generator().manual_seed(3))


def counts_of(drawn: Tensor) -> Tensor:
    return torch.stack([row.bincount(minlength=drawn.shape[1]) for row in drawn]).float()


@pytest.mark.parametrize(
    "make",
    [
        lambda: WeightedKNN(5),
        lambda: Retrieval((1, 4)),
        lambda: Linear(),
        lambda: Similarity(3),
        lambda: Clustering(1),
    ],
)
def test_every_query_once_is_the_score(make: Callable[[], Score], sets: tuple[Images, Images]) -> None:
    metric, (gallery, query) = make(), sets
    among = not isinstance(metric, Retrieval | Clustering)
    assert metric.resampled(torch.ones(1, 90)) == {}, "nothing was scored yet"
    metric.update(*query, *gallery * among)
    found = metric.resampled(torch.ones(2, 90))
    assert list(found) == metric.scores()
    for name, value in metric.compute().items():
        assert found[name].tolist() == pytest.approx([value.item()] * 2, rel=1e-6)
    metric.reset()
    assert metric.resampled(torch.ones(1, 90)) == {}


@pytest.mark.parametrize("make", [lambda: WeightedKNN(5), lambda: Linear(), lambda: Similarity(3)])
def test_a_resample_is_the_score_of_its_queries(make: Callable[[], Score], sets: tuple[Images, Images]) -> None:
    """Those of the gallery do not depend on the other queries: a query drawn twice is scored twice."""
    metric, (gallery, (points, labels)) = make(), sets
    drawn = draws(4, 90)
    metric.update(points, labels, *gallery)
    found = metric.resampled(counts_of(drawn))
    for number, rows in enumerate(drawn):
        again = make()
        again.update(points[rows], labels[rows], *gallery)
        for name, value in again.compute().items():
            assert found[name][number].item() == pytest.approx(value.item(), rel=1e-5)


def test_retrieval_leaves_out_queries_alone_in_their_class(sets: tuple[Images, Images]) -> None:
    metric, (_, query) = Retrieval((1,)), sets
    metric.update(*query)
    shares = metric.shares["mAP@R"].numpy()
    assert np.isnan(shares).tolist() == [False] * 89 + [True]
    drawn = draws(20, 90)
    expected = [100 * np.nanmean(shares[rows]) for rows in drawn.numpy()]
    assert metric.resampled(counts_of(drawn))["mAP@R"].tolist() == pytest.approx(expected, rel=1e-6)
    assert weighted_mean(metric.shares["R@1"], torch.eye(90)[-1:]).isnan().all(), "no query that counts"


def test_intervals_against_scipy() -> None:
    generator = torch.Generator().manual_seed(1)
    share = torch.rand(400, generator=generator) ** 2
    low, high = intervals(given(score=share), 400, seed=0, resamples=20_000)["score"]
    expected = bootstrap((share.numpy(),), np.mean, n_resamples=20_000, method="percentile", rng=0).confidence_interval
    assert [low, high] == pytest.approx([100 * expected.low, 100 * expected.high], abs=0.1)
    assert intervals(given(score=share), 400, seed=0) == intervals(given(score=share), 400, seed=0, resamples=1000)
    assert intervals(given(score=share), 400, seed=0) != intervals(given(score=share), 400, seed=1)


def test_intervals_hold_the_true_accuracy_as_often_as_they_say() -> None:
    """Of 400 test sets of 200 images of which 70% are right."""
    generator = torch.Generator().manual_seed(2)
    right = {str(number): (torch.rand(200, generator=generator) < 0.7).float() for number in range(400)}
    held = [low <= 70 <= high for low, high in intervals(given(**right), 200, seed=0).values()]
    assert 0.91 < sum(held) / len(held) < 0.98


def test_many_queries_come_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    share = torch.rand(300, generator=torch.Generator().manual_seed(4))
    whole = intervals(given(score=share), 300, seed=0)
    monkeypatch.setattr("src.metrics.bootstrap.BLOCK", 1000)
    assert intervals(given(score=share), 300, seed=0)["score"] == pytest.approx(whole["score"], rel=1e-6)


def test_clusters_that_say_little_are_not_called_better_by_their_interval() -> None:
    """With 80 classes the NMI of a resample itself lies above the score: what is drawn twice agrees with itself."""
    generator = torch.Generator().manual_seed(5)
    metric = Clustering(1)
    metric.update(normalize(torch.randn(800, 8, generator=generator), dim=1), torch.arange(800) % 80)
    ((low, high),) = intervals(metric, 800, seed=0).values()
    assert low < metric.compute()["NMI"] < high


def test_a_score_without_queries_has_no_interval(sets: tuple[Images, Images]) -> None:
    metric = Geometry()
    metric.update(*sets[1])
    assert intervals(metric, 90, seed=0) == {}
