from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional

from src.augmentations.random import Augmentation, RandomHorizontalFlip, RandomResizedCrop
from src.datamodules.base import StoreDataModule
from src.datamodules.batches import BatchedSplit
from src.datamodules.digits import Digits
from src.datamodules.store import read_store
from tests.conftest import datamodule_options, small_store


def make(cache: Path, kind: type[StoreDataModule] = StoreDataModule, **changes: Any) -> StoreDataModule:
    views = Augmentation(8, crop=RandomResizedCrop(8, (0.2, 1), (0.75, 1.33)), flip=RandomHorizontalFlip(0.5))
    options = {"mean": [10.0, 20.0, 30.0], "std": [2.0, 4.0, 8.0], "augmentation": views}
    return kind(**datamodule_options(cache, **options | changes))


def ready(cache: Path, **changes: Any) -> StoreDataModule:
    datamodule = make(cache, **changes)
    datamodule.setup()
    return datamodule


class Recorder(pl.LightningModule):
    """Keeps every training batch it is given, and learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: list[tuple[int, list[int], Tensor]] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.batches.append((self.current_epoch, batch["index"].tolist(), batch["views"].clone()))
        return self.weight * 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    datamodule: StoreDataModule, epochs: int, path: Path, resume: Path | None = None, *callbacks: pl.Callback
) -> Recorder:
    datamodule.setup()
    module = Recorder()
    trainer = pl.Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, datamodule, ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(path)
    return module


def test_views_are_paired_draws_of_the_same_image(tmp_path: Path) -> None:
    small_store(tmp_path / "store")
    datamodule = make(tmp_path, augmentation=Augmentation(8, flip=RandomHorizontalFlip(0.5)))
    module = fit(datamodule, 1, tmp_path / "a.ckpt")
    images = read_store(tmp_path / "store").splits["train"].images
    mean, std = torch.tensor([10.0, 20.0, 30.0]), torch.tensor([2.0, 4.0, 8.0])
    assert [len(index) for _, index, _ in module.batches] == [4] * 5
    flips = 0
    for _, index, views in module.batches:
        assert views.shape == (8, 3, 8, 8)
        for row, view in enumerate(views):
            expected = ((images[index[row % 4]].float() - mean) / std).permute(2, 0, 1)
            same, flipped = torch.allclose(view, expected), torch.allclose(view, expected.flip(-1))
            assert same or flipped
            flips += flipped
    assert 5 < flips < 35, "each view has its own coin"


def test_every_epoch_has_its_own_order_and_draws_and_a_seed_repeats_them(tmp_path: Path) -> None:
    small_store(tmp_path / "store")
    first, again = (fit(make(tmp_path), 2, tmp_path / f"{name}.ckpt") for name in "ab")
    other = fit(make(tmp_path, seed=1), 2, tmp_path / "c.ckpt")
    for (_, index, views), (_, index_again, views_again) in zip(first.batches, again.batches, strict=True):
        assert index == index_again
        assert torch.equal(views, views_again)
    epochs = [[index for epoch, index, _ in first.batches if epoch == e] for e in (0, 1)]
    assert epochs[0] != epochs[1]
    assert [index for _, index, _ in other.batches] != [index for _, index, _ in first.batches]
    assert len({views.sum().item() for _, _, views in first.batches}) == 10


def test_images_that_live_on_the_device_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch then says which to take there."""
    small_store(tmp_path / "store")

    def run(name: str) -> tuple[list[Any], list[torch.Tensor]]:
        datamodule = make(tmp_path, augmentation=Augmentation(8, flip=RandomHorizontalFlip(0.5)))
        batches = fit(datamodule, 1, tmp_path / f"{name}.ckpt").batches
        loaders = zip(datamodule.val_dataloader(), ("test", "train"), strict=True)
        clean = [datamodule.clean(batch, split)["image"] for loader, split in loaders for batch in loader]
        return batches, clean

    batches, clean = run("a")
    held: list[str] = []

    def hold(self: StoreDataModule, split: str) -> bool:
        assert self.store is not None
        held.append(split)
        self._on_device[split] = self.store.splits[split].images
        return True

    monkeypatch.setattr(StoreDataModule, "_hold_on_device", hold)
    again, clean_again = run("b")
    assert {"train", "test"} <= {*held}
    for (_, index, views), (_, index_again, views_again) in zip(batches, again, strict=True):
        assert index == index_again
        assert torch.equal(views, views_again)
    assert all(torch.equal(one, other) for one, other in zip(clean, clean_again, strict=True))


def test_views_grow_at_the_milestones(tmp_path: Path) -> None:
    small_store(tmp_path / "store")
    whole = fit(make(tmp_path), 3, tmp_path / "whole.ckpt")
    grown = fit(make(tmp_path, view_milestones=[1, 2], view_sizes=[4, 6]), 3, tmp_path / "grown.ckpt")
    for (epoch, index, views), (_, same, small) in zip(whole.batches, grown.batches, strict=True):
        assert index == same
        size = (4, 6, 8)[epoch]
        assert small.shape[2:] == (size, size)
        resized = functional.interpolate(views, (size, size), mode="bilinear", antialias=True)
        torch.testing.assert_close(small, resized if epoch < 2 else views, rtol=1e-5, atol=1e-5)
    assert make(tmp_path, view_milestones=[1], view_sizes=[4]).finish(torch.zeros(1, 3, 8, 8)).shape[-1] == 4
    smaller = make(tmp_path, view_milestones=[2], view_sizes=[4, 6])
    last = fit(smaller, 3, tmp_path / "smaller.ckpt").batches
    assert [views.shape[-1] for _, _, views in last] == [(4, 4, 6)[epoch] for epoch, _, _ in last]


def test_a_resumed_run_sees_what_the_whole_run_saw(tmp_path: Path) -> None:
    small_store(tmp_path / "store")
    whole = fit(make(tmp_path), 3, tmp_path / "whole.ckpt")
    fit(make(tmp_path), 1, tmp_path / "part.ckpt")
    rest = fit(make(tmp_path), 3, tmp_path / "rest.ckpt", resume=tmp_path / "part.ckpt")
    assert [epoch for epoch, _, _ in rest.batches] == [1] * 5 + [2] * 5
    for (_, index, views), (_, index_rest, views_rest) in zip(whole.batches[5:], rest.batches, strict=True):
        assert index == index_rest
        assert torch.equal(views, views_rest)


class Keep(pl.Callback):
    """Writes a checkpoint within an epoch, after the step `step`, counted from 1."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def test_a_run_that_goes_on_within_an_epoch_reads_the_rest_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_store(tmp_path / "store")
    part = tmp_path / "part.ckpt"
    whole = fit(make(tmp_path), 3, tmp_path / "whole.ckpt", None, Keep(7, part))
    read: list[list[int]] = []
    getitems = BatchedSplit.__getitems__

    def reading(self: BatchedSplit, positions: list[int]) -> dict[str, Tensor]:
        read.append(list(positions))
        return getitems(self, positions)

    monkeypatch.setattr(BatchedSplit, "__getitems__", reading)
    rest = fit(make(tmp_path), 3, tmp_path / "rest.ckpt", resume=part)
    assert [epoch for epoch, _, _ in rest.batches] == [1] * 3 + [2] * 5
    assert read == [index for _, index, _ in whole.batches[7:]], "no image that the epoch has had already"
    for (_, _, views), (_, _, views_rest) in zip(whole.batches[7:], rest.batches, strict=True):
        assert torch.equal(views, views_rest)


def test_evaluation_sees_every_image_once_and_clean(tmp_path: Path) -> None:
    small_store(tmp_path / "store")
    datamodule = ready(tmp_path, image_size=6)
    splits = read_store(tmp_path / "store").splits
    for number, (name, loader) in enumerate(zip(("test", "train"), datamodule.val_dataloader(), strict=True)):
        batches = [datamodule.on_after_batch_transfer(batch, number) for batch in loader]
        images = torch.cat([batch["image"] for batch in batches])
        assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(len(splits[name])))
        assert torch.equal(torch.cat([batch["label"] for batch in batches]), splits[name].labels)
        expected = splits[name].images[:, 1:7, 1:7].float().permute(0, 3, 1, 2)
        back = images * torch.tensor([2.0, 4.0, 8.0]).view(3, 1, 1) + torch.tensor([10.0, 20.0, 30.0]).view(3, 1, 1)
        torch.testing.assert_close(back, expected)


def test_limit_draws_evenly_and_indexes_from_zero(tmp_path: Path) -> None:
    small_store(tmp_path / "store")
    datamodule = ready(tmp_path, limit=6)
    assert len(datamodule.train_labels) == 6
    gallery = next(iter(datamodule.val_dataloader()[1]))
    assert gallery["index"].tolist() == list(range(6))
    assert gallery["label"].bincount().tolist() == [2, 2, 2]


def scored(datamodule: StoreDataModule) -> list[tuple[Tensor, Tensor]]:
    """Of each set that is scored the images, `(N, 3, 8, 8)` as the network sees them, and the labels."""
    sets = []
    for number, loader in enumerate(datamodule.val_dataloader()):
        batches = [datamodule.on_after_batch_transfer(batch, number) for batch in loader]
        sets.append((torch.cat([b["image"] for b in batches]), torch.cat([b["label"] for b in batches])))
    return sets


@pytest.mark.parametrize("limit", [None, 9])
def test_held_out_images_are_scored_and_nothing_else(tmp_path: Path, limit: int | None) -> None:
    small_store(tmp_path / "store")
    splits = read_store(tmp_path / "store").splits
    plain: dict[str, Any] = {"mean": [0.0] * 3, "std": [1.0] * 3, "augmentation": Augmentation(8)}
    datamodule = ready(tmp_path, validation=0.3, limit=limit, **plain)
    held, trained = datamodule.validation_rows, datamodule.train_rows
    assert splits["train"].labels[held].bincount().tolist() == [2, 2, 2]
    assert len(trained) == (limit or 14)
    assert not set(held.tolist()) & set(trained.tolist())
    assert torch.equal(ready(tmp_path, validation=0.3, seed=7).validation_rows, held), "the same for every seed"

    (tests, _), (validation, labels), (gallery, gallery_labels) = scored(datamodule)
    assert len(tests) == 11
    for images, rows in ((validation, held), (gallery, trained)):
        assert torch.equal(images, splits["train"].images[rows].permute(0, 3, 1, 2).float())
    assert datamodule.validation_labels is not None
    assert datamodule.gallery_labels is not None
    assert torch.equal(labels, datamodule.validation_labels)
    assert torch.equal(gallery_labels, datamodule.gallery_labels)
    clean = torch.cat([batch["image"] for batch in datamodule.clean_dataloader()])
    assert torch.equal(clean, splits["train"].images[trained])

    module = fit(datamodule, 2, tmp_path / "a.ckpt")
    for _, index, views in module.batches:
        expected = splits["train"].images[trained[index]].repeat(2, 1, 1, 1)
        assert torch.equal(views.permute(0, 2, 3, 1), expected.float())


def test_nothing_is_held_out_unasked(tmp_path: Path) -> None:
    small_store(tmp_path / "store")
    datamodule = ready(tmp_path)
    assert datamodule.validation_labels is None
    assert len(datamodule.val_dataloader()) == 2
    assert datamodule.train_rows.tolist() == list(range(20))


def test_where_test_classes_are_unseen_classes_are_held_out(tmp_path: Path) -> None:
    small_store(tmp_path / "store", train=40, classes=8, unseen=True)
    datamodule = ready(tmp_path, validation=0.4, gallery=False)
    assert datamodule.unseen
    assert datamodule.validation_labels is not None
    held, trained = (set(labels.tolist()) for labels in (datamodule.validation_labels, datamodule.train_labels))
    assert (len(held), len(trained)) == (3, 5)
    assert held | trained == set(range(8))
    assert (len(datamodule.validation_labels), len(datamodule.train_labels)) == (15, 25)
    _, (images, labels) = scored(datamodule)
    assert torch.equal(labels, datamodule.validation_labels)
    assert len(images) == 15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation": 0.01}, "dataset.validation=0.01: holds out 0 of 20"),
        ({"validation": 0.3, "limit": 15}, "dataset.limit=15: the training set has 14 images"),
        ({"validation": 0.85}, "dataset.batch_size=4 .* 3 training images"),
        ({"batch_size": 21}, "dataset.batch_size=21 .* 20 training images.*to 20 or less"),
        ({"limit": 21}, "dataset.limit=21"),
        ({"limit": 3}, "dataset.batch_size=4 .* 3 training images"),
        ({"limit": 1}, r"1 training image\(s\) for 1 rank\(s\): a loss over pairs needs two"),
        ({"view_milestones": [2, 1], "view_sizes": [4, 6]}, r"view_milestones=\[2, 1\] must rise"),
        ({"view_milestones": [2], "view_sizes": []}, "must rise and have a size each"),
        ({"view_milestones": [2], "view_sizes": [4, 6, 8]}, "and at most one more follows"),
        ({"view_milestones": [2], "view_sizes": [9]}, r"view_sizes=\[9\]: views grow to input.size=8"),
        ({"image_size": 9}, "input.size=9: .* images of 8 pixels"),
    ],
)
def test_impossible_settings_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    small_store(tmp_path / "store")
    with pytest.raises(ValueError, match=message):
        ready(tmp_path, **changes).check(ranks=1)


def test_a_batch_must_fit_on_every_rank(tmp_path: Path) -> None:
    small_store(tmp_path / "store")
    datamodule = ready(tmp_path, batch_size=8)
    datamodule.check(ranks=2)
    with pytest.raises(ValueError, match=r"on 3 rank\(s\) is more than the 20 training images: .* to 6 or less"):
        datamodule.check(ranks=3)


def test_digits_are_scikit_learns(tmp_path: Path) -> None:
    datamodule = make(tmp_path, Digits, name="digits", image_size=32)
    datamodule.prepare_data()
    store = read_store(tmp_path / "digits")
    train, test = store.splits["train"], store.splits["test"]
    assert (len(train), len(test)) == (1437, 360)
    assert train.images.shape[1:] == (32, 32, 3)
    shares = [split.labels.bincount() / len(split) for split in (train, test)]
    assert (shares[0] - shares[1]).abs().max() < 0.01, "stratified"
    flat = [split.images.numpy().reshape(len(split), -1) for split in (train, test)]
    together = {row.tobytes() for row in flat[0]} & {row.tobytes() for row in flat[1]}
    assert not together, "no image in both"
    assert np.ptp(flat[0]) == 255
