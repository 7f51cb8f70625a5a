"""How embeddings lie on the sphere, which needs no label: how far apart, and along how many directions."""

import torch
from torch import Tensor

from src.metrics.base import Score
from src.vectors.neighbors import products, queries_at_once

BLOCK = 2**20  # similarities that a CPU holds at once, 4 MiB: each is touched several times, so they stay in its cache
EPSILON = 1e-7  # of equation (1) in Garrido et al.


def uniformity(points: Tensor) -> Tensor:
    """Log of the mean Gaussian potential of all pairs: log E exp(-2 |x - y|²), -8 to 0, the lower the more spread.

    Wang and Isola, ICML 2020, equation (5) with t = 2. Exact: each pair once, in bounded memory.

    Args:
        points: `(N, D)`, unit norm, N of at least 2.

    Returns:
        float64.
    """
    total = points.new_zeros((), dtype=torch.float64)
    chunk = queries_at_once(points, BLOCK)
    for start in range(0, len(points), chunk):
        similarity = products(points[start:], points[start : start + chunk])
        potential = similarity.clamp_(max=1).sub_(1).mul_(4).exp_().tril_(-1)  # |x - y|² = 2 - 2 xy
        total += potential.sum(0).double().sum()
    return (total / (len(points) * (len(points) - 1) / 2)).log()


def effective_rank(points: Tensor) -> Tensor:
    """The exponential of the entropy of the singular values, 1 (collapsed) to min(N, D), float64.

    RankMe: Garrido et al., ICML 2023, equations (1) and (2). The singular values are the roots of the eigenvalues of
    the smaller Gram matrix.

    Args:
        points: `(N, D)`, not all zero.
    """
    points = points if points.shape[0] > points.shape[1] else points.T
    gram = points.new_zeros(points.shape[1], points.shape[1], dtype=torch.float64)
    for part in points.split(4096):
        gram.addmm_(part.T.double(), part.double())
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    shares = values / values.sum() + EPSILON
    return (-(shares * shares.log()).sum()).exp().clamp(1, len(gram))


class Geometry(Score):
    """Uniformity and effective rank of the query: `{"uniformity": …, "rank": …}`, neither in percent."""

    key = "geometry"

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Tensor] = {}

    def scores(self) -> list[str]:
        return ["uniformity", "rank"]

    def check(self, query_labels: Tensor, gallery_labels: Tensor | None, query: str = "the test set") -> None:
        if len(query_labels) < 2:
            raise ValueError(f"{self.setting}: {query} has one image, and no pair: it must have two or more")

    def update(self, query: Tensor, query_labels: Tensor, *gallery: Tensor) -> None:
        """Look at `query` `(Q, D)`, unit norm, and at nothing else."""
        self.found = {"uniformity": uniformity(query).float(), "rank": effective_rank(query).float()}

    def compute(self) -> dict[str, Tensor]:
        """The two."""
        return self.found
