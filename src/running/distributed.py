"""Exchange of embeddings between ranks: with gradient for training, without repeated images for evaluation."""

from collections.abc import Callable

import torch
import torch.distributed
import torch.distributed.nn.functional
from torch import Tensor, nn


def _alone() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1


def gather_views(embeddings: Tensor) -> Tensor:
    """`(2N, D)` of each of W ranks to `(2WN, D)` on every rank, rows i and i + WN still two views of one image.

    The gradient of every rank's loss reaches the rank that made the embedding. Where each rank takes the same loss of
    all the rows, DDP's mean over ranks is the gradient that one process with all the images would get.
    """
    if _alone():
        return embeddings
    views = (torch.cat(torch.distributed.nn.functional.all_gather(view)) for view in embeddings.chunk(2))
    return torch.cat(list(views))


def gather_rows(tensor: Tensor) -> Tensor:
    """`(B, ...)` of each of W ranks to `(WB, ...)` on every rank, in the order that `gather_views` has; no gradient."""
    return tensor.detach() if _alone() else _gather(tensor.detach())


def draw_rows(draw: Callable[[int], Tensor], rows: int) -> Tensor:
    """What `draw` makes `(rows, ...)`, random numbers for a row each, as one process would for the rows of all W ranks.

    Ranks draw alike, so each draws for all of them, `(W rows, ...)`, and takes its own, in the order of `gather_rows`.
    """
    if _alone():
        return draw(rows)
    ranks, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    return draw(ranks * rows)[rank * rows : (rank + 1) * rows]


def gather_unique(index: Tensor, *rows: Tensor) -> tuple[Tensor, ...]:
    """`index` `(N,)` and the tensors `(N, ...)` beside it, of all ranks, sorted by index, each index once.

    A distributed sampler repeats images to give every rank as many; the repeats go, so the result is what one
    process has.
    """
    tensors = (index, *rows) if _alone() else tuple(_gather(tensor) for tensor in (index, *rows))
    index = tensors[0]
    order = index.argsort(stable=True)
    ordered = index[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    order = order[first]
    return tuple(tensor[order] for tensor in tensors)


def broadcast_buffers(module: nn.Module) -> None:
    """Give every rank the buffers of rank 0, which are those that a checkpoint holds.

    Batch norm's running statistics drift apart between ranks, and an evaluation shared among them would then score a
    network that is not the one saved.
    """
    if not _alone():
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, src=0)


def of_rank_0(*things: Tensor | None) -> list[Tensor | None]:
    """What rank 0 has of each, on every rank: ranks that compute the same may round differently."""
    shared = list(things)
    if not _alone():
        torch.distributed.broadcast_object_list(shared, src=0)
    return shared


def _gather(tensor: Tensor) -> Tensor:
    parts = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)
