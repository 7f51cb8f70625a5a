"""Exact nearest neighbours by cosine similarity, in bounded memory."""

import torch
from torch import Tensor

BLOCK = 2**24  # similarities held at once: 64 MiB of float32


def nearest_neighbors(query: Tensor, gallery: Tensor, k: int, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """The `k` gallery rows most similar to each query, most similar first.

    Args:
        query: `(Q, D)`, unit norm.
        gallery: `(G, D)`, unit norm.
        k: neighbours a query, 1 to G.
        block: similarities computed at once; memory grows with it, the result does not change.

    Returns:
        Similarities `(Q, k)` and gallery rows `(Q, k)`.

    Raises:
        ValueError: `k` is not between 1 and G.
    """
    if not 1 <= k <= len(gallery):
        raise ValueError(f"k={k} neighbours asked of a gallery of {len(gallery)} images: choose 1 to {len(gallery)}")
    chunk = max(1, block // len(gallery))
    found = [(part @ gallery.T).topk(k, dim=1) for part in query.split(chunk)]
    if not found:
        return query.new_empty(0, k), torch.empty(0, k, dtype=torch.long, device=query.device)
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])
