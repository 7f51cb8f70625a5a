import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from src.metrics.clustering import Clustering, normalized_mutual_information


def draw(count: int, classes: int, seed: int) -> Tensor:
    return torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("average", ["arithmetic", "geometric"])
@pytest.mark.parametrize(("first", "second"), [(3, 3), (1, 5), (2, 90), (200, 7), (1, 1), (150, 150)])
def test_nmi_against_scikit_learn(first: int, second: int, average: str) -> None:
    a, b = draw(200, first, 0), draw(200, second, 1)
    ours = normalized_mutual_information(a, b, average).item()
    assert ours == pytest.approx(normalized_mutual_info_score(a, b, average_method=average), abs=1e-9)
    assert normalized_mutual_information(a, a, average).item() == pytest.approx(1.0)
    assert normalized_mutual_information(a * 7 + 3, b, average).item() == pytest.approx(ours)


def test_the_metric(digits: tuple[Tensor, Tensor]) -> None:
    points, labels = digits
    metric = Clustering(restarts=3)
    metric.check(labels, None)
    metric.update(points, labels)
    expected = 100 * normalized_mutual_info_score(labels, KMeans(10, n_init=3, random_state=0).fit_predict(points))
    assert metric.compute()["NMI"].item() == pytest.approx(expected, abs=5)
    with pytest.raises(ValueError, match="without one"):
        metric.check(labels - 1, None)
    geometric = Clustering(restarts=3, average="geometric")
    geometric.update(points, labels)
    assert geometric.compute()["NMI"] > metric.compute()["NMI"], "of unequal entropies the geometric mean is smaller"


def test_a_test_set_of_one_class_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"clustering: the test set has one class \(2\), and nothing to tell apart"):
        Clustering(restarts=1).check(torch.full((3,), 2), None)
