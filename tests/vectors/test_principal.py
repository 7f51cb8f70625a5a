import torch
from sklearn.decomposition import PCA
from torch import Tensor

from src.vectors.principal import principal


def test_they_are_scikit_learns(digits: tuple[Tensor, Tensor]) -> None:
    points, _ = digits
    variances, directions = principal(points.T.cov())
    theirs = PCA(svd_solver="full").fit(points.numpy())
    torch.testing.assert_close(variances, torch.from_numpy(theirs.explained_variance_), rtol=1e-9, atol=1e-12)
    found, expected = directions[:20], torch.from_numpy(theirs.components_[:20])
    torch.testing.assert_close((found * expected).sum(1).abs(), torch.ones(20).double(), rtol=0, atol=1e-9)
