"""Exact nearest neighbours by cosine similarity, in bounded memory."""

import math

import torch
from torch import Tensor


def block_size(device: torch.device) -> int:
    """Similarities to hold at once: what stays in a CPU's cache (8 MiB), or keeps an accelerator busy (256 MiB)."""
    return 2**21 if device.type == "cpu" else 2**26


def nearest_neighbors(
    query: Tensor, gallery: Tensor, k: int, own: Tensor | None = None, block: int | None = None
) -> tuple[Tensor, Tensor]:
    """The `k` gallery rows most similar to each query, most similar first, of equals the lower row first.

    Args:
        query: `(Q, D)`, unit norm.
        gallery: `(G, D)`, unit norm.
        k: neighbours a query, 1 to G (to G - 1 with `own`).
        own: `(Q,)` the gallery row that is the query itself and does not count; None where there is none.
        block: similarities computed at once, `block_size` unless given; the result does not depend on it.

    Returns:
        Similarities `(Q, k)` and gallery rows `(Q, k)`.

    Raises:
        ValueError: `k` is out of its range.
    """
    most = len(gallery) - (own is not None)
    if not 1 <= k <= most:
        raise ValueError(f"k={k} neighbours asked of a gallery of {len(gallery)} images: choose 1 to {most}")
    chunk = max(1, (block or block_size(gallery.device)) // len(gallery))
    values, rows = [query.new_empty(0, k)], [torch.empty(0, k, dtype=torch.long, device=query.device)]
    for start in range(0, len(query), chunk):
        similarity = query[start : start + chunk] @ gallery.T
        if own is not None:
            similarity.scatter_(1, own[start : start + chunk].unsqueeze(1), -math.inf)
        value, row = _largest(similarity, k)
        values.append(value)
        rows.append(row)
    return torch.cat(values), torch.cat(rows)


def _largest(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`topk` with ties in the order of their columns; torch leaves open which of equals it takes."""
    values, columns = similarity.topk(min(k + 1, similarity.shape[1]), dim=1)
    if values.shape[1] > k:
        undecided = (values[:, k - 1] == values[:, k]).nonzero().squeeze(1)
        if len(undecided):  # equals on both sides of the cut
            ordered = similarity[undecided].sort(dim=1, descending=True, stable=True)
            columns[undecided] = ordered.indices[:, : k + 1]
    columns = columns[:, :k].sort(dim=1).values
    values, order = similarity.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)
