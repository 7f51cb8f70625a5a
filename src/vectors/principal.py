"""How points vary, and the directions that they vary most in."""

import torch
from torch import Tensor
from torch.nn import functional

from src.vectors import neighbors

AT_ONCE = 2**12  # points whose products are summed in their own precision
TOLD = 1e-10  # of the largest variance: less is rounding


def principal(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The variances `(F,)` of a covariance `(F, F)`, falling, and their directions, the rows of `(F, F)`: PCA."""
    variances, directions = torch.linalg.eigh(covariance)
    return variances.flip(0), directions.T.flip(0)


def shrunk_principal(points: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The largest variances `(dim,)` of points `(N, F)`, falling, and their directions, rows of `(dim, F)`; float64.

    Variances are those of the covariance drawn towards the same in every direction, as far as is likely to bring it
    nearest to that of points not seen, so further the fewer there are: none is 0 then (Ledoit and Wolf, Journal of
    Multivariate Analysis 2004, section 3). Directions that so many points do not have are any others, drawn.

    Args:
        points: of any float type.
        dim: 1 to F.
    """
    count, features = points.shape
    precision = torch.promote_types(points.dtype, torch.float32)
    mean = points.mean(0, dtype=torch.float64)
    few = count < features  # their products with each other then say as much as the covariance, and are fewer
    products = points.new_zeros(min(count, features), min(count, features), dtype=torch.float64)
    fourth = points.new_zeros((), dtype=torch.float64)
    for some in points.split(count if few else AT_ONCE):
        centred = some - mean
        each = centred if few else centred.T.to(precision)
        products += neighbors.products(each, each) / count
        fourth += centred.square().sum(1).square().sum() / count
    variance, size = products.diagonal().sum() / features, products.square().sum()
    noise, uneven = (fourth - size) / count, size - features * variance.square()
    share = (noise / uneven).clamp(0, 1).nan_to_num(0)  # of one point, or one dimension, neither is there
    variances, directions = (found[:dim] for found in principal(products))
    if few:
        told = variances > TOLD * variances[0]
        own = functional.normalize(directions[told] @ centred, dim=1)
        drawn = torch.randn(features, dim - len(own), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        others = torch.linalg.qr(torch.cat([own.T, drawn.to(own)], 1)).Q[:, len(own) :].T
        variances = functional.pad(variances[told], (0, len(others)))
        directions = torch.cat([own, others])
    return variances * (1 - share) + share * variance, directions
