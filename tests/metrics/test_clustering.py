import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor
from torch.nn.functional import normalize

from src.metrics.clustering import Clustering, assign, kmeans, normalized_mutual_information


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return normalize(torch.tensor(data.data) - torch.tensor(data.data).mean(0), dim=1), torch.tensor(data.target)


def draw(count: int, classes: int, seed: int) -> Tensor:
    return torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("first", "second"), [(3, 3), (1, 5), (200, 7), (1, 1), (150, 150)])
def test_nmi_against_scikit_learn(first: int, second: int) -> None:
    a, b = draw(200, first, 0), draw(200, second, 1)
    ours = normalized_mutual_information(a, b).item()
    assert ours == pytest.approx(normalized_mutual_info_score(a, b), abs=1e-9)
    assert normalized_mutual_information(a, a).item() == pytest.approx(1.0)
    assert normalized_mutual_information(a * 7 + 3, b).item() == pytest.approx(ours)


def test_inertia_is_scikit_learns(digits: tuple[Tensor, Tensor]) -> None:
    points, _ = digits
    labels, inertia = kmeans(points, 10, restarts=5)
    expected = KMeans(10, n_init=5, random_state=0).fit(points)
    assert inertia == pytest.approx(expected.inertia_, rel=0.01)
    centres = torch.stack([points[labels == c].mean(0) for c in range(10)])
    assert (points - centres[labels]).square().sum().item() == pytest.approx(inertia, rel=0.01)


def test_assignment_against_all_distances(digits: tuple[Tensor, Tensor]) -> None:
    points, _ = digits
    labels, distances = assign(points, points[:30])
    expected = torch.cdist(points, points[:30]).square().min(1)
    assert torch.equal(labels, expected.indices)
    torch.testing.assert_close(distances, expected.values, atol=1e-9, rtol=0)


def test_as_many_clusters_as_points_and_one(digits: tuple[Tensor, Tensor]) -> None:
    points = digits[0][:700]  # more centres than rounds of seeding
    labels, inertia = kmeans(points, 700)
    assert len(labels.unique()) == 700
    assert inertia == pytest.approx(0, abs=1e-9)
    assert len(kmeans(points, 1)[0].unique()) == 1


def test_fewer_distinct_points_than_clusters() -> None:
    labels, inertia = kmeans(torch.eye(3).repeat(10, 1), 8)
    assert inertia == pytest.approx(0, abs=1e-5)
    assert labels.max() < 8


def test_a_seed_repeats_the_clusters(digits: tuple[Tensor, Tensor]) -> None:
    points, _ = digits
    assert torch.equal(kmeans(points, 20, seed=3)[0], kmeans(points, 20, seed=3)[0])
    assert not torch.equal(kmeans(points, 20, seed=3)[0], kmeans(points, 20, seed=4)[0])


@pytest.mark.parametrize("k", [0, 4])
def test_impossible_numbers_of_clusters(k: int) -> None:
    with pytest.raises(ValueError, match=f"{k} clusters asked of 3 points"):
        kmeans(torch.eye(3), k)


def test_the_metric(digits: tuple[Tensor, Tensor]) -> None:
    points, labels = digits
    metric = Clustering(restarts=3)
    metric.check(labels, None)
    metric.update(points, labels)
    expected = 100 * normalized_mutual_info_score(labels, KMeans(10, n_init=3, random_state=0).fit_predict(points))
    assert metric.compute()["NMI"].item() == pytest.approx(expected, abs=5)
    with pytest.raises(ValueError, match="without one"):
        metric.check(labels - 1, None)
    with pytest.raises(ValueError, match="restarts=0"):
        Clustering(restarts=0).check(labels, None)
