"""The directions that points vary most in."""

import torch
from torch import Tensor


def principal(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The variances `(F,)` of a covariance `(F, F)`, falling, and their directions, the rows of `(F, F)`: PCA."""
    variances, directions = torch.linalg.eigh(covariance)
    return variances.flip(0), directions.T.flip(0)
