import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor
from torch.nn.functional import normalize

from src.methods.base import TrainingSet
from src.methods.deepcluster import DeepCluster, cluster_loss, uniform_over_clusters, whiten
from tests.methods.reference import assert_same, softmax, unit


def test_the_loss_agrees_with_a_loop() -> None:
    z, w, labels = unit(5, 4).requires_grad_(), (2 * unit(3, 4, seed=1)).requires_grad_(), torch.tensor([0, 2, 1, 1, 0])
    assert_same(cluster_loss(z, w, labels, 0.1), softmax(z, w / w.norm(dim=1, keepdim=True), labels, 0.1), z, w)


def test_whitening_is_scikit_learns(digits: tuple[Tensor, Tensor]) -> None:
    points, _ = digits
    expected = normalize(torch.from_numpy(PCA(20, whiten=True, svd_solver="full").fit_transform(points.numpy())), dim=1)
    found = whiten(points, 20)
    signs = (found * expected).sum(0).sign()
    torch.testing.assert_close(found * signs, expected, rtol=1e-6, atol=1e-6)


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


def make(clusters: int, images: int = 300) -> DeepCluster:
    torch.manual_seed(0)
    method = DeepCluster(clusters, 16, 0.1)
    method.setup(TrainingSet(images, 8, pretrained=False, labels=None))
    return method


def test_an_epoch_clusters_and_forgets(digits: tuple[Tensor, Tensor]) -> None:
    points, labels = digits[0][:300].float(), digits[1][:300]
    method = make(10)
    before = method.weights.detach().clone()
    companions = method.on_epoch_start(lambda: (points, points), torch.Generator().manual_seed(0))
    assert companions.shape == (300, 1)
    assert normalized_mutual_info_score(labels, method.labels) > 0.5
    assert not torch.equal(method.weights, before)
    again = make(10)
    assert torch.equal(companions, again.on_epoch_start(lambda: (points, points), torch.Generator().manual_seed(0)))
    assert torch.equal(again.weights, method.weights), "the same epoch of the same seed"


def test_one_cluster_teaches_nothing_and_as_many_as_images_is_allowed() -> None:
    points = unit(12, 8, dtype=torch.float32)
    for clusters in (1, 12):
        method = make(clusters, 12)
        companions = method.on_epoch_start(lambda: (points, points), torch.Generator().manual_seed(0))
        assert companions.flatten().sort().values.tolist() == list(range(12))
        loss = method(points, companions.flatten())["loss"]
        assert (loss == 0) == (clusters == 1)


def test_impossible_options() -> None:
    with pytest.raises(ValueError, match=r"method.clusters=13, but there are 12"):
        make(13, 12)
    with pytest.raises(ValueError, match=r"method.clusters=0"):
        DeepCluster(0, 16, 0.1)
