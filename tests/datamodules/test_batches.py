"""Which places a rank's batches have, where a method says so."""

from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.utils.data import BatchSampler

from src.datamodules.batches import BatchedSplit, Order
from src.datamodules.store import read_store
from src.vectors.neighbors import neighbor_batches
from tests.conftest import small_store


def steps(split: BatchedSplit, rank: int, ranks: int, batch: int, passed: int = 0) -> list[list[int]]:
    sampler = Order(split, lambda: passed, num_replicas=ranks, rank=rank, shuffle=True, seed=0, drop_last=True)
    return list(BatchSampler(sampler, batch, drop_last=True))


def split_of(folder: Path, order: Tensor | None) -> BatchedSplit:
    small_store(folder / "store")
    split = BatchedSplit(read_store(folder / "store").splits["train"], torch.arange(20), on_device=False)
    split.order = order
    return split


def test_the_ranks_together_see_what_one_process_sees(tmp_path: Path) -> None:
    features = torch.randn(20, 4, generator=Generator().manual_seed(0))
    order = neighbor_batches(features, 6, 3, Generator().manual_seed(1))
    split = split_of(tmp_path, order)
    alone = steps(split, 0, 1, 6)
    assert alone == order.view(3, 6).tolist()
    both = [one + other for one, other in zip(steps(split, 0, 2, 3), steps(split, 1, 2, 3), strict=True)]
    assert [sorted(step) for step in both] == [sorted(step) for step in alone]
    assert steps(split, 1, 2, 3, passed=3) == steps(split, 1, 2, 3)[1:], "a run that goes on within the epoch"
    (batch,) = [split.__getitems__(alone[0])]
    assert batch["index"].tolist() == alone[0]
    assert torch.equal(batch["image"], split.split.images[order[:6]])


def test_without_an_order_every_place_comes_once(tmp_path: Path) -> None:
    assert sorted(place for step in steps(split_of(tmp_path, None), 0, 1, 5) for place in step) == list(range(20))
