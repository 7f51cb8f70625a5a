"""The progress bar: what a person watches while it trains."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar

from src.module import may_wait

T = TypeVar("T")


class Progress(RichProgressBar):
    """Lightning's rich bar with the loss of the step, images per second and the latest scores, under short names.

    In training the numbers change when `may_wait` allows it. Lightning would wait at every step for what is logged with
    `prog_bar=True`, so nothing is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shown: dict[str, Any] = {}

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        if trainer.training and not may_wait(trainer):
            return self.shown
        names = {"train/loss_step": "loss", "train/images_per_s": "images/s"}
        self.shown = {
            names.get(name, name): float(value)
            for name, value in trainer.callback_metrics.items()
            if name in names or not name.startswith(("train/", "embedding/", "pooled/"))
        }
        return self.shown

    def track(self, batches: Iterable[T], total: int, description: str) -> Iterator[T]:
        """`batches`, with a bar of their own beneath the epoch's, for a pass outside of Lightning's loops."""
        if self.is_disabled or self.progress is None:
            yield from batches
            return
        task = self._add_task(total, description)
        for done, batch in enumerate(batches, 1):
            yield batch
            self._update(task, done)
        self.progress.remove_task(task)
