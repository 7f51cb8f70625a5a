"""The LightningDataModule behind every dataset: whole batches from a store, paired views on the device."""

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from src.augmentations.functional import center_crop, clean, normalize
from src.augmentations.random import Augmentation
from src.datamodules.batches import Batch, BatchedSplit, Order, whole
from src.datamodules.draws import class_balanced_draw, draw_evenly, hold_out
from src.datamodules.store import Store, prepare_store, read_store
from src.hints import MOST, Count, GreyDeviations, GreyLevels, Name, Pixels, Seed, Share, Text

BatchSize = Annotated[int, Interval(ge=2, le=MOST)]  # a loss over pairs of images needs two


class StoreDataModule(pl.LightningDataModule):
    """Training views, and the query and gallery of the evaluation, from a store of uint8 images.

    Batches are dicts: `index` `(B,)`, the position in the training (or test) set; `label` `(B,)`, with companions
    `(VB,)`, of every view's image; and, made on the device after the transfer, `views` `(VB, 3, S, S)` for training,
    rows i, i + B, … V views of image `index[i]` or of its companions (`pair`), or `image` `(B, 3, S, S)` for
    evaluation. Subclasses say in `build` how their images come into the store.

    Args:
        name: names the store.
        cache_dir: folder of the stores.
        image_size: side S, in pixels, of what the network sees.
        mean, std: of each channel, in grey levels 0 to 255.
        batch_size: training images a step and rank, at least 2.
        eval_batch_size: images at once in evaluation; no result depends on it.
        limit: train on so many images, drawn evenly from the classes; None takes all.
        validation: hold out this share of the labelled training images, or where the test classes are not trained on
            of the training classes, and score it as the test images are (`hold_out`); None holds out nothing.
        gallery: whether the evaluation searches the training images.
        resident: hold the images in the accelerator's memory: `always`, `never`, or `auto`, where they fill less than
            a quarter of what is free.
        augmentation: draws the views.
        seed: with epoch, step and rank it determines every draw.
        view_milestones, view_sizes: before each of these epochs, which rise, training views have so many pixels a side;
            from the last one on as many as one more size says, by default `image_size`.

    Attributes:
        fits: whether a whitening is fitted, for which the evaluation is handed every training image.
        side: of the stored images, in pixels, where no option `size` says it; None: as large as the network sees them.
    """

    fits = False
    side: int | None = None

    def __init__(
        self,
        *,
        name: Name,
        cache_dir: Text,
        image_size: Pixels,
        mean: GreyLevels,
        std: GreyDeviations,
        batch_size: BatchSize,
        eval_batch_size: Count,
        limit: Count | None,
        gallery: bool,
        resident: Literal["auto", "always", "never"],
        augmentation: Augmentation,
        seed: Seed,
        view_milestones: Sequence[Count],
        view_sizes: Sequence[Pixels],
        validation: Share | None = None,
    ) -> None:
        super().__init__()
        more = len(view_sizes) - len(view_milestones)
        if more not in (0, 1) or list(view_milestones) != sorted(view_milestones):
            raise ValueError(
                f"dataset.view_milestones={list(view_milestones)} must rise and have a size each, and at most one more "
                f"follows, got view_sizes={list(view_sizes)}"
            )
        if any(size > image_size for size in view_sizes):
            raise ValueError(
                f"dataset.view_sizes={list(view_sizes)}: views grow to input.size={image_size}, so none may be larger"
            )
        self.view_milestones, self.view_sizes = list(view_milestones), [*view_sizes, *([] if more else [image_size])]
        self.name, self.path = name, Path(cache_dir).expanduser() / name
        self.image_size, self.batch_size, self.eval_batch_size = image_size, batch_size, eval_batch_size
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)
        self.limit, self.validation, self.gallery, self.resident = limit, validation, gallery, resident
        self.augmentation, self.seed = augmentation, seed
        self.store: Store | None = None
        self.views = 2
        self._training: BatchedSplit | None = None
        self._on_device: dict[str, Tensor] = {}

    def build(self, folder: Path) -> dict[str, Any]:
        """Write the splits into `folder` and return the rest of `meta.json`; see `prepare_store`."""
        raise NotImplementedError

    def missing(self) -> str:
        """Which files a person has to put where, before anything can be built; empty where nothing is missing."""
        return ""

    def prepare_data(self) -> None:
        prepare_store(self.path, self.build)

    def setup(self, stage: str | None = None) -> None:
        if self.store is not None:
            return
        self.store = read_store(self.path)
        labels = self.store.splits["train"].labels
        held = torch.zeros_like(labels, dtype=torch.bool)
        if self.validation is not None:
            held = hold_out(labels, self.validation, classes=self.unseen)
        self.validation_rows, rest = held.nonzero().squeeze(1), (~held).nonzero().squeeze(1)
        limit = len(rest) if self.limit is None else self.limit
        self.train_rows = rest[class_balanced_draw(labels[rest], limit)]

    def check(self, ranks: int) -> None:
        """Raise a ValueError if the images are too small, or too few to fill one batch on each of `ranks`."""
        assert self.store is not None
        images, side = len(self.train_rows), min(self.store.splits["train"].images.shape[1:3])
        if not 1 <= self.image_size <= side:
            raise ValueError(f"input.size={self.image_size}: the store has images of {side} pixels, choose 1 to {side}")
        if images < 2 * ranks:
            raise ValueError(f"{images} training image(s) for {ranks} rank(s): a loss over pairs needs two on each")
        if self.batch_size * ranks > images:
            raise ValueError(
                f"dataset.batch_size={self.batch_size} on {ranks} rank(s) is more than the {images} training images: "
                f"set dataset.batch_size to {images // ranks} or less"
            )

    @property
    def unseen(self) -> bool:
        """Whether no test image is of a training class.

        The data says so and not the protocol, which may be another one when a run is scored again.
        """
        assert self.store is not None
        train, test = (self.store.splits[name].labels for name in ("train", "test"))
        return not torch.isin(test, train[train >= 0]).any()

    @property
    def train_labels(self) -> Tensor:
        """Of the images trained on: `(N,)`, -1 where there is none."""
        assert self.store is not None
        return self.store.splits["train"].labels[self.train_rows]

    @property
    def gallery_rows(self) -> Tensor:
        """In the store, the training images that have a label: `(G,)`."""
        return self.train_rows[self.train_labels >= 0]

    @property
    def gallery_labels(self) -> Tensor | None:
        """Of the gallery, those of the training images that have a label: `(G,)`; None without a gallery."""
        return self.train_labels[self.train_labels >= 0] if self.gallery else None

    @property
    def query_labels(self) -> Tensor:
        """Of the test set: `(Q,)`."""
        assert self.store is not None
        return self.store.splits["test"].labels

    @property
    def validation_labels(self) -> Tensor | None:
        """Of the training images held out: `(V,)`; None where none are."""
        assert self.store is not None
        return None if self.validation is None else self.store.splits["train"].labels[self.validation_rows]

    def pair(self, companions: Tensor | None, views: int, order: Tensor | None = None) -> None:
        """From now on draw the views of place i from the images `companions[i]`, `(N, V)`; None: `views` of image i.

        An epoch's steps have the places in their `order`, those of all ranks together; None: all in random order.
        """
        assert self._training is not None, "the training loader comes first"
        self._training.companions = companions if companions is None else companions.cpu()
        self._training.order = order if order is None else order.cpu()
        self.views = views if companions is None else companions.shape[1]

    def train_dataloader(self) -> DataLoader[Batch]:
        self._training = self._part("train", self.train_rows)
        return self._loader(self._training, self.batch_size, shuffle=True)

    def clean_dataloader(self) -> DataLoader[Batch]:
        """Every training image, labelled or not, in order; see `clean`."""
        return self._loader(self._part("train", self.train_rows), self.eval_batch_size, shuffle=False)

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """The queries, test and held-out images, and clean training images: the gallery if asked for; all if `fits`."""
        assert self.store is not None
        sets = [self._part("test", torch.arange(len(self.store.splits["test"])))]
        if self.validation is not None:
            sets.append(self._part("train", self.validation_rows))
        if self.fits or self.gallery:
            sets.append(self._part("train", self.train_rows if self.fits else self.gallery_rows))
        return [self._loader(part, self.eval_batch_size, shuffle=False) for part in sets]

    def _part(self, name: str, rows: Tensor) -> BatchedSplit:
        assert self.store is not None
        return BatchedSplit(self.store.splits[name], rows, on_device=self._hold_on_device(name))

    def _loader(self, dataset: BatchedSplit, batch_size: int, shuffle: bool) -> DataLoader[Batch]:
        # One process is a world of one: the order depends on seed and epoch alone, so that a resumed run sees it again.
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        passed = (lambda: batch_size * self._batches()) if shuffle else (lambda: 0)
        options = {"num_replicas": world, "rank": rank, "shuffle": shuffle, "seed": self.seed, "drop_last": shuffle}
        sampler = Order(dataset, passed, **options)
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=shuffle,
            collate_fn=whole,
            pin_memory=torch.cuda.is_available(),
        )

    def _batches(self) -> int:
        """How many batches the running epoch has had; those of a run that goes on with it count."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.ready if self.trainer else 0

    def _hold_on_device(self, split: str) -> bool:
        """Whether the split's images live on the accelerator; moves them there the first time."""
        assert self.store is not None
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if device.type == "cpu" or self.resident == "never":
            return False
        if split not in self._on_device:
            images = self.store.splits[split].images
            if self.resident == "auto" and device.type == "cuda":
                free = torch.cuda.mem_get_info(device)[0]
                if images.numel() * 4 > free:
                    return False
            self._on_device[split] = images.to(device)
        return True

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """On the device: the views of each training image, or the clean image for evaluation; normalised."""
        if self.trainer is None or not self.trainer.training:
            return self.clean(batch, "train" if dataloader_idx else "test")
        images = self._take(batch, "train")
        if len(images) < self.views * len(batch["index"]):  # every view is of the place's own image
            images = images.repeat(self.views, 1, 1, 1)
        batch["views"] = self.augmentation(images, self._generator(), self.finish)
        return batch

    def clean(self, batch: Batch, split: str) -> Batch:
        """A batch of `split`, transferred, with `image` as evaluation sees it: cropped at the centre, normalised."""
        batch["image"] = clean(self._take(batch, split), self.image_size, self.mean, self.std)
        return batch

    def clean_images(self, count: int) -> Tensor:
        """At most `count` training images from all over the set, as evaluation sees them: `(N, 3, S, S)`."""
        assert self.store is not None
        rows = self.train_rows[:: -(-len(self.train_rows) // count)]
        return clean(self.store.splits["train"].images[rows], self.image_size, self.mean, self.std)

    def draw_queries(self, count: int, seed: int) -> Tensor:
        """Places of at most `count` test images, drawn evenly from the classes."""
        return draw_evenly(self.query_labels, count, seed)

    def query_images(self, rows: Tensor) -> Tensor:
        """Test images by their places `(N,)` as evaluation sees them, but in grey levels: uint8 `(N, S, S, 3)`."""
        return self._cropped("test", rows)

    def gallery_images(self, rows: Tensor) -> Tensor:
        """The same of the gallery's, by their places in it."""
        return self._cropped("train", self.gallery_rows[rows])

    def _cropped(self, split: str, rows: Tensor) -> Tensor:
        assert self.store is not None
        images = self.store.splits[split].images[rows]
        return center_crop(images.permute(0, 3, 1, 2), self.image_size).permute(0, 2, 3, 1)

    def _take(self, batch: Batch, split: str) -> Tensor:
        row = batch.pop("row", None)
        return batch.pop("image") if row is None else self._on_device[split][row]

    def finish(self, images: Tensor) -> Tensor:
        """Views in grey levels as the network takes them in this epoch: resized, normalised, channels last."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        size = self.view_sizes[bisect_right(self.view_milestones, epoch)]
        if size != images.shape[-1]:
            images = functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
        return normalize(images, self.mean, self.std).contiguous(memory_format=torch.channels_last)

    def _generator(self) -> torch.Generator:
        """A generator that depends on seed, epoch, step and rank alone, so that a resumed run draws the same views."""
        assert self.trainer is not None
        key = np.random.SeedSequence([self.seed, self.trainer.current_epoch, self._batches(), self.trainer.global_rank])
        return torch.Generator().manual_seed(int(key.generate_state(1, np.uint64)[0] >> np.uint64(1)))
