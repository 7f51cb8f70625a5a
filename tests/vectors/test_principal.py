import pytest
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from torch import Tensor

from src.vectors.principal import principal, shrunk_principal


def test_they_are_scikit_learns(digits: tuple[Tensor, Tensor]) -> None:
    points, _ = digits
    variances, directions = principal(points.T.cov())
    theirs = PCA(svd_solver="full").fit(points.numpy())
    torch.testing.assert_close(variances, torch.from_numpy(theirs.explained_variance_), rtol=1e-9, atol=1e-12)
    found, expected = directions[:20], torch.from_numpy(theirs.components_[:20])
    torch.testing.assert_close((found * expected).sum(1).abs(), torch.ones(20).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("count", [3, 10, 63, 64, 1797])
def test_variances_are_shrunk_as_scikit_learn_does(
    digits: tuple[Tensor, Tensor], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer points than dimensions, as many, and more, some at once."""
    monkeypatch.setattr("src.vectors.principal.AT_ONCE", 60)
    points = digits[0][:count]
    theirs, share = ledoit_wolf(points.numpy())
    assert 0 < share < 1
    variances, directions = shrunk_principal(points, 64)
    torch.testing.assert_close(directions @ directions.T, torch.eye(64).double(), rtol=0, atol=1e-9)
    assert variances.min() > 0
    assert (variances.diff() <= 0).all()
    found = (directions.T * variances) @ directions
    torch.testing.assert_close(found, torch.from_numpy(theirs), rtol=1e-9, atol=1e-12)
    for dim in (1, 5, 40):
        some, their_directions = shrunk_principal(points, dim)
        torch.testing.assert_close(some, variances[:dim], rtol=1e-9, atol=1e-12)
        told = min(dim, count - 1, 50)
        torch.testing.assert_close(their_directions[:told], directions[:told], rtol=0, atol=1e-6)
        torch.testing.assert_close(their_directions @ their_directions.T, torch.eye(dim).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("count", [10, 1797])
def test_neither_the_scale_nor_what_was_drawn_before_matters(digits: tuple[Tensor, Tensor], count: int) -> None:
    points = digits[0][:count].double()
    variances, directions = shrunk_principal(points, 64)
    torch.rand(1)
    scaled, others = shrunk_principal(points / 1024, 64)
    assert torch.equal(scaled * 1024**2, variances)
    assert torch.equal(others, directions)


def test_what_varies_alike_is_shrunk_to_the_same_in_every_direction() -> None:
    points = torch.diag(torch.tensor([1.0, 1.0, 1.01]).double())
    points = torch.cat([points, -points])
    theirs, share = ledoit_wolf(points.numpy())
    assert share == 1
    torch.testing.assert_close(shrunk_principal(points, 3)[0].diag(), torch.from_numpy(theirs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_points_in_their_own_precision(
    digits: tuple[Tensor, Tensor], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.vectors.principal.AT_ONCE", 600)
    points = digits[0].to(dtype)
    (found, _), (expected, _) = shrunk_principal(points, 64), shrunk_principal(points.double(), 64)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("points", [torch.ones(1, 3), torch.ones(5, 3), torch.tensor([[1.0], [3.0]])])
def test_what_has_no_directions_is_not_shrunk(points: Tensor) -> None:
    variances, directions = shrunk_principal(points, points.shape[1])
    expected = points.double().T.cov(correction=0).view(points.shape[1], -1)
    assert torch.equal(variances, expected.diagonal())
    assert torch.isfinite(directions).all()
