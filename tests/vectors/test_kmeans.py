import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from src.vectors.kmeans import assign, kmeans


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
