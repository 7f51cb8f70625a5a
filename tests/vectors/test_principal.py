import pytest
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from torch import Tensor

from src.vectors.principal import principal, shrunk_covariance


def test_they_are_scikit_learns(digits: tuple[Tensor, Tensor]) -> None:
    points, _ = digits
    variances, directions = principal(points.T.cov())
    theirs = PCA(svd_solver="full").fit(points.numpy())
    torch.testing.assert_close(variances, torch.from_numpy(theirs.explained_variance_), rtol=1e-9, atol=1e-12)
    found, expected = directions[:20], torch.from_numpy(theirs.components_[:20])
    torch.testing.assert_close((found * expected).sum(1).abs(), torch.ones(20).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("count", [3, 10, 64, 1797])
def test_a_covariance_is_shrunk_as_scikit_learn_does(
    digits: tuple[Tensor, Tensor], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.vectors.principal.AT_ONCE", 60)
    points = digits[0][:count]
    theirs, share = ledoit_wolf(points.numpy())
    assert 0 < share < 1
    torch.testing.assert_close(shrunk_covariance(points), torch.from_numpy(theirs), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("points", [torch.ones(1, 3), torch.ones(5, 3), torch.tensor([[1.0], [3.0]])])
def test_a_covariance_without_directions_stays(points: Tensor) -> None:
    expected = points.double().T.cov(correction=0).view(points.shape[1], -1)
    assert torch.equal(shrunk_covariance(points), expected)
