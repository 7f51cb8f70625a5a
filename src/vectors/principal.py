"""How points vary, and the directions that they vary most in."""

import torch
from torch import Tensor

AT_ONCE = 2**15  # points in float64


def principal(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The variances `(F,)` of a covariance `(F, F)`, falling, and their directions, the rows of `(F, F)`: PCA."""
    variances, directions = torch.linalg.eigh(covariance)
    return variances.flip(0), directions.T.flip(0)


def shrunk_covariance(points: Tensor) -> Tensor:
    """The covariance `(F, F)` of points `(N, F)`, drawn towards the same variance in every direction; float64.

    As far as is likely to bring it nearest to that of points not seen, so further the fewer there are; with fewer than
    dimensions too it has an inverse (Ledoit and Wolf, Journal of Multivariate Analysis 2004, section 3).
    """
    mean = points.mean(0, dtype=torch.float64)
    covariance = points.new_zeros(len(mean), len(mean), dtype=torch.float64)
    fourth = points.new_zeros((), dtype=torch.float64)
    for some in points.split(AT_ONCE):
        centred = some.double() - mean
        covariance += centred.T @ centred / len(points)
        fourth += centred.square().sum(1).square().sum() / len(points)
    variance, size = covariance.diagonal().mean(), covariance.square().sum()
    noise, uneven = (fourth - size) / len(points), size - len(covariance) * variance.square()
    share = (noise / uneven).clamp(0, 1).nan_to_num(0)  # of one point, or one dimension, neither is there
    return covariance * (1 - share) + torch.eye(len(covariance)).to(covariance) * (share * variance)
