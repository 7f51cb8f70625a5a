import math

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.nn.functional import normalize

from src.metrics.knn import WeightedKNN, knn_votes, top_hits


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Real images as unit vectors: gallery, labels, query, labels."""
    data = load_digits()
    points = normalize(torch.tensor(data.data) - torch.tensor(data.data).mean(0), dim=1)
    labels = torch.tensor(data.target)
    return points[:1500], labels[:1500], points[1500:], labels[1500:]


def random_unit(rows: int, dim: int, seed: int) -> Tensor:
    return normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def naive_votes(query: Tensor, gallery: Tensor, labels: Tensor, k: int, tau: float) -> list[list[float]]:
    """One query, one neighbour at a time."""
    table = []
    for q in query:
        similarity = sorted(((q @ g).item(), int(label)) for g, label in zip(gallery, labels, strict=True))
        nearest = similarity[::-1][:k]
        votes = [0.0] * (int(labels.max()) + 1)
        for s, label in nearest:
            votes[label] += math.exp((s - nearest[0][0]) / tau)
        table.append(votes)
    return table


@pytest.mark.parametrize("k", [1, 5, 60])
@pytest.mark.parametrize("tau", [0.01, 0.1, 1.0])
def test_votes_against_a_naive_loop(k: int, tau: float) -> None:
    query, gallery = random_unit(20, 6, 0), random_unit(60, 6, 1)
    labels = torch.randint(0, 4, (60,), generator=torch.Generator().manual_seed(2))
    expected = torch.tensor(naive_votes(query, gallery, labels, k, tau), dtype=torch.float64)
    torch.testing.assert_close(knn_votes(query, gallery, labels, k, tau), expected, rtol=1e-9, atol=1e-12)


def test_accuracy_against_scikit_learn(digits: tuple[Tensor, ...]) -> None:
    """The whole metric equals scikit-learn's classifier with the same neighbours and weights."""
    gallery, labels, query, query_labels = digits
    model = KNeighborsClassifier(200, weights=lambda d: torch.tensor((1 - d) / 0.1).exp().numpy(), metric="cosine")
    expected = 100 * model.fit(gallery, labels).score(query, query_labels)
    metric = WeightedKNN(k=200, temperature=0.1)
    metric.update(query, query_labels, gallery, labels)
    scores = metric.compute()
    assert scores["top1"].item() == pytest.approx(expected)
    assert scores["top1"] <= scores["top5"] <= 100


def test_the_defaults_are_the_papers(digits: tuple[Tensor, ...]) -> None:
    gallery, labels, query, _ = digits
    assert torch.equal(knn_votes(query, gallery, labels), knn_votes(query, gallery, labels, 200, 0.1))


def test_updates_add_up(digits: tuple[Tensor, ...]) -> None:
    gallery, labels, query, query_labels = digits
    whole, parts = WeightedKNN(k=30), WeightedKNN(k=30)
    whole.update(query, query_labels, gallery, labels)
    for rows in torch.arange(len(query)).split(100):
        parts.update(query[rows], query_labels[rows], gallery, labels)
    assert whole.compute() == parts.compute()


def test_collapsed_embeddings_score_like_chance() -> None:
    """All embeddings the same point: every class has the same votes, so one class alone can be right."""
    point = normalize(torch.ones(100, 4), dim=1)
    labels = torch.arange(100) % 10
    metric = WeightedKNN(k=100)
    metric.update(point, labels, point, labels)
    assert {name: value.item() for name, value in metric.compute().items()} == {"top1": 10.0, "top5": 50.0}


def test_a_class_without_votes_is_never_a_hit() -> None:
    votes = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    assert not top_hits(votes, torch.tensor([1]), top=5)
    assert not top_hits(votes, torch.tensor([7]), top=5)
    assert top_hits(votes, torch.tensor([0]), top=1)


def test_k_larger_than_the_gallery_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"protocol.metrics.knn.k=200, but the gallery has 10"):
        WeightedKNN(k=200).check(torch.arange(3), torch.zeros(10))
    with pytest.raises(ValueError, match=r"no training image has a label, so none can vote"):
        WeightedKNN(k=1).check(torch.arange(3), torch.zeros(0))
    with pytest.raises(ValueError, match=r"searches a gallery"):
        WeightedKNN(k=200).check(torch.zeros(3), None)
    WeightedKNN(k=10).check(torch.arange(3), torch.zeros(10))


def test_a_test_set_of_one_class_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"metrics.knn: the test set has one class \(2\), and nothing to tell apart"):
        WeightedKNN(k=1).check(torch.full((3,), 2), torch.arange(10))
    with pytest.raises(ValueError, match=r"metrics.knn: the validation set has one class \(2\)"):
        WeightedKNN(k=1).check(torch.full((3,), 2), torch.arange(10), "the validation set")


def test_unlabelled_images_cannot_vote() -> None:
    points = random_unit(4, 4, 0)
    with pytest.raises(ValueError, match="without a label"):
        knn_votes(points, points, torch.tensor([0, 1, -1, 1]), k=2)
