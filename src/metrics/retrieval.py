"""Retrieval among the test images: Recall@K and mAP@R (paper, section 4.2; Musgrave et al., ECCV 2020)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from src.hints import Counts
from src.metrics.base import Score
from src.vectors.neighbors import nearest_neighbors

CANDIDATES = 2**22  # neighbours looked at together


def relevant_counts(labels: Tensor) -> Tensor:
    """How many other images share each image's label: `(Q,)`."""
    _, inverse, counts = labels.unique(return_inverse=True, return_counts=True)
    return counts[inverse] - 1


def retrieval_hits(embeddings: Tensor, labels: Tensor, ks: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Whether each image finds one of its label, and how well it ranks them; the image itself does not count.

    Args:
        embeddings: `(Q, D)`, unit norm: every image is a query among all the others.
        labels: `(Q,)`.
        ks: the K of Recall@K, each 1 to Q - 1.

    Returns:
        Hits, bool `(Q', len(ks))`: one of the K nearest has the query's label; and average precision at R, float64
        `(Q',)`, R the number of images that share the label. Of the queries, those alone in their class are left out,
        since nothing could be found. Equal similarities rank in the order of the images.

    Raises:
        ValueError: a label is negative (an unlabelled image), or a K is out of range.
    """
    if len(labels) and labels.min() < 0:
        raise ValueError("images without a label (-1) cannot be scored by retrieval")
    relevant = relevant_counts(labels)
    queries = relevant.nonzero().squeeze(1)
    hits = [torch.empty(0, len(ks), dtype=torch.bool, device=labels.device)]
    precision = [torch.empty(0, dtype=torch.float64, device=labels.device)]
    k = max(*ks, int(relevant.max()) if len(relevant) else 0)
    for own in queries.split(max(1, CANDIDATES // k)):
        _, rows = nearest_neighbors(embeddings[own], embeddings, k, own)
        correct = labels[rows] == labels[own].unsqueeze(1)
        hits.append(torch.stack([correct[:, :top].any(1) for top in ks], 1))
        rank = torch.arange(1, k + 1, device=labels.device)
        within = correct & (rank <= relevant[own].unsqueeze(1))
        precision.append((within.cumsum(1) / rank.double() * within).sum(1) / relevant[own])
    return torch.cat(hits), torch.cat(precision)


class Retrieval(Score):
    """Recall@K and mAP@R of the query set in itself, in percent: `{"R@1": …, "mAP@R": …}`."""

    key = "retrieval"
    hits: Tensor
    precision: Tensor
    total: Tensor

    def __init__(self, k: Counts = (1, 2, 4, 8)) -> None:
        super().__init__()
        self.k = tuple(k)
        self.add_state("hits", torch.zeros(len(self.k), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("precision", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def scores(self) -> list[str]:
        return [*(f"R@{k}" for k in self.k), "mAP@R"]

    def check(self, query_labels: Tensor, gallery_labels: Tensor | None, query: str = "the test set") -> None:
        super().check(query_labels, gallery_labels, query)
        most = len(query_labels) - 1
        if max(self.k) > most:
            raise ValueError(
                f"protocol.metrics.retrieval.k={list(self.k)}: {query} has {len(query_labels)} images, "
                f"choose numbers between 1 and {most}"
            )
        if not relevant_counts(query_labels).any():
            raise ValueError(f"protocol.metrics.retrieval: no class of {query} has two images, nothing can be found")

    def update(self, query: Tensor, query_labels: Tensor, *gallery: Tensor) -> None:
        """Retrieve among `query` `(Q, D)`, unit norm; a gallery, which other metrics may have, is not looked at."""
        hits, precision = retrieval_hits(query, query_labels, self.k)
        self.hits = self.hits + hits.sum(0)
        self.precision = self.precision + precision.sum()
        self.total = self.total + len(hits)
        known = relevant_counts(query_labels) > 0
        shares = precision.new_full((len(self.scores()), len(query)), torch.nan)
        shares[:, known] = torch.cat([hits.T, precision.unsqueeze(0)])
        self.shares = dict(zip(self.scores(), shares, strict=True))

    def compute(self) -> dict[str, Tensor]:
        """Percent of the queries that have something to find, by name."""
        recall = {f"R@{k}": 100 * hits / self.total for k, hits in zip(self.k, self.hits, strict=True)}
        return recall | {"mAP@R": (100 * self.precision / self.total).float()}
