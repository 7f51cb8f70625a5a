"""Exact k-means on any device, in bounded memory."""

import math

import torch
from torch import Generator, Tensor

from src.vectors.neighbors import products, queries_at_once

BLOCK = 2**21  # distances that a CPU holds at once, 8 MiB: few enough to stay in its cache
ROUNDS = 256  # of k-means++: one centre each where there are so few, else several drawn at once


def assign(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest of `centres` `(K, D)` to each of `points` `(N, D)`: its number and squared distance, both `(N,)`."""
    half_norms = centres.square().sum(1) / 2
    count = queries_at_once(centres, BLOCK)
    # Written into place: small results kept between large blocks would leave holes that fit no next block.
    similarity, labels = points.new_empty(len(points)), points.new_empty(len(points), dtype=torch.long)
    for start in range(0, len(points), count):
        part = slice(start, start + count)
        similarity[part], labels[part] = products(centres, points[part]).sub_(half_norms.unsqueeze(1)).max(0)
    return labels, (points.square().sum(1) - 2 * similarity).clamp_(min=0)


def _reassign(points: Tensor, centres: Tensor, moved: Tensor, labels: Tensor, distances: Tensor) -> None:
    """Bring `labels` and `distances`, those before the centres marked in `moved` `(K,)` moved, up to date in place.

    Most centres soon stand still: a point of such a one need only look at those that moved.
    """
    lost = moved[labels]
    labels[lost], distances[lost] = assign(points[lost], centres)
    loyal = (~lost).nonzero().squeeze(1)
    number, distance = assign(points[loyal], centres[moved])
    closer = distance < distances[loyal]
    labels[loyal[closer]] = moved.nonzero().squeeze(1)[number[closer]]
    distances[loyal[closer]] = distance[closer]


def _seeds(points: Tensor, k: int, generator: Generator) -> Tensor:
    """k-means++: centres drawn by their squared distance to those before (Arthur and Vassilvitskii, SODA 2007)."""
    chosen = torch.randint(len(points), (1,), generator=generator, device=points.device)
    distance = (points - points[chosen]).square().sum(1)
    while len(chosen) < k:
        # Past ROUNDS centres several are drawn before distances are taken again (as in k-means||, Bahmani et al. 2012).
        weights = distance.clone()
        weights[chosen] = 0
        count = min(math.ceil(k / ROUNDS), k - len(chosen))
        if int((weights > 0).sum()) < count:  # fewer distinct points than centres: any that is left
            weights = torch.ones_like(weights)
            weights[chosen] = 0
        more = weights.multinomial(count, generator=generator)
        chosen = torch.cat([chosen, more])
        distance = torch.minimum(distance, assign(points, points[more])[1])
    return points[chosen]


def kmeans(
    points: Tensor, k: int, seed: int = 0, restarts: int = 1, iterations: int = 100, tolerance: float = 1e-4
) -> tuple[Tensor, float]:
    """Euclidean k-means: Lloyd's iterations from k-means++ seeds, the best of `restarts` by inertia.

    Args:
        points: `(N, D)`, float32 or float64, on any device.
        k: clusters, 1 to N. A cluster that empties starts again at the point farthest from its centre.
        seed: of the draws; the same seed gives the same clusters on the same machine.
        restarts: attempts.
        iterations: of each attempt, at most.
        tolerance: an attempt ends when the inertia falls by less than this share.

    Returns:
        Cluster numbers `(N,)`, and the inertia: the sum of squared distances to the centres.

    Raises:
        ValueError: k is out of range.
    """
    if not 1 <= k <= len(points):
        raise ValueError(f"{k} clusters asked of {len(points)} points: choose 1 to {len(points)}")
    generator = Generator(points.device).manual_seed(seed)
    best: tuple[Tensor, float] | None = None
    for _ in range(restarts):
        centres = _seeds(points, k, generator)
        labels, distances = assign(points, centres)
        inertia = float(distances.double().sum())
        for _ in range(iterations):
            counts = labels.bincount(minlength=k)
            before, centres = centres, torch.zeros_like(centres).index_add_(0, labels, points)
            centres /= counts.clamp(min=1).unsqueeze(1)
            empty = (counts == 0).nonzero().squeeze(1)
            centres[empty] = points[distances.topk(len(empty)).indices]
            moved = (centres != before).any(1)
            if not moved.any():
                break
            _reassign(points, centres, moved, labels, distances)
            previous, inertia = inertia, float(distances.double().sum())
            if previous - inertia <= tolerance * inertia:
                break
        if best is None or inertia < best[1]:
            best = labels, inertia
    assert best is not None
    return best
