"""Triplets inside a batch: an anchor, its other view, and a negative (Hermans et al., 2017; Ye et al., Table 1)."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from src.hints import Positive
from src.methods.base import Method
from src.running.distributed import gather_views
from src.vectors.distances import distances


def choose_negatives(distance: Tensor, negatives: str) -> Tensor:
    """For each row of `distance` `(2N, 2N)` the row of another image: any (`random`) or the nearest (`hard`)."""
    rows = len(distance)
    images = rows // 2
    if negatives == "hard":
        image = torch.arange(rows, device=distance.device) % images
        return distance.masked_fill(image.unsqueeze(0) == image.unsqueeze(1), torch.inf).argmin(1)
    own = torch.arange(rows, device=distance.device)
    shift = torch.randint(1, images, (rows,), device=distance.device)
    view = torch.randint(2, (rows,), device=distance.device)
    return (own + shift) % images + view * images


def triplet_loss(embeddings: Tensor, margin: float, negatives: str) -> Tensor:
    """The mean over rows of max(0, margin + |a - p| - |a - n|), p the row's other view.

    Args:
        embeddings: `(2N, D)`, unit norm; rows i and i + N are two views of one image.
        margin: positive.
        negatives: n is a `random` row of another image, or the nearest, `hard`.

    Raises:
        ValueError: fewer than two images.
    """
    rows = len(embeddings)
    if rows < 4 or rows % 2:
        raise ValueError(f"triplets need two views of at least two images, got embeddings {tuple(embeddings.shape)}")
    distance = distances(embeddings)
    own = torch.arange(rows, device=distance.device)
    positive = distance[own, own.roll(rows // 2)]
    negative = distance[own, choose_negatives(distance, negatives)]
    return functional.relu(margin + positive - negative).mean()


class Triplet(Method):
    """The loss over the images of all ranks."""

    def __init__(self, margin: Positive, negatives: Literal["random", "hard"]) -> None:
        super().__init__()
        self.margin, self.negatives = margin, negatives

    def forward(self, embeddings: Tensor, index: Tensor) -> dict[str, Tensor]:
        return {"loss": triplet_loss(gather_views(embeddings), self.margin, self.negatives)}
