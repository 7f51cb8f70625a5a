"""Exact nearest neighbours by cosine similarity, in bounded memory, and batches made of neighbours."""

import math
from collections.abc import Callable
from itertools import repeat

import torch
from torch import Generator, Tensor
from torch.nn import functional

BLOCK = 2**24  # similarities that a CPU holds at once, 64 MiB
ROWS, QUERIES = 2**16, 2**10  # of a search compared at once, 256 MiB of similarities
GROUP = 5  # similarities that are first compared by their largest


def queries_at_once(gallery: Tensor, block: int) -> int:
    """How many queries to compare with the gallery `(G, D)` in one go, at least 1.

    Args:
        gallery: on the device that compares.
        block: similarities for a CPU to hold; an accelerator holds as many as keep it busy (256 MiB).
    """
    count = (block if gallery.device.type == "cpu" else 2**26) // len(gallery)
    return count // 16 * 16 or max(1, count)  # whole vectors of a CPU


def products(gallery: Tensor, query: Tensor) -> Tensor:
    """Dot products `(G, Q)` of the rows of `(G, D)` and `(Q, D)`, in their own precision also under autocast.

    In float32 on a CPU as a 1x1 convolution, the gallery its pixels and the queries its filters: torch's kernels for
    that are about twice as fast as those of its matrix product where the CPU is not Intel's.
    """
    with torch.autocast(gallery.device.type, enabled=False):
        if gallery.device.type != "cpu" or gallery.dtype != torch.float32 or not len(gallery) or not len(query):
            return gallery @ query.T
        pixels = gallery.contiguous().view(1, 1, *gallery.shape).permute(0, 3, 1, 2)
        return functional.conv2d(pixels, query.reshape(*query.shape, 1, 1))[0, :, 0].T


def nearest_neighbors(
    query: Tensor, gallery: Tensor, k: int, own: Tensor | None = None, block: int = BLOCK
) -> tuple[Tensor, Tensor]:
    """The `k` gallery rows most similar to each query, most similar first, of equals the lower row first.

    Args:
        query: `(Q, D)`; unit norm for cosine similarity, else it is their product.
        gallery: `(G, D)`, likewise.
        k: neighbours a query, 1 to G (to G - 1 with `own`).
        own: `(Q,)` the gallery row that is the query itself and does not count; None where there is none.
        block: similarities computed at once, see `queries_at_once`; the result does not depend on it.

    Returns:
        Similarities `(Q, k)` and gallery rows `(Q, k)`.

    Raises:
        ValueError: `k` is out of its range.
    """
    most = len(gallery) - (own is not None)
    if not 1 <= k <= most:
        raise ValueError(f"k={k} neighbours asked of a gallery of {len(gallery)} images: choose 1 to {most}")
    chunk = queries_at_once(gallery, block)
    # Written into place: small results kept between large blocks would leave holes that fit no next block.
    values, rows = query.new_empty(len(query), k), query.new_empty(len(query), k, dtype=torch.long)
    for start in range(0, len(query), chunk):
        part = slice(start, start + chunk)
        similarity = products(gallery, query[part])
        if own is not None:
            similarity.scatter_(0, own[part].unsqueeze(0), -math.inf)
        values[part], rows[part] = _in_order(similarity, k)
    return values, rows


def neighbor_batches(features: Tensor, batch: int, neighbors: int, generator: Generator) -> Tensor:
    """Batches of random images, each followed by its nearest by Euclidean distance.

    Args:
        features: `(N, F)`, of any norm.
        batch: images of a batch, B, at most N; where `neighbors` does not divide it, the last row is shorter.
        neighbors: images in a row, from the random one itself on; at least 2.
        generator: draws the random ones, none twice in a batch.

    Returns:
        Images `(SB,)`, S = N // B, a batch after the other. One that is near to several is in a batch several times.

    Raises:
        ValueError: `neighbors` is out of its range.
    """
    images, rows = len(features), math.ceil(batch / neighbors)
    drawn = [torch.randperm(images, generator=generator)[:rows] for _ in range(images // batch)]
    own = torch.cat(drawn).to(features.device)
    # The least |x - y|^2 has the largest x.y - |y|^2 / 2, a product of (x, 1) and (y, -|y|^2 / 2).
    centred = features - features.mean(0)
    gallery = torch.cat([centred, centred.square().sum(1, keepdim=True) / -2], 1)
    query = torch.cat([centred[own], centred.new_ones(len(own), 1)], 1)
    _, nearest = nearest_neighbors(query, gallery, neighbors - 1, own)
    return torch.cat([own.unsqueeze(1), nearest], 1).view(-1, rows * neighbors)[:, :batch].flatten()


def search(
    query: Tensor, gallery: Tensor, k: int, own: Tensor | None = None, rows: int = ROWS
) -> tuple[Tensor, Tensor]:
    """`nearest_neighbors` in a gallery that may be far larger than memory, such as one mapped from disk.

    It is read once for each `QUERIES` queries, `rows` rows at a time; the result depends on neither.
    """
    most = len(gallery) - (own is not None)
    if not 1 <= k <= most:
        raise ValueError(f"k={k} neighbours asked of a gallery of {len(gallery)} images: choose 1 to {most}")
    if len(query) > QUERIES:
        return in_parts(lambda some, mine: search(some, gallery, k, mine, rows), query, own, QUERIES)
    best, best_rows = query.new_empty(len(query), 0), query.new_empty(len(query), 0, dtype=torch.long)
    for start in range(0, len(gallery), rows):
        block = gallery[start : start + rows]
        similarity = products(block, query)
        if own is not None:
            here = ((own >= start) & (own < start + len(block))).nonzero().squeeze(1)
            similarity[own[here] - start, here] = -math.inf
        values, found = _in_order(similarity, min(k, len(block)))
        # Of equals the lower row comes first: it also stands in an earlier block.
        values, order = torch.cat([best, values], 1).sort(dim=1, descending=True, stable=True)
        best, best_rows = values[:, :k], torch.cat([best_rows, found + start], 1).gather(1, order[:, :k])
    return best, best_rows


def in_parts(
    find: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]], query: Tensor, own: Tensor | None, at_once: int
) -> tuple[Tensor, Tensor]:
    """What `find` finds for the queries `(Q, D)` and their own rows `(Q,)`, if any, so many `at_once`."""
    owns = repeat(None) if own is None else own.split(at_once)
    values, rows = zip(*map(find, query.split(at_once), owns), strict=True)
    return torch.cat(values), torch.cat(rows)


def _in_order(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest of each column of `(G, Q)` and their rows, `(Q, k)`, of equals the lower row first."""
    rows = largest(similarity, min(k + 1, len(similarity)))
    values, order = similarity.gather(0, rows.T).T.sort(dim=1, descending=True)
    rows = rows.gather(1, order)
    # Open still: which of equals comes first, and which of them is cut off.
    same = values[:, 1:] == values[:, :-1]
    tied = same.any(1).nonzero().squeeze(1)
    if len(tied):
        cut = tied[same[tied, k - 1]] if values.shape[1] > k else tied[:0]
        rows[cut] = similarity[:, cut].sort(dim=0, descending=True, stable=True).indices[: rows.shape[1]].T
        some = rows[tied, :k].sort(dim=1).values
        order = similarity.T[tied.unsqueeze(1), some].sort(dim=1, descending=True, stable=True).indices
        rows[tied, :k] = some.gather(1, order)
    return values[:, :k], rows[:, :k]


def largest(similarity: Tensor, k: int) -> Tensor:
    """Rows `(Q, k)`, in any order, of the `k` largest of each column of `(G, Q)`.

    They lie in the k groups of rows with the largest maxima, so most of the rows are looked at only once.
    """
    groups = len(similarity) // GROUP
    if groups < 2 * k:
        return similarity.T.topk(k, sorted=False).indices
    best = largest(similarity[: groups * GROUP].unflatten(0, (GROUP, groups)).amax(0), k)
    number = torch.arange(len(similarity), device=best.device)
    members = (best.unsqueeze(1) + number[: groups * GROUP : groups].unsqueeze(1)).flatten(1)
    rows = torch.cat([members, number[groups * GROUP :].expand(len(best), -1)], 1)
    return rows.gather(1, largest(similarity.gather(0, rows.T), k))
