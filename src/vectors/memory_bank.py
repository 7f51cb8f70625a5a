"""A memory of every training image's embedding, as it was when the image was last seen (Wu et al., CVPR 2018)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from src.running.distributed import gather_rows


class MemoryBank(nn.Module):
    """Unit-norm embeddings `memory` `(N, D)`, kept in checkpoints; random directions until an image is `seen` `(N,)`.

    Takes 4ND + N bytes: 513 MB for a million images of 128 dimensions.

    Args:
        images: N.
        dim: D.
        momentum: share of the old entry in its update, 0 to below 1.
    """

    memory: Tensor
    seen: Tensor

    def __init__(self, images: int, dim: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("memory", functional.normalize(torch.randn(images, dim), dim=1))
        self.register_buffer("seen", torch.zeros(images, dtype=torch.bool))

    def update(self, index: Tensor, embeddings: Tensor) -> None:
        """Move the entries `index` `(B,)` towards `embeddings` `(B, D)`, in place; of all ranks, on every rank.

        Before the backward pass of a loss that read the memory is over, it must not be called.
        """
        index, embeddings = gather_rows(index), gather_rows(embeddings)
        mixed = self.momentum * self.memory[index] + (1 - self.momentum) * embeddings
        self.memory[index] = functional.normalize(mixed, dim=1)
        self.seen[index] = True
