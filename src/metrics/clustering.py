"""Clustering quality: k-means of the embeddings, and normalised mutual information with the classes."""

from typing import Literal

import torch
from torch import Tensor

from src.hints import Restarts, Seed
from src.metrics.base import Score
from src.vectors.kmeans import kmeans

Average = Literal["arithmetic", "geometric"]


def normalized_mutual_information(first: Tensor, second: Tensor, average: str = "arithmetic") -> Tensor:
    """Mutual information of two labellings `(N,)` over the `average` of their entropies, 0 to 1, float64.

    The arithmetic mean is scikit-learn's since 0.22, the geometric one was it before.

    1 where both put everything into one class. Memory grows with N, not with the number of classes.
    """
    return information_terms(first, second, average).mean().clamp(0, 1)  # rounding may leave it


def information_terms(first: Tensor, second: Tensor, average: str = "arithmetic") -> Tensor:
    """What each image adds to `normalized_mutual_information`, `(N,)`, float64: its mean is that.

    The difference from the mean is the derivative by the image's weight, times N. So the mean of a resample is what the
    infinitesimal jackknife (Efron, 1982) makes of it. The resample's own NMI would be too high: images drawn twice
    inform about each other, which at 100 classes of 60 images is 6 percent.
    """
    classes, numbers = second.unique(return_inverse=True)
    both = first * len(classes) + numbers
    in_first, in_second, in_both = (_surprise(labels) for labels in (first, second, both))
    information = in_first + in_second - in_both
    if average == "arithmetic":
        mean = (in_first + in_second) / 2
    else:
        h_first, h_second = in_first.mean(), in_second.mean()
        mean = (in_first * h_second + in_second * h_first) / (2 * (h_first * h_second).sqrt())
    if not mean.mean() > 0:  # one of the two, or both, is a single class
        return torch.full_like(mean, float(torch.equal(in_first, in_second)))
    share = information.mean() / mean.mean()
    return share + (information - share * mean) / mean.mean()


def _surprise(labels: Tensor) -> Tensor:
    """-log of the share that has the same label, of each `(N,)`, float64; their mean is the entropy."""
    _, inverse, counts = labels.unique(return_inverse=True, return_counts=True)
    return -(counts.double() / len(labels)).log()[inverse]


class Clustering(Score):
    """NMI, in percent, of the query's classes with as many k-means clusters of its embeddings: `{"NMI": …}`.

    Args:
        restarts: of k-means, of which the best is taken.
        average: of the two entropies, `arithmetic` or `geometric`.
        seed: of k-means.
    """

    key = "clustering"
    score: Tensor

    def __init__(self, restarts: Restarts, average: Average = "arithmetic", seed: Seed = 0) -> None:
        super().__init__()
        self.restarts, self.average, self.seed = restarts, average, seed
        self.add_state("score", torch.zeros((), dtype=torch.float64), dist_reduce_fx="mean")

    def scores(self) -> list[str]:
        return ["NMI"]

    def update(self, query: Tensor, query_labels: Tensor, *gallery: Tensor) -> None:
        """Cluster `query` `(Q, D)`, unit norm; a gallery, which other metrics may have, is not looked at."""
        clusters, _ = kmeans(query, len(query_labels.unique()), self.seed, self.restarts)
        self.shares = {"NMI": information_terms(clusters, query_labels, self.average)}
        self.score = 100 * self.shares["NMI"].mean()

    def compute(self) -> dict[str, Tensor]:
        """Percent."""
        return {"NMI": self.score.float()}
