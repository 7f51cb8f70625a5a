"""Distances between all the rows of a batch, to learn from."""

import torch
from torch import Tensor


def distances(rows: Tensor) -> Tensor:
    """Euclidean distances between rows `(R, D)`, of any norm: `(R, R)`; where they are 0 so is the gradient."""
    centred = rows - rows.detach().mean(0)  # as far from each other, and with more digits where all are far from 0
    norms = centred.square().sum(1)
    squared = (norms + norms.unsqueeze(1) - 2 * centred @ centred.T).clamp(min=0)
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    apart = (squared > 1e-12) & ~itself
    return torch.where(apart, squared.where(apart, 1).sqrt(), 0)
