"""Whole batches out of a split, and in which order an epoch has them."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from src.datamodules.store import Split

Batch = dict[str, Tensor]


class BatchedSplit(Dataset[Batch]):
    """A split that hands out whole batches: one gather for all the indices a loader asks for at once.

    Where the images already live on the device, a batch holds only the rows to take there (`row`).

    Args:
        split: where the images are.
        rows: `(N,)`, those of them to hand out.
        on_device: whether the images live there.
        companions: `(N, V)`, for each place the V positions in `rows` whose images to hand out instead, `(VB, …)`, the
            first of every place before the second of any; None: the place's own.

    Attributes:
        order: the places of an epoch in their order, on all ranks; None: all of them, as `Order` draws them.
    """

    def __init__(self, split: Split, rows: Tensor, on_device: bool, companions: Tensor | None = None) -> None:
        self.split, self.rows, self.on_device, self.companions = split, rows, on_device, companions
        self.order: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        index = row = torch.tensor(positions)
        if self.companions is not None:
            row = self.companions[index].T.flatten()
            index = row[: len(index)]
        row = self.rows[row]
        batch = {"index": index, "label": self.split.labels[row]}
        return batch | ({"row": row} if self.on_device else {"image": self.split.images[row]})


class Order(DistributedSampler[Any]):
    """The places of an epoch in its order, from the one on where the epoch stands.

    Args:
        split: whose places.
        passed: says how many places of the rank the epoch has passed already, when a pass begins.
        options: of torch's sampler.
    """

    def __init__(self, split: BatchedSplit, passed: Callable[[], int], **options: Any) -> None:
        super().__init__(split, **options)
        self.split, self.passed = split, passed

    def __iter__(self) -> Iterator[Any]:
        order = self.split.order
        places = super().__iter__() if order is None else iter(order[self.rank :: self.num_replicas].tolist())
        return islice(places, self.passed(), None)


def whole(batch: Any) -> Any:
    """A batch comes out of the dataset whole; there is nothing to collate."""
    return batch
