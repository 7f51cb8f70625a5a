from typing import Any

import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor
from torch.nn.functional import normalize

from src.methods.base import Extract, TrainingSet
from src.methods.deepcluster import DeepCluster, uniform_over_clusters, whiten
from src.vectors.kmeans import kmeans
from tests.methods.reference import assert_same, softmax, unit


def test_the_cosine_loss_agrees_with_a_loop() -> None:
    method, labels = make(3, 5, classifier="cosine").double(), torch.tensor([0, 2, 1, 1, 0])
    method.labels[:5], index = labels.flip(0), torch.arange(4, -1, -1)
    method.weights.data, z = 2 * unit(3, 8, seed=1), unit(5, 8).requires_grad_()
    w = method.weights
    assert_same(method(z, index)["loss"], softmax(z, w / w.norm(dim=1, keepdim=True), labels, 0.1), z, w)


def test_the_linear_loss_agrees_with_a_loop() -> None:
    """-log of exp(w_y.z + b_y) over the sum of all, z of any norm and no temperature."""
    method, index = make(3, 5).double(), torch.tensor([4, 0, 2, 1, 3])
    method.labels.copy_(torch.tensor([0, 2, 1, 1, 0]))
    assert method.biases is not None
    method.weights.data, method.biases.data = 2 * unit(3, 8, seed=1), torch.tensor([0.3, -1.0, 0.2]).double()
    z, total = (3 * unit(5, 8)).requires_grad_(), torch.zeros((), dtype=torch.float64)
    for row, image in enumerate(index.tolist()):
        logits = [method.weights[k] @ z[row] + method.biases[k] for k in range(3)]
        total = total - logits[int(method.labels[image])] + torch.stack(logits).exp().sum().log()
    assert_same(method(z, index)["loss"], total / 5, z, method.weights, method.biases)
    assert not method.unit_norm


def test_whitening_is_scikit_learns(digits: tuple[Tensor, Tensor]) -> None:
    points, _ = digits
    expected = normalize(torch.from_numpy(PCA(20, whiten=True, svd_solver="full").fit_transform(points.numpy())), dim=1)
    found = whiten(points, 20)
    signs = (found * expected).sum(0).sign()
    torch.testing.assert_close(found * signs, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(whiten(points / 1024, 20), found), "at any scale"


def test_directions_without_variance_do_not_explode() -> None:
    flat = torch.cat([unit(50, 3), torch.zeros(50, 5, dtype=torch.float64)], 1)
    found = whiten(flat, 8)
    assert found.isfinite().all()
    assert found[:, 3:].abs().max() < 1e-6
    assert whiten(torch.ones(4, 3), 3).abs().max() == 0, "all images alike"


def test_every_cluster_has_the_same_share() -> None:
    clusters = torch.tensor([0] * 90 + [1] * 6 + [3] * 4)  # cluster 2 is empty
    drawn = uniform_over_clusters(clusters, torch.Generator().manual_seed(0))
    assert len(drawn) == 100
    counts = clusters[drawn].bincount(minlength=4)
    assert counts[2] == 0
    assert counts[[0, 1, 3]].tolist() in (
        [34, 33, 33],
        [33, 34, 33],
        [33, 33, 34],
        [34, 34, 32],
        [34, 32, 34],
        [32, 34, 34],
    )
    assert drawn.bincount(minlength=100)[90:].min() >= 4, "none of a small cluster is left out"
    assert drawn.bincount(minlength=100)[:90].max() == 1, "none of a large one comes twice"


def make(clusters: int, images: int = 300, **options: Any) -> DeepCluster:
    torch.manual_seed(0)
    published: dict[str, Any] = {
        "pca": 16,
        "iterations": 20,
        "features": "raw",
        "classifier": "linear",
        "temperature": 0.1,
        "lr": 0.05,
        "weight_decay": 1e-5,
    }
    method = DeepCluster(clusters, **published | options)
    method.setup(TrainingSet(images, 8, pretrained=False, labels=None, num_features=8))
    return method


def looking_at(points: Tensor, raw_points: Tensor | None = None) -> Extract:
    """A pass whose raw features are others than those of unit norm."""

    def extract(kind: str = "unit") -> tuple[Tensor, Tensor]:
        return (raw_points if kind == "raw" and raw_points is not None else points), points

    return extract


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
def test_an_epoch_clusters_and_forgets(digits: tuple[Tensor, Tensor], classifier: str) -> None:
    points, labels = digits[0][:300].float(), digits[1][:300]
    method = make(10, classifier=classifier)
    before = method.weights.detach().clone()
    companions = method.on_epoch_start(looking_at(points), torch.Generator().manual_seed(0))
    assert companions.shape == (300, 1)
    assert normalized_mutual_info_score(labels, method.labels) > 0.5
    assert not torch.equal(method.weights, before)
    again = make(10, classifier=classifier)
    assert torch.equal(companions, again.on_epoch_start(looking_at(points), torch.Generator().manual_seed(0)))
    assert torch.equal(again.weights, method.weights), "the same epoch of the same seed"


def test_the_classifier_starts_as_published() -> None:
    """N(0, 0.01) and no bias; the cosine one of unit norm; the rate and the decay of its own, without momentum."""
    points = unit(300, 16, dtype=torch.float32)
    method, cosine = make(200), make(200, classifier="cosine", lr=None, weight_decay=None)
    for each in (method, cosine):
        if each.biases is not None:
            each.biases.data += 1
        each.on_epoch_start(looking_at(points), torch.Generator().manual_seed(0))
    assert method.weights.std().item() == pytest.approx(0.01, rel=0.05)
    assert abs(method.weights.mean().item()) < 1e-3
    assert method.biases is not None
    assert not method.biases.any()
    assert method.optimizer_options == {"lr": 0.05, "weight_decay": 1e-5, "momentum": 0}
    torch.testing.assert_close(cosine.weights.norm(dim=1), torch.ones(200))
    assert cosine.optimizer_options == {}


def test_clusters_are_settled_however_little_they_still_gain() -> None:
    """Points all around a circle, whose clusters turn a little in each of many iterations."""
    points = unit(3000, 2, dtype=torch.float32)
    method = make(3, images=3000, pca=2, iterations=10_000)
    method.on_epoch_start(looking_at(points), torch.Generator().manual_seed(0))
    seen = whiten(points, 2)
    centres = torch.stack([seen[method.labels == cluster].mean(0) for cluster in range(3)])
    assert torch.equal(torch.cdist(seen, centres).argmin(1), method.labels)
    seed = int(torch.randint(2**31, (1,), generator=torch.Generator().manual_seed(0)))
    assert not torch.equal(kmeans(seen, 3, seed, iterations=10_000)[0], method.labels), "with a tolerance they are not"


def test_what_is_clustered(digits: tuple[Tensor, Tensor]) -> None:
    """The features asked for, whitened to as many dimensions, in as many iterations."""
    points = digits[0][:300].float()
    noise = torch.randn(300, 64, generator=torch.Generator().manual_seed(5))

    def labels_of(**options: Any) -> Tensor:
        method = make(10, **options)
        method.on_epoch_start(looking_at(points, noise), torch.Generator().manual_seed(0))
        return method.labels

    seed = int(torch.randint(2**31, (1,), generator=torch.Generator().manual_seed(0)))
    for options, seen, dim, iterations in (
        ({"features": "raw"}, noise, 16, 20),
        ({"features": "pooled"}, points, 16, 20),
        ({"features": "pooled", "pca": 4}, points, 4, 20),
        ({"features": "raw", "iterations": 1}, noise, 16, 1),
    ):
        expected, _ = kmeans(whiten(seen, dim), 10, seed, iterations=iterations, tolerance=0)
        assert torch.equal(labels_of(**options), expected), options


def test_one_cluster_teaches_nothing_and_as_many_as_images_is_allowed() -> None:
    points = unit(12, 8, dtype=torch.float32)
    for clusters in (1, 12):
        method = make(clusters, 12)
        companions = method.on_epoch_start(looking_at(points), torch.Generator().manual_seed(0))
        assert companions.flatten().sort().values.tolist() == list(range(12))
        loss = method(points, companions.flatten())["loss"]
        assert (loss == 0) == (clusters == 1)


def test_more_clusters_than_images() -> None:
    with pytest.raises(ValueError, match=r"method.clusters=13, but there are 12"):
        make(13, 12)
