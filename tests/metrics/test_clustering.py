import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from src.metrics.clustering import Clustering, information_terms, normalized_mutual_information


def draw(count: int, classes: int, seed: int) -> Tensor:
    return torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("average", ["arithmetic", "geometric"])
@pytest.mark.parametrize(("first", "second"), [(3, 3), (2, 2), (1, 5), (2, 90), (200, 7), (1, 1), (150, 150)])
def test_nmi_against_scikit_learn(first: int, second: int, average: str) -> None:
    a, b = draw(200, first, 0), draw(200, second, 1)
    ours = normalized_mutual_information(a, b, average).item()
    assert ours == pytest.approx(normalized_mutual_info_score(a, b, average_method=average), abs=1e-9)
    assert normalized_mutual_information(a, a, average).item() == pytest.approx(1.0)
    assert normalized_mutual_information(a * 7 + 3, b, average).item() == pytest.approx(ours)


def test_a_gallery_is_not_looked_at() -> None:
    """Another metric of the protocol may have one."""
    points, labels = torch.eye(4).repeat(5, 1), torch.arange(4).repeat(5)
    metric = Clustering(1)
    metric.update(points, labels, points[:4], labels[:4].flip(0))
    assert metric.compute()["NMI"].item() == pytest.approx(100)


def weighted_nmi(first: Tensor, second: Tensor, average: str, weight: Tensor) -> float:
    """By the tables of shares, each image counted as often as its weight says."""
    table = torch.zeros(int(first.max()) + 1, int(second.max()) + 1, dtype=torch.float64)
    table.index_put_((first, second), weight / weight.sum(), accumulate=True)

    def entropy(shares: Tensor) -> Tensor:
        return torch.special.entr(shares).sum()

    one, other = entropy(table.sum(1)), entropy(table.sum(0))
    mean = (one + other) / 2 if average == "arithmetic" else (one * other).sqrt()
    return float((one + other - entropy(table)) / mean)


@pytest.mark.parametrize("average", ["arithmetic", "geometric"])
def test_what_an_image_adds_is_the_derivative_by_its_weight(average: str) -> None:
    first = draw(60, 4, 0)
    second = torch.where(draw(60, 3, 2) > 0, first, draw(60, 5, 1))
    found, weight = information_terms(first, second, average), torch.ones(60, dtype=torch.float64)
    for image in range(0, 60, 7):
        step = 1e-5 * torch.eye(60, dtype=torch.float64)[image]
        up, down = (weighted_nmi(first, second, average, weight + sign * step) for sign in (1, -1))
        assert (found[image] - found.mean()).item() == pytest.approx(60 * (up - down) / 2e-5, rel=1e-6)


def test_the_default_is_the_arithmetic_mean() -> None:
    a, b = draw(50, 3, 0), draw(50, 9, 1)
    assert normalized_mutual_information(a, b) == normalized_mutual_information(a, b, "arithmetic")
    assert torch.equal(information_terms(a, b), information_terms(a, b, "arithmetic"))


def test_the_metric(digits: tuple[Tensor, Tensor]) -> None:
    points, labels = digits
    metric = Clustering(restarts=3)
    metric.check(labels, None)
    metric.update(points, labels)
    assert metric.compute()["NMI"].dtype == torch.float32
    expected = 100 * normalized_mutual_info_score(labels, KMeans(10, n_init=3, random_state=0).fit_predict(points))
    assert metric.compute()["NMI"].item() == pytest.approx(expected, abs=5)
    with pytest.raises(ValueError, match="without one"):
        metric.check(labels - 1, None)
    geometric = Clustering(restarts=3, average="geometric")
    geometric.update(points, labels)
    assert geometric.compute()["NMI"] > metric.compute()["NMI"], "of unequal entropies the geometric mean is smaller"
    seeded = Clustering(restarts=3, average="arithmetic", seed=0)
    seeded.update(points, labels)
    assert seeded.compute() == metric.compute()
    seeded.reset()
    assert (seeded.score, seeded.score.dtype) == (0, torch.float64)


def test_a_test_set_of_one_class_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"clustering: the test set has one class \(2\), and nothing to tell apart"):
        Clustering(restarts=1).check(torch.full((3,), 2), None)
