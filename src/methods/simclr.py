"""NT-Xent, the normalised temperature-scaled cross entropy of SimCLR (Chen et al., ICML 2020)."""

import torch
from torch import Tensor
from torch.nn import functional

from src.hints import Positive
from src.methods.base import Method
from src.running.distributed import gather_views


def nt_xent_loss(embeddings: Tensor, temperature: float) -> Tensor:
    """The mean over rows i of -log exp(z_i.z_p / t) / sum_{k != i} exp(z_i.z_k / t), p the other view of i.

    Args:
        embeddings: `(2N, D)`, unit norm; rows i and i + N are two views of one image. Gradient flows through both.
        temperature: t, positive.
    """
    rows = len(embeddings)
    if rows < 4 or rows % 2:
        raise ValueError(f"NT-Xent needs two views of at least two images, got embeddings {tuple(embeddings.shape)}")
    itself = torch.eye(rows, dtype=torch.bool, device=embeddings.device)
    similarity = (embeddings @ embeddings.T / temperature).masked_fill(itself, -torch.inf)
    return functional.cross_entropy(similarity, torch.arange(rows, device=embeddings.device).roll(rows // 2))


class SimCLR(Method):
    """The loss over the images of all ranks. Its projection is the embedding itself, scored as every method's is."""

    def __init__(self, temperature: Positive) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, embeddings: Tensor, index: Tensor) -> dict[str, Tensor]:
        return {"loss": nt_xent_loss(gather_views(embeddings), self.temperature)}
