import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import normalize

from src.metrics.retrieval import Retrieval, relevant_counts, retrieval_hits


def naive(points: Tensor, labels: Tensor, ks: tuple[int, ...]) -> dict[str, float]:
    """One query at a time, everything sorted; of equals the lower row first."""
    recall, precision = [], []
    for i, similarities in enumerate(points @ points.T):
        others = sorted((-s, j) for j, s in enumerate(similarities.tolist()) if j != i)
        correct = [bool(labels[j] == labels[i]) for _, j in others]
        relevant = sum(correct)
        if not relevant:
            continue
        recall.append([any(correct[:k]) for k in ks])
        precision.append(sum(sum(correct[:r]) / r * correct[r - 1] for r in range(1, relevant + 1)) / relevant)
    scores = {f"R@{k}": 100 * sum(row[n] for row in recall) / len(recall) for n, k in enumerate(ks)}
    return scores | {"mAP@R": 100 * sum(precision) / len(precision)}


def ours(points: Tensor, labels: Tensor, ks: tuple[int, ...]) -> dict[str, float]:
    metric = Retrieval(ks)
    metric.check(labels, None)
    metric.update(points, labels)
    return {name: value.item() for name, value in metric.compute().items()}


def test_a_gallery_is_not_looked_at() -> None:
    """Another metric of the protocol may have one."""
    points = normalize(torch.randn(20, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.arange(20) % 4
    metric = Retrieval((1, 2))
    metric.update(points, labels, points.flip(0), labels)
    assert {name: value.item() for name, value in metric.compute().items()} == ours(points, labels, (1, 2))


def duplicates(seed: int) -> Tensor:
    """Forty images, many the same, whose similarities are exact."""
    axes = torch.cat([torch.eye(4), -torch.eye(4)]).double()
    return axes[torch.randint(0, 8, (40,), generator=torch.Generator().manual_seed(seed))]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [2, 5, 30])
@pytest.mark.parametrize("tied", [False, True])
def test_against_a_naive_loop(seed: int, classes: int, tied: bool) -> None:
    """Ties, duplicate images and, with 30 classes of 40 images, images alone in theirs."""
    generator = torch.Generator().manual_seed(seed)
    points = duplicates(seed) if tied else normalize(torch.randn(40, 5, generator=generator).double(), dim=1)
    labels = torch.randint(0, classes, (40,), generator=generator)
    assert ours(points, labels, (1, 2, 4, 8)) == pytest.approx(naive(points, labels, (1, 2, 4, 8)), rel=1e-6)


def test_against_pytorch_metric_learning() -> None:
    data = load_digits()
    points, labels = normalize(torch.tensor(data.data), dim=1), torch.tensor(data.target)
    expected = AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r"),
        k="max_bin_count",
        device=torch.device("cpu"),
        knn_func=CustomKNN(CosineSimilarity()),
    ).get_accuracy(points, labels)
    scores = ours(points, labels, (1,))
    assert scores["R@1"] == pytest.approx(100 * expected["precision_at_1"])
    assert scores["mAP@R"] == pytest.approx(100 * expected["mean_average_precision_at_r"], abs=1e-4)


def test_collapsed_embeddings_score_like_chance() -> None:
    labels = torch.arange(100) % 10
    assert ours(normalize(torch.ones(100, 4), dim=1), labels, (1, 4))["R@1"] <= 10


def test_queries_alone_in_their_class_do_not_count() -> None:
    points = torch.eye(4)
    hits, precision = retrieval_hits(points, torch.tensor([0, 0, 1, 2]), (1,))
    assert len(hits) == len(precision) == 2
    hits, precision = retrieval_hits(points, torch.arange(4), (1, 3))
    assert (hits.shape, hits.dtype) == ((0, 2), torch.bool)
    assert (precision.shape, precision.dtype) == ((0,), torch.float64)
    with pytest.raises(ValueError, match="a gallery of 0 images"):
        retrieval_hits(points[:0], torch.empty(0, dtype=torch.long), (1,))


def test_relevant_are_the_others_of_the_class() -> None:
    assert relevant_counts(torch.tensor([4, 4, 9, 4])).tolist() == [2, 2, 0, 2]


def test_images_without_a_label_are_not_scored() -> None:
    with pytest.raises(ValueError, match="without a label"):
        retrieval_hits(torch.eye(3), torch.tensor([0, 0, -1]), (1,))


@pytest.mark.parametrize(
    ("labels", "k", "message"),
    [
        ([0, 0, 1, 1], (1, 4), r"k=\[1, 4\]: the test set has 4 images.* between 1 and 3"),
        ([0, 0, -1, 1], (1,), "without one"),
        ([0, 1, 2, 3], (1,), "no class of the test set has two images"),
        ([7, 7, 7, 7], (1,), r"retrieval: the test set has one class \(7\), and nothing to tell apart"),
    ],
)
def test_impossible_test_sets_are_named(labels: list[int], k: tuple[int, ...], message: str) -> None:
    Retrieval((1, 3)).check(torch.tensor([0, 0, 1, 1]), None)
    with pytest.raises(ValueError, match=message):
        Retrieval(k).check(torch.tensor(labels), None)
    with pytest.raises(ValueError, match=message.replace("test", "validation")):
        Retrieval(k).check(torch.tensor(labels), None, "the validation set")
