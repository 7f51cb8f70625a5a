"""How far the scores would move with other queries: the bootstrap (Efron, Annals of Statistics 1979)."""

import torch
from torch import Generator, Tensor

from src.metrics.base import Score

BLOCK = 2**22  # counts drawn at once


def intervals(score: Score, queries: int, seed: int, resamples: int = 1000) -> dict[str, tuple[float, float]]:
    """95% percentile intervals, over resamples of the queries, of the scores of the last `update`.

    It is the uncertainty of this network's score that a finite test set leaves; that of training another network is the
    spread over seeds.

    Args:
        score: a metric that was updated, and not reset.
        queries: how many it was given, Q.
        seed: of the draws, Q of the queries a resample, which do not depend on the metric.
        resamples: how many.

    Returns:
        `(low, high)` by the names of `compute`; nothing for a metric that has no intervals.
    """
    generator = Generator().manual_seed(seed)
    found: dict[str, list[Tensor]] = {}
    for block in torch.arange(resamples).split(max(1, BLOCK // queries)):
        drawn = torch.randint(queries, (len(block), queries), generator=generator)
        counts = torch.zeros(drawn.shape).scatter_add_(1, drawn, torch.ones(drawn.shape)).to(score.device)
        for name, values in score.resampled(counts).items():
            found.setdefault(name, []).append(values.double().cpu())
        if not found:
            break  # nor would the other draws find anything
    bounds = torch.tensor([0.025, 0.975], dtype=torch.float64)
    ends = {name: torch.cat(parts).nanquantile(bounds).tolist() for name, parts in found.items()}
    return {name: (low, high) for name, (low, high) in ends.items()}
