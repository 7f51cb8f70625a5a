"""The progress bar: what a person watches while it trains."""

import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar

from src.module import may_wait, steps_per_epoch
from src.scores import VALIDATION, is_aside

T = TypeVar("T")
UNSHOWN = ("geometry/", "linear/", "similarity/")  # there would be no room


class Progress(RichProgressBar):
    """Lightning's rich bar with the loss of the step, images per second and the latest scores, under short names.

    And what is `left`: hours, minutes and seconds until the run's last step, at the pace it had so far.

    Scores are those of held-out training images where there are any: whoever watches them chooses by them.

    In training the numbers change when `may_wait` allows it. Lightning would wait at every step for what is logged with
    `prog_bar=True`, so nothing is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shown: dict[str, Any] = {}
        self.began = (0.0, 0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.began = (time.monotonic(), trainer.global_step)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        if trainer.training and not may_wait(trainer):
            return self.shown
        metrics = trainer.callback_metrics
        scores = [name for name in metrics if not name.startswith("train/") and not is_aside(name)]
        scores = [name for name in scores if not name.removeprefix(VALIDATION).startswith(UNSHOWN)]
        held_out = [name for name in scores if name.startswith(VALIDATION)]
        names = {"train/loss_step": "loss", "train/images_per_s": "images/s"}
        names |= {name: name.replace(VALIDATION, "val/") for name in held_out or scores}
        self.shown = {names[name]: float(value) for name, value in metrics.items() if name in names}
        started, first = self.began
        if trainer.training and trainer.global_step > first:
            rest = (trainer.max_epochs or 0) * steps_per_epoch(trainer) - trainer.global_step
            left = rest * (time.monotonic() - started) / (trainer.global_step - first)
            self.shown["left"] = str(timedelta(seconds=round(max(left, 0))))
        return self.shown

    def track(self, batches: Iterable[T], total: int, description: str) -> Iterator[T]:
        """`batches`, with a bar of their own beneath the epoch's, for a pass outside of Lightning's loops."""
        if self.is_disabled:
            yield from batches
            return
        self._init_progress(self.trainer)  # unless another callback was first
        task = self._add_task(total, description)
        for done, batch in enumerate(batches, 1):
            yield batch
            self._update(task, done)
        if self.progress is not None:
            self.progress.remove_task(task)
