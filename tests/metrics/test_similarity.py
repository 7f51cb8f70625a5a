from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.functional import normalize

from src.datamodules.cifar10 import CLASSES
from src.metrics import similarity
from src.metrics.similarity import Similarity, auc, histograms, nearest_by_class, overlap

ONCE = torch.ones(1, 1)
GROUPINGS = "parity: {even: [a, c], odd: [b, d]}\nfew: {first: [a], second: [b]}\n"


def draw(rows: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Unit vectors, float64 `(rows, 6)`, that lean towards their classes; and the classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    points = torch.randn(rows, 6, generator=generator).double() + 2 * torch.eye(6).double()[labels]
    return normalize(points, dim=1), labels


def naive(query: tuple[Tensor, Tensor], gallery: tuple[Tensor, Tensor], k: int, alone: bool) -> list[list[list[float]]]:
    """The similarities of one query at a time, to its own class and to others, largest first."""
    found: list[list[list[float]]] = [[], []]
    for i, (point, label) in enumerate(zip(*query, strict=True)):
        kinds: tuple[list[float], list[float]] = ([], [])
        for j, (other, theirs) in enumerate(zip(*gallery, strict=True)):
            if not (alone and i == j):
                kinds[int(label != theirs)].append((point @ other).item())
        for kind, values in zip(found, kinds, strict=True):
            kind.append(sorted(values, reverse=True)[:k])
    return found


def finite(similarities: Tensor) -> list[list[float]]:
    return [[value for value in row if value > -2] for row in similarities.sort(1, descending=True).values.tolist()]


def scores_of(pairs: list[list[list[float]]]) -> dict[str, float]:
    """numpy's histograms and scikit-learn's AUC of all the similarities, of queries that have both kinds."""
    kept = [(same, other) for same, other in zip(*pairs, strict=True) if same and other]
    values = [np.concatenate(part) for part in zip(*kept, strict=True)]
    shares = [np.histogram(part, 100, (-1, 1))[0] / len(part) for part in values]
    truth = np.repeat([1, 0], [len(part) for part in values])
    return {
        "overlap": 100 * np.minimum(*shares).sum(),
        "AUC": 100 * roc_auc_score(truth, np.concatenate(values)),
    }


@pytest.mark.parametrize("block", [1, 300, 2**24])
@pytest.mark.parametrize("k", [1, 5, 500])
@pytest.mark.parametrize("classes", [2, 6])
def test_nearest_against_a_naive_loop(block: int, k: int, classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "BLOCK", block)
    query, gallery = draw(30, classes, 0), draw(70, classes, 1)
    for alone, among, own in ((False, gallery, None), (True, query, torch.arange(30))):
        # A second grouping leaves the first class out.
        some, others = ((points[labels > 0], labels[labels > 0]) for points, labels in (query, among))
        mine, theirs = (torch.stack([labels, labels.where(labels > 0, -1)]) for labels in (query[1], among[1]))
        found = nearest_by_class(query[0], mine, among[0], theirs, k, own)
        expected = zip(naive(query, among, k, alone), naive(some, others, k, alone), strict=True)
        for ours, (of_all, of_some) in zip(found, expected, strict=True):
            assert ours.shape == (2, 30, min(k, len(among[0])))
            assert finite(ours[0]) == [pytest.approx(row) for row in of_all]
            assert finite(ours[1, query[1] > 0]) == [pytest.approx(row) for row in of_some]
            assert not ours[1, query[1] == 0].isfinite().any()


@pytest.mark.parametrize("alone", [False, True])
def test_the_metric_against_scikit_learn(alone: bool) -> None:
    """Also with queries that have nothing of their class; and, in the gallery, with a copy of each query."""
    points, labels = draw(40, 4, 0)
    labels[3] = 5
    query = points, labels
    gallery = torch.cat([points, draw(60, 4, 1)[0]]), torch.cat([labels, draw(60, 4, 1)[1]])
    gallery = gallery if alone else (gallery[0][4:], gallery[1][4:])
    metric = Similarity(neighbors=5)
    among = query if alone else gallery
    metric.check(labels, None if alone else gallery[1])
    metric.update(*query, *(() if alone else gallery))
    expected = scores_of(naive(query, among, 5, alone))
    assert {name: value.item() for name, value in metric.compute().items()} == pytest.approx(expected)


def test_ties_count_half() -> None:
    same, other = torch.tensor([[1.0, 0.5]]), torch.tensor([[0.5, 0.0]])
    assert auc(same, other, ONCE).tolist() == [87.5]
    assert auc(same, same, ONCE).tolist() == [50]
    twice = torch.tensor([[1.0], [0.5]]), torch.tensor([[0.0], [0.75]])
    assert auc(*twice, torch.ones(1, 2)).tolist() == [75]
    assert overlap(same, same, ONCE).tolist() == [100]
    assert overlap(same, -same, ONCE).tolist() == [0]
    assert overlap(same, other, ONCE).tolist() == [50]


def test_collapsed_embeddings_cannot_be_told_apart() -> None:
    metric, labels = Similarity(), torch.arange(40) % 4
    metric.update(normalize(torch.ones(40, 3), dim=1), labels)
    assert {name: value.item() for name, value in metric.compute().items()} == {"overlap": 100, "AUC": 50}


def test_the_ends_are_in_the_histogram() -> None:
    ends = torch.tensor([[-1.0, 1.0, -torch.inf]])
    assert histograms(ends).nonzero().tolist() == [[0, 0], [0, 99]]


def test_histograms_are_densities_of_plain_numbers() -> None:
    query, gallery = draw(40, 4, 0), draw(60, 4, 1)
    metric = Similarity()
    metric.update(*query, *gallery)
    found = metric.histograms()["classes"]
    for name, values in zip(("same", "other"), naive(query, gallery, 5, False), strict=True):
        density, edges = np.histogram(np.concatenate(values), 100, (-1, 1), density=True)
        assert found["edges"] == pytest.approx(edges.tolist())
        assert found[name] == pytest.approx(density.tolist())
    assert {type(value) for row in found.values() for value in row} == {float}
    metric.reset()
    assert metric.histograms() == {}


@pytest.mark.parametrize("alone", [False, True])
def test_other_groupings(tmp_path: Path, alone: bool) -> None:
    """Of parity, all images; of `few`, those of the first two classes alone."""
    (tmp_path / "own.yaml").write_text(GROUPINGS)
    query, gallery = draw(50, 4, 0), draw(80, 4, 1)
    metric = Similarity(5, str(tmp_path / "own.yaml"))
    metric.name_classes(["a", "b", "c", "d"])
    names = ["overlap", "AUC", "parity/overlap", "parity/AUC", "few/overlap", "few/AUC"]
    assert metric.scores() == names
    among = () if alone else gallery
    metric.check(query[1], None if alone else gallery[1])
    metric.update(*query, *among)
    found = {name: value.item() for name, value in metric.compute().items()}
    assert list(found) == names
    assert list(metric.histograms()) == ["classes", "parity", "few"]
    for grouping, groups in (("parity", [0, 1, 0, 1]), ("few", [0, 1, -1, -1])):
        kept = []
        for points, labels in (query, query if alone else gallery):
            numbers = torch.tensor(groups)[labels]
            kept.append((points[numbers >= 0], numbers[numbers >= 0]))
        expected = scores_of(naive(kept[0], kept[1], 5, alone))
        assert {name: found[f"{grouping}/{name}"] for name in expected} == pytest.approx(expected)


def test_shipped_groupings_are_of_cifar10() -> None:
    metric = Similarity(groupings="cifar10")
    metric.name_classes(CLASSES)
    assert metric.groups["animals_vs_artifacts"].tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 1, 1]
    assert metric.groups["big_vs_small_animals"].tolist() == [-1, -1, 1, 1, 0, 1, 1, 0, -1, -1]


def test_images_with_nothing_to_compare_are_errors(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(GROUPINGS)
    metric = Similarity(5, str(tmp_path / "own.yaml"))
    metric.name_classes(["a", "b", "c", "d"])
    metric.check(torch.tensor([0, 0, 1, 3]), None)
    with pytest.raises(
        ValueError, match=r"protocol\.final\.similarity: no image of the test set has one of the same.*\(classes\)"
    ):
        metric.check(torch.tensor([0, 1, 2, 3]), None)
    with pytest.raises(ValueError, match=r"no image of the test set has one of the same .* another group.*\(few\)"):
        metric.check(torch.tensor([0, 0, 2, 3]), None)
    with pytest.raises(ValueError, match=r"no image of the held-out .*\(few\)"):
        metric.check(torch.tensor([2, 2, 3]), None, "the held-out set")
    with pytest.raises(ValueError, match="needs labels"):
        metric.check(torch.tensor([0, -1, 1]), torch.tensor([0, 1]))
