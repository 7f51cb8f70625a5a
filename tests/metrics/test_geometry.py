import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from src.metrics import geometry
from src.metrics.geometry import Geometry, effective_rank, uniformity


def points(rows: int, dim: int, directions: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return normalize(
        torch.randn(rows, directions, generator=generator) @ torch.randn(directions, dim, generator=generator), dim=1
    )


def naive_rank(embeddings: Tensor) -> float:
    values = np.linalg.svd(embeddings.double().numpy(), compute_uv=False)
    shares = values / values.sum() + 1e-7
    return float(np.exp(-(shares * np.log(shares)).sum()))


@pytest.mark.parametrize("block", [1, 500, 2**24])
def test_uniformity_against_a_naive_loop(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pair once, whatever the blocks."""
    monkeypatch.setattr(geometry, "BLOCK", block)
    embeddings = points(60, 5, 5)
    pairs = [
        np.exp(-2 * ((a - b) ** 2).sum())
        for i, a in enumerate(embeddings.double().numpy())
        for b in embeddings.double().numpy()[:i]
    ]
    assert uniformity(embeddings).item() == pytest.approx(np.log(np.mean(pairs)), rel=1e-5)


@pytest.mark.parametrize(("rows", "dim", "directions"), [(300, 20, 20), (30, 90, 90), (200, 50, 4), (5000, 3, 2)])
def test_rank_against_numpy(rows: int, dim: int, directions: int) -> None:
    embeddings = points(rows, dim, directions)
    rank = effective_rank(embeddings).item()
    assert rank == pytest.approx(naive_rank(embeddings), rel=1e-4)
    assert 1 <= rank <= directions * 1.001


def test_collapsed_and_spread() -> None:
    same = normalize(torch.ones(50, 8), dim=1)
    assert uniformity(same).item() == pytest.approx(0, abs=1e-6)
    assert uniformity(same) <= 0
    assert effective_rank(same).item() == pytest.approx(1, abs=1e-4)
    axes = torch.eye(8).repeat(5, 1)
    assert effective_rank(axes).item() == 8
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert uniformity(opposite).item() == pytest.approx(-8)
    assert effective_rank(torch.ones(5, 1)).item() == 1


def test_the_metric_needs_no_labels() -> None:
    metric, embeddings = Geometry(), points(40, 6, 6)
    unlabelled = torch.full((40,), -1)
    metric.check(unlabelled, None)
    metric.check(unlabelled[:2], None)
    metric.update(embeddings, unlabelled, points(9, 6, 6), torch.zeros(9))
    scores = {name: value.item() for name, value in metric.compute().items()}
    assert scores == pytest.approx({"uniformity": uniformity(embeddings).item(), "rank": naive_rank(embeddings)})
    assert list(scores) == metric.scores()
    with pytest.raises(ValueError, match=r"protocol.metrics.geometry: the test set has one image, and no pair"):
        metric.check(unlabelled[:1], None)
