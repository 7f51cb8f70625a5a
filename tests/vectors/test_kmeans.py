import math

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Generator, Tensor

from src.vectors import kmeans as module
from src.vectors.kmeans import _seeds, assign, kmeans


def grid(count: int, side: int, seed: int = 0) -> Tensor:
    """Points whose distances are whole numbers, `(count, 3)`; some are the same where `side` is small."""
    return torch.randint(side, (count, 3), generator=Generator().manual_seed(seed)).double()


def naive_seeds(points: Tensor, k: int, rounds: int, generator: Generator) -> list[int]:
    """k-means++ with all distances taken anew each time."""
    chosen = torch.randint(len(points), (1,), generator=generator).tolist()
    while len(chosen) < k:
        nearest = torch.stack([(points - points[row]).square().sum(1) for row in chosen]).min(0).values
        weights = [0.0 if row in chosen else far for row, far in enumerate(nearest.tolist())]
        count = min(math.ceil(k / rounds), k - len(chosen))
        if sum(weight > 0 for weight in weights) < count:
            weights = [float(row not in chosen) for row in range(len(points))]
        chosen += torch.tensor(weights).double().multinomial(count, generator=generator).tolist()
    return chosen


def naive(points: Tensor, k: int, seed: int, restarts: int, iterations: int, tolerance: float) -> tuple[Tensor, float]:
    """Lloyd's iterations with every distance taken anew."""
    generator, best = Generator().manual_seed(seed), (points.new_zeros(0), math.inf)
    for _ in range(restarts):
        centres = points[naive_seeds(points, k, 256, generator)]
        distance, labels = (points.unsqueeze(1) - centres).square().sum(2).min(1)
        inertia = float(distance.sum())
        for _ in range(iterations):
            moved = torch.stack([points[labels == number].mean(0) for number in range(k)])
            if torch.equal(moved, centres):
                break
            centres, previous = moved, inertia
            distance, labels = (points.unsqueeze(1) - centres).square().sum(2).min(1)
            inertia = float(distance.sum())
            if previous - inertia <= tolerance * inertia:
                break
        best = (labels, inertia) if inertia < best[1] else best
    return best


@pytest.mark.parametrize(("side", "k"), [(40, 3), (40, 11), (2, 30), (2, 4), (40, 1)])
def test_seeds_agree_with_a_loop(monkeypatch: pytest.MonkeyPatch, side: int, k: int) -> None:
    """Also with more centres than distinct points, and with several drawn at once."""
    points = grid(60, side)
    for rounds in (256, 4):
        monkeypatch.setattr(module, "ROUNDS", rounds)
        for seed in range(5):
            expected = naive_seeds(points, k, rounds, Generator().manual_seed(seed))
            assert len(set(expected)) == k
            assert torch.equal(_seeds(points, k, Generator().manual_seed(seed)), points[expected])


@pytest.mark.parametrize(
    ("restarts", "iterations", "tolerance"), [(1, 100, 1e-4), (4, 100, 0), (2, 1, 0), (1, 9, 0.05)]
)
def test_iterations_agree_with_a_loop(
    digits: tuple[Tensor, Tensor], restarts: int, iterations: int, tolerance: float
) -> None:
    points = digits[0][:300]
    for seed in range(4):
        for k in (9, 60):  # of many centres most soon stand still
            labels, inertia = kmeans(points, k, seed, restarts, iterations, tolerance)
            expected, least = naive(points, k, seed, restarts, iterations, tolerance)
            assert torch.equal(labels, expected)
            assert inertia == pytest.approx(least, rel=1e-9)


def test_the_defaults_are_one_attempt_from_seed_0(digits: tuple[Tensor, Tensor]) -> None:
    points = digits[0][:300]
    labels, inertia = kmeans(points, 9)
    expected, least = kmeans(points, 9, 0, 1, 100, 1e-4)
    assert torch.equal(labels, expected)
    assert inertia == least


def test_a_cluster_that_empties_starts_again_at_the_farthest_point(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.tensor([[0.0], [1.0], [10.0], [11.0], [30.0], [50.0]])
    monkeypatch.setattr(module, "_seeds", lambda *_: torch.tensor([[0.5], [10.5], [1000.0], [2000.0]]))
    labels, inertia = kmeans(points, 4)
    assert inertia == 1
    assert labels.tolist() == [0, 0, 1, 1, 3, 2]


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
