"""How similar a query's nearest images of its own class are, and those of other classes (paper, section 4.4)."""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from src.hints import Count, Text
from src.metrics.base import Score
from src.metrics.groupings import CLASSES, prefix, read_groupings
from src.vectors.neighbors import BLOCK, largest, products, queries_at_once

BINS = 100  # of the cosine similarities, -1 to 1
WEIGHTS = 2**22  # of similarities in resamples, held at once


def nearest_by_class(
    query: Tensor, query_labels: Tensor, gallery: Tensor, gallery_labels: Tensor, k: int, own: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The `k` largest cosine similarities of each query to images of its own class, and to those of other classes.

    For several groupings of the images at once, L, which need the similarities of all pairs but once.

    Args:
        query: `(Q, D)`, unit norm.
        query_labels: `(L, Q)`; -1: has no neighbours.
        gallery: `(G, D)`, unit norm.
        gallery_labels: `(L, G)`; -1: is no neighbour.
        k: neighbours of each kind; as many as there are where G is less.
        own: `(Q,)` the gallery row that is the query itself and does not count; None where there is none.

    Returns:
        `same` and `other`, both `(L, Q, min(k, G))`, in any order; -inf in place of neighbours that there are not.
    """
    k = min(k, len(gallery))
    same, other = query.new_empty(2, *query_labels.shape, k)
    for rows in torch.arange(len(query), device=query.device).split(queries_at_once(gallery, BLOCK)):
        similarity = products(gallery, query[rows]).clamp_(-1, 1)
        if own is not None:
            similarity.scatter_(0, own[rows].unsqueeze(0), -math.inf)
        for grouping, (mine, theirs) in enumerate(zip(query_labels[:, rows], gallery_labels, strict=True)):
            foreign, nobody = theirs.unsqueeze(1) != mine, theirs.unsqueeze(1) < 0
            for found, left_out in ((same, foreign), (other, ~foreign | nobody)):
                among = similarity.masked_fill(left_out, -math.inf)
                found[grouping, rows] = among.gather(0, largest(among, k).T).T
    same[query_labels < 0] = other[query_labels < 0] = -math.inf
    return same, other


def histograms(similarity: Tensor) -> Tensor:
    """How many of each query's similarities `(Q, K)` are in each of `BINS` equal bins from -1 to 1: `(Q, BINS)`."""
    bins = ((similarity.clamp(-1) + 1) * (BINS / 2)).long().clamp(max=BINS - 1)
    there = (similarity > -math.inf).to(similarity.dtype)
    return similarity.new_zeros(len(similarity), BINS).scatter_add_(1, bins, there)


def overlap(same: Tensor, other: Tensor, counts: Tensor) -> Tensor:
    """The area that the histograms of `same` and `other` `(Q, K)` share, in percent; 100: not to be told apart.

    Args:
        counts: `(R, Q)`, how often each query counts.

    Returns:
        `(R,)`, float64.
    """
    shares = [(counts @ histograms(part).to(counts.dtype)).double() for part in (same, other)]
    first, second = (share / share.sum(1, keepdim=True) for share in shares)
    return 100 * torch.minimum(first, second).sum(1)


def auc(same: Tensor, other: Tensor, counts: Tensor) -> Tensor:
    """The chance, in percent, that one of `same` exceeds one of `other` `(Q, K)`, ties half; exact, by ranks.

    Args:
        counts: `(R, Q)`, how often each query counts.

    Returns:
        `(R,)`, float64.
    """
    (mine, rows), (values, others) = map(_sorted, (same, other))
    lower, upper = (torch.searchsorted(values, mine, right=right) for right in (False, True))
    found = []
    for some in counts.split(max(1, WEIGHTS // len(values))):
        # Resamples side by side: whole rows are moved. What is counted is exact in float32, up to 2**24.
        count = some.T.contiguous()
        below = pad(count[others].cumsum(0), (0, 0, 1, 0))
        weights = count[rows]
        wins = (below[lower] + below[upper]).mul_(weights).sum(0, dtype=torch.float64) / 2
        found.append(100 * wins / (weights.sum(0, dtype=torch.float64) * below[-1]))
    return torch.cat(found)


def _sorted(similarity: Tensor) -> tuple[Tensor, Tensor]:
    """Those similarities of `(Q, K)` that there are, rising, and the queries that they are of."""
    there = similarity > -math.inf
    values, order = similarity[there].sort()
    return values, there.nonzero()[order, 0]


class Similarity(Score):
    """How separable the nearest of the same and of other classes are: `{"overlap": …, "AUC": …}`, percent (Figure 5).

    Each query's `neighbors` nearest of both kinds, in the gallery where there is one, else among the other queries. A
    query without any of either kind is left out. For each other grouping of the classes (Figure 6) the scores are
    called `<grouping>/overlap` and `<grouping>/AUC`; classes that it leaves out are neither queries nor neighbours.

    Args:
        neighbors: of each kind, for each query.
        groupings: a file in conf/groupings, or the path of another (`src.metrics.groupings`); None: only the classes.
    """

    key = "similarity"
    group = "final"

    def __init__(self, neighbors: Count = 5, groupings: Text | None = None) -> None:
        super().__init__()
        self.neighbors, self.source = neighbors, groupings
        self.groups: dict[str, Tensor] = {}  # of each class, by grouping
        self.found: dict[str, tuple[Tensor, Tensor]] = {}  # same and other, (Q, K), by grouping

    def scores(self) -> list[str]:
        return [f"{prefix(grouping)}{score}" for grouping in (CLASSES, *self.groups) for score in ("overlap", "AUC")]

    def name_classes(self, classes: list[str]) -> None:
        self.groups = read_groupings(self.source, classes) if self.source else {}

    def check(self, query_labels: Tensor, gallery_labels: Tensor | None, query: str = "the test set") -> None:
        super().check(query_labels, gallery_labels, query)
        among = query_labels if gallery_labels is None else gallery_labels
        found = zip((CLASSES, *self.groups), self._grouped(query_labels), self._grouped(among), strict=True)
        for grouping, labels, others in found:
            kept = labels[labels >= 0]
            sizes = others[others >= 0].bincount(minlength=int(labels.max()) + 1)
            same = sizes[kept] - int(gallery_labels is None)  # without the query itself
            if not ((same > 0) & (sizes[kept] < sizes.sum())).any():
                raise ValueError(
                    f"{self.setting}: no image of {query} has one of the same and one of another group to be compared "
                    f"with ({grouping}): leave the metric out, or take more images"
                )

    def _grouped(self, labels: Tensor) -> Tensor:
        """The groups of images with these labels `(N,)`, -1 where left out, by each grouping: `(L, N)`."""
        return torch.stack([labels, *(groups.to(labels.device)[labels] for groups in self.groups.values())])

    def update(
        self,
        query: Tensor,
        query_labels: Tensor,
        gallery: Tensor | None = None,
        gallery_labels: Tensor | None = None,
    ) -> None:
        """Search `query` `(Q, D)` in `gallery` `(G, D)`, or in itself; unit norm."""
        among = query if gallery is None else gallery
        own = torch.arange(len(query), device=query.device) if gallery is None else None
        mine = self._grouped(query_labels)
        theirs = mine if gallery_labels is None else self._grouped(gallery_labels)
        nearest = torch.stack(nearest_by_class(query, mine, among, theirs, self.neighbors, own))
        nearest[:, (nearest == -math.inf).all(3).any(0)] = -math.inf
        self.found = {name: (same, other) for name, same, other in zip((CLASSES, *self.groups), *nearest, strict=True)}

    def resampled(self, counts: Tensor) -> dict[str, Tensor]:
        found = {}
        for grouping, (same, other) in self.found.items():
            found[f"{prefix(grouping)}overlap"] = overlap(same, other, counts)
            found[f"{prefix(grouping)}AUC"] = auc(same, other, counts)
        return found

    def compute(self) -> dict[str, Tensor]:
        """Percent, by name."""
        each = torch.ones(1, len(self.found[CLASSES][0]), device=self.device)
        return {name: values[0].float() for name, values in self.resampled(each).items()}

    def histograms(self) -> dict[str, dict[str, list[float]]]:
        """Densities of the similarities to the `same` group and to `other` ones, by grouping, between `edges`."""
        edges = torch.linspace(-1, 1, BINS + 1, dtype=torch.float64).tolist()
        found = {}
        for grouping, parts in self.found.items():
            sums = [histograms(part).sum(0).double() for part in parts]
            same, other = ((total / total.sum() * (BINS / 2)).tolist() for total in sums)
            found[grouping] = {"edges": edges, "same": same, "other": other}
        return found

    def reset(self) -> None:
        super().reset()
        self.found = {}
