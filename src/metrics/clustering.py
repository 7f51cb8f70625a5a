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
    total = len(first)
    _, first, first_counts = first.unique(return_inverse=True, return_counts=True)
    _, second, second_counts = second.unique(return_inverse=True, return_counts=True)
    if len(first_counts) == len(second_counts) == 1:
        return torch.ones((), dtype=torch.float64, device=first.device)
    pairs, joint = (first * len(second_counts) + second).unique(return_counts=True)
    p_first, p_second, p_joint = (counts.double() / total for counts in (first_counts, second_counts, joint))
    independent = p_first[pairs // len(second_counts)] * p_second[pairs % len(second_counts)]
    information = (p_joint * (p_joint / independent).log()).sum().clamp(min=0)
    h_first, h_second = (-(p * p.log()).sum() for p in (p_first, p_second))
    mean = (h_first + h_second) / 2 if average == "arithmetic" else (h_first * h_second).sqrt()
    return information / mean.clamp(min=1e-300)


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

    def update(self, query: Tensor, query_labels: Tensor) -> None:
        """Cluster `query` `(Q, D)`, unit norm."""
        clusters, _ = kmeans(query, len(query_labels.unique()), self.seed, self.restarts)
        self.score = 100 * normalized_mutual_information(clusters, query_labels, self.average)

    def compute(self) -> dict[str, Tensor]:
        """Percent."""
        return {"NMI": self.score.float()}
