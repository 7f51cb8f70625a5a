"""The weighted kNN classifier of the seen-category protocol (paper, section 4.1, after Wu et al., CVPR 2018)."""

import torch
from torch import Tensor

from src.hints import Count, Counts, Positive
from src.metrics.base import Score
from src.vectors.neighbors import nearest_neighbors


def knn_votes(query: Tensor, gallery: Tensor, gallery_labels: Tensor, k: int = 200, temperature: float = 0.1) -> Tensor:
    """Votes `(Q, C)` of the `k` nearest gallery images for their own class, each weighing exp(s / temperature).

    Args:
        query: `(Q, D)`, unit norm.
        gallery: `(G, D)`, unit norm.
        gallery_labels: `(G,)`, classes 0 to C - 1.
        k: neighbours that vote, 1 to G.
        temperature: the smaller, the more the nearest outweigh the rest.

    Returns:
        float64 `(Q, C)`, scaled per query so that the nearest neighbour weighs 1; 0 for a class without a vote.

    Raises:
        ValueError: k is out of range, or a gallery label is negative (an unlabelled image).
    """
    if len(gallery_labels) and gallery_labels.min() < 0:
        raise ValueError("the gallery holds images without a label (-1): they cannot vote")
    similarity, rows = nearest_neighbors(query, gallery, k)
    weights = ((similarity - similarity[:, :1]).double() / temperature).exp()
    votes = weights.new_zeros(len(query), int(gallery_labels.max()) + 1)
    return votes.scatter_add_(1, gallery_labels[rows], weights)


def top_hits(votes: Tensor, labels: Tensor, top: int) -> Tensor:
    """Whether the true class has a vote and is among the `top` classes: bool `(Q,)`.

    Of classes with equal votes the lower-numbered one comes first, so a tie is never counted for both.
    """
    known = labels < votes.shape[1]
    own = votes.gather(1, labels.where(known, 0).unsqueeze(1))
    classes = torch.arange(votes.shape[1], device=votes.device)
    before = (votes > own) | ((votes == own) & (classes < labels.unsqueeze(1)))
    return known & (own.squeeze(1) > 0) & (before.sum(1) < top)


class WeightedKNN(Score):
    """Top-n accuracy of the weighted kNN classifier, in percent: `{"top1": …, "top5": …}`."""

    key = "knn"
    hits: Tensor
    total: Tensor

    def __init__(self, k: Count = 200, temperature: Positive = 0.1, top: Counts = (1, 5)) -> None:
        super().__init__()
        self.k, self.temperature, self.top = k, temperature, tuple(top)
        self.add_state("hits", torch.zeros(len(self.top), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def scores(self) -> list[str]:
        return [f"top{top}" for top in self.top]

    def check(self, query_labels: Tensor, gallery_labels: Tensor | None, query: str = "the test set") -> None:
        if gallery_labels is None:
            raise ValueError("protocol.metrics.knn searches a gallery: set protocol.gallery=true")
        super().check(query_labels, gallery_labels, query)
        gallery_size = len(gallery_labels)
        if not gallery_size:
            raise ValueError("protocol.metrics.knn: no training image has a label, so none can vote")
        if self.k > gallery_size:
            raise ValueError(
                f"protocol.metrics.knn.k={self.k}, but the gallery has {gallery_size} images: "
                f"set protocol.metrics.knn.k between 1 and {gallery_size}"
            )

    def update(self, query: Tensor, query_labels: Tensor, gallery: Tensor, gallery_labels: Tensor) -> None:
        """Classify `query` `(Q, D)` by `gallery` `(G, D)`, both unit norm, and count the hits."""
        votes = knn_votes(query, gallery, gallery_labels, self.k, self.temperature)
        hits = [top_hits(votes, query_labels, top) for top in self.top]
        self.shares = {name: hit.float() for name, hit in zip(self.scores(), hits, strict=True)}
        self.hits = self.hits + torch.stack(hits).sum(1)
        self.total = self.total + len(query)

    def compute(self) -> dict[str, Tensor]:
        """Percent of the queries, by name."""
        return {f"top{top}": 100 * hits / self.total for top, hits in zip(self.top, self.hits, strict=True)}
